"""No room: it is said by its name, reads go on, and with room the same catalog writes again."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "small_disk_program.py"


@cache
def with_mounts_of_its_own() -> list[str] | None:
    """How a process is given a file system that nobody else sees; None where it may not be."""
    for command in (["unshare", "-m"], ["unshare", "-Urm"]):
        try:
            tried = subprocess.run(
                [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            return None
        if tried.returncode == 0:
            return command
    return None


CASES = [
    pytest.param("write", "disk", id="a write, 1 MiB disk"),
    pytest.param("write", "files", id="a write, file size limit"),
    pytest.param("pages", "pages", id="a write, page limit"),
    pytest.param("migration", "disk", id="a migration, 1 MiB disk"),
    pytest.param("migration", "files", id="a migration, file size limit"),
    pytest.param("checkpoint", "disk", id="a checkpoint, 1 MiB disk"),
    pytest.param("checkpoint", "files", id="a checkpoint, file size limit"),
    pytest.param("copy", "disk", id="a copy, 1 MiB disk"),
    pytest.param("copy", "files", id="a copy, file size limit"),
]


@pytest.mark.parametrize(("act", "means"), CASES)
def test_without_room_nothing_is_lost_but_the_call(tmp_path, act, means):
    """
    The call raises StorageFullError and leaves nothing half done; what was there before is read,
    and when there is room again it is written to, by the same catalog.
    """
    command = [] if means != "disk" else with_mounts_of_its_own()
    if command is None:
        pytest.skip("this user may mount no file system, not even for itself alone")

    done = subprocess.run(
        [*command, sys.executable, "-W", "error", SCRIPT, act, means, tmp_path],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "error": "StorageFullError",
        "read": True,
        "kept": True,
        "problems": [],
    }
