"""docs/fleet.md: its commands and its program work as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from model_catalog import Model, open_catalog
from model_catalog.cli.parser import make_parser

PAGE = Path(__file__).parents[2].joinpath("docs", "fleet.md").read_text()
URL = "postgresql+asyncpg://models@db.lan/models"
COMMANDS = re.findall(r"^\$ model-catalog (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command):
    """Each command that the page shows, without its remark."""
    assert make_parser().parse_args(shlex.split(command, comments=True))


@pytest.mark.slow
async def test_the_program_runs(database, tmp_path):
    """It registers the host, sends a heartbeat, and prints the copies of the model."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert URL in program
    async with open_catalog(database.target, host="gpu-01") as catalog:
        await catalog.register_model(Model(provider="hf", reference="org/name", local_path="/m"))

    program = program.replace(URL, database.target).replace("/srv/models", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "host='gpu-01', host_state=<HostState.ALIVE: 'alive'>" in done.stdout
    assert len(COMMANDS) == 3
