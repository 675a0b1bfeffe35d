"""The README's code runs, and its commands are the ones that work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from model_catalog import CatalogError, errors
from model_catalog.cli.parser import make_parser

README = Path(__file__).parents[2].joinpath("README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TYPED = re.findall(r"^\$ model-catalog (.*)$", README, re.MULTILINE)


NAMES = [
    *("in a service", "what is known", "against the disk", "in one table", "in a host", "copies"),
]


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_its_code_runs(block, tmp_path):
    """
    Each block is a whole program.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("typed", TYPED)
def test_its_commands_are_understood(typed):
    """
    What the README types, the parser takes.
    """
    assert make_parser().parse_args(typed.split())


def test_it_names_every_error():
    """
    The table of errors is complete.
    """
    raised = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, CatalogError)
    }

    assert {name for name in raised if f"`{name}`" not in README} == set()
