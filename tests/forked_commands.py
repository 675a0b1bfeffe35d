"""Run `model-catalog` in a child of the fork server, where most imports are already done."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from child_programs import PROCESSES

from model_catalog.cli import run_program


def run_command(*words: str, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Return the exit code of a command, and what it has printed to both streams."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        arguments = (words, dict(env), output, errors)
        process = PROCESSES.Process(target=_run_command, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode is not None, words
        return process.exitcode, output.read_text(), errors.read_text()


def _run_command(
    words: tuple[str, ...], env: Mapping[str, str], output: Path, errors: Path
) -> None:
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, output), (2, errors)):
        file = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["model-catalog", *words]
    run_program()
