"""Completion of commands, options and names of models in bash, zsh and fish."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_catalog import Model, open_catalog

PROGRAM = Path(sys.executable).parent / "model-catalog"
BASH = """
eval "$(model-catalog completion bash)"
function=$(complete -p model-catalog | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_LINE=$1
COMP_POINT=${#1}
COMP_TYPE=9
COMP_KEY=9
$function model-catalog
printf '%s\\n' "${COMPREPLY[@]}"
"""
# -D writes no dump. With `-d /dev/null`, root would replace the device by a file.
ZSH = """
autoload -Uz compinit && compinit -u -D
eval "$(model-catalog completion zsh)"
print -r -- ${_comps[model-catalog]}
"""


@pytest.fixture
async def environment(sqlite_file):
    """The environment of a shell whose default catalog has two models."""
    async with open_catalog(sqlite_file) as catalog:
        for reference in ("org/alpha", "org/beta"):
            model = Model(reference=reference, provider="hf", local_path="/m")
            await catalog.register_model(model)
    return {
        "PATH": f"{PROGRAM.parent}:{os.defpath}",
        "HOME": str(sqlite_file.parent),
        "MODEL_CATALOG_URL": str(sqlite_file),
        "TERM": "dumb",
    }


def run(environment, *command):
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, timeout=60
    ).stdout.splitlines()


def complete_in_bash(environment, line):
    found = run(environment, "bash", "--norc", "-c", BASH, "bash", line)
    return [word.strip() for word in found if word]


def complete_in_fish(environment, line):
    script = "model-catalog completion fish | source; complete -C $argv[1]"
    return [
        word.split("\t")[0]
        for word in run(environment, "fish", "--no-config", "-c", script, "--", line)
    ]


SHELLS = pytest.mark.parametrize(
    "complete",
    [
        complete_in_bash,
        pytest.param(
            complete_in_fish,
            marks=pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed"),
        ),
    ],
    ids=["bash", "fish"],
)


@pytest.mark.slow
@SHELLS
def test_commands_are_completed(environment, complete):
    """
    The beginning of a command becomes the command.
    """
    assert complete(environment, "model-catalog rel") == ["relink", "relocate"]


@pytest.mark.slow
@SHELLS
def test_names_of_models_are_completed(environment, complete):
    """
    The beginning of a name becomes the recorded names; a colon does not divide a name.
    """
    names = complete(environment, "model-catalog show hf:org/")

    # bash replaces only what follows the last colon.
    assert [name.removeprefix("hf:") for name in names] == ["org/alpha", "org/beta"]


@pytest.mark.slow
def test_the_catalog_that_the_line_names_is_used(environment, tmp_path):
    """
    `--db` in the line is the catalog of the names; one that does not exist has none.
    """
    line = f"model-catalog show --db {tmp_path / 'none.db'} hf:"

    assert complete_in_bash(environment, line) == []
    assert not (tmp_path / "none.db").exists()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_accepts_its_script(environment):
    """
    After the script, zsh has a function that completes the program.
    """
    assert run(environment, "zsh", "-f", "-c", ZSH) == ["_python_argcomplete"]
