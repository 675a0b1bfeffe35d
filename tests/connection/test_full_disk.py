"""A full disk: the call raises StorageFullError, reads continue, and later writes succeed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import mount_namespace_command

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "small_disk_program.py"


CASES = [
    pytest.param("write", "disk", id="write, small disk"),
    pytest.param("write", "files", id="write, file size limit"),
    pytest.param("pages", "pages", id="write, page limit"),
    pytest.param("migration", "disk", id="migration, small disk"),
    pytest.param("migration", "files", id="migration, file size limit"),
    pytest.param("checkpoint", "disk", id="checkpoint, small disk"),
    pytest.param("checkpoint", "files", id="checkpoint, file size limit"),
    pytest.param("copy", "disk", id="backup, small disk"),
    pytest.param("copy", "files", id="backup, file size limit"),
]


@pytest.mark.parametrize(("operation", "limit"), CASES)
def test_a_full_disk_loses_only_the_failed_call(tmp_path, operation, limit):
    """
    The call raises StorageFullError and changes nothing. Existing rows can be read, and once there
    is space the same catalog writes again.
    """
    command = [] if limit != "disk" else mount_namespace_command()
    if command is None:
        pytest.skip("this user may not mount a file system, not even in a private namespace")

    done = subprocess.run(
        [*command, sys.executable, "-W", "error", SCRIPT, operation, limit, tmp_path],
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
