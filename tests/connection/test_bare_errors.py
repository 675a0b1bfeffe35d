"""No thread to be had, or a working directory that is gone: every call raises a CatalogError."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "bare_errors_program.py"


def outcomes(fault: str) -> dict[str, str]:
    # Accessible by every user, unlike pytest's own temporary folder.
    with tempfile.TemporaryDirectory(prefix="model-catalog-") as folder:
        done = subprocess.run(
            [sys.executable, PROGRAM, fault, folder], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user without processes")
def test_a_call_that_cannot_start_a_thread_says_so():
    """Python raises RuntimeError. Whatever the call needs the thread for, the error is ours."""
    assert set(outcomes("without_threads").values()) == {"CatalogError"}


def test_a_working_directory_that_is_gone_is_named():
    """A relative path cannot be used. Other calls go on."""
    found = outcomes("without_directory")

    assert found.pop("find") == "done"
    assert found.pop("register") == "InvalidModelError"
    assert set(found.values()) == {"InvalidTargetError"}
