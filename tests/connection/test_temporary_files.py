"""No room for SQLite's temporary files: work continues in memory, or the error names the folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import mount_namespace_command

from model_catalog.connection.sqlite_pragmas import temp_store

SCRIPT = Path(__file__).parents[1] / "full_temporary_folder_program.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [pytest.param("size=64k", id="full"), pytest.param("nr_inodes=1", id="no inodes")]
)
def test_a_full_temporary_folder_stops_only_a_hosts_large_sorts(tmp_path, option):
    """
    A file of our own is sorted, counted, relocated and migrated in memory. A host's engine raises
    StorageFullError with the name of the folder, and finds by name continue.
    """
    command = mount_namespace_command()
    if command is None:
        pytest.skip("this user may not mount a file system, not even in a private namespace")
    folder, temporary = tmp_path / "catalogs", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()

    done = subprocess.run(
        [*command, sys.executable, "-W", "error", SCRIPT, folder, temporary, option],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "SQLITE_TMPDIR": str(temporary)},
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["own"].values()) == {"done"}
    assert found["adoption"] == "done"
    assert found["host's"]["sort"] == f"no room in {temporary}: True"
    assert set(found["host's"].values()) == {"done", f"no room in {temporary}: True"}
    assert found["host's"]["find"] == "done"


def test_a_large_database_is_sorted_on_the_disk():
    """The memory for temporary files is bounded by the size of the database."""
    assert temp_store(256 * 2**20) == "MEMORY"
    assert temp_store(256 * 2**20 + 1) == "FILE"
