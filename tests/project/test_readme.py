"""The README and docs/: examples run, commands parse, lists are complete, module paths exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from model_catalog import CatalogError, ModelCatalog, downloads, errors, upkeep
from model_catalog.cli.parser import make_parser

PROJECT = Path(__file__).parents[2]
README = PROJECT.joinpath("README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL_COMMANDS = re.findall(r"^\$ model-catalog (.*)$", README, re.MULTILINE)
BLOCK_IDS = [
    "use from python",
    "filter and sort",
    "download once",
    "check files",
    "scan stores",
    "embed in a service",
    "backup and restore",
]


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=BLOCK_IDS)
def test_python_example_runs(block, tmp_path):
    """
    Each Python block is a complete program that runs without a warning and prints something.
    """
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout


@pytest.mark.parametrize("command", SHELL_COMMANDS)
def test_shell_command_parses(command):
    """
    The argument parser accepts each command that the README shows.
    """
    assert make_parser().parse_args(command.split())


def test_every_error_is_listed():
    """
    The table of errors names every subclass of CatalogError.
    """
    error_names = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, CatalogError)
    }

    assert {name for name in error_names if f"`{name}`" not in README} == set()


def test_every_method_is_listed():
    """
    The README names every public method of ModelCatalog, and every function of two packages.
    """
    methods = {name for name in dir(ModelCatalog) if not name.startswith("_")}
    functions = {name for name in (*upkeep.__all__, *downloads.__all__) if name.islower()}

    assert {name for name in methods | functions if f"`{name}" not in README} == set()


@pytest.mark.parametrize("page", sorted(PROJECT.glob("docs/*.md")), ids=lambda page: page.stem)
def test_named_modules_exist(page):
    """
    Each module path in docs/ leads to a file of the package or of the project.
    """
    paths = re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text())

    missing = [
        path
        for path in paths
        if not (PROJECT / "src/model_catalog" / path).is_file() and not (PROJECT / path).is_file()
    ]
    assert missing == []
