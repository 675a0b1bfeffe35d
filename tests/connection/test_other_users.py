"""A reader of another user does not keep the owner of a catalog file from writing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "other_users_program.py"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become other users")
def test_a_reader_of_another_user_does_not_block_the_owner():
    """
    The reader is refused while the owner does not have the file open. Files that another program
    left are named in the owner's error, and root removes them by opening the catalog.
    """
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    kind, message = found["reader"]
    assert kind == "CatalogReadOnlyError"
    assert "its owner, user 1001, could not write" in message
    assert found["files"] == ["catalog.db"]
    assert found["owner"] == "written"
    kind, message = found["blocked owner"]
    assert kind == "CatalogReadOnlyError"
    assert "catalog.db-wal', which belongs to user 1002" in message
    assert "let that user or root open and close it" in message
    assert found["root"] == "written"
    assert found["freed owner"] == "written"
    assert found["reader beside root"] == 1
