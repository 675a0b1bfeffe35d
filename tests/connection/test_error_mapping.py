"""Errors of SQLite become errors of the catalog by their error codes."""

import pickle
import sqlite3
from contextlib import closing

import pytest
from bad_files import damage

from model_catalog import CatalogBusyError, CatalogCorruptError, CatalogError
from model_catalog.connection.backup_files import free_backup_path
from model_catalog.connection.database_file import corrupt_error
from model_catalog.connection.error_mapping import map_errors, to_catalog_error


def test_an_interrupted_statement_is_distinguished_from_a_locked_database(filled):
    """Both raise CatalogBusyError; only the interrupted one has `is_interrupted`."""
    with closing(sqlite3.connect(filled, timeout=0, isolation_level=None)) as raw:
        raw.set_progress_handler(lambda: 1, 1)
        with pytest.raises(CatalogBusyError) as interrupted, map_errors("it"):
            raw.execute("SELECT count(*) FROM models").fetchone()
        raw.set_progress_handler(None, 0)
        with closing(sqlite3.connect(filled, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(CatalogBusyError) as locked, map_errors("it"):
                raw.execute("BEGIN IMMEDIATE")

    assert interrupted.value.is_interrupted
    assert not locked.value.is_interrupted


@pytest.mark.parametrize(
    ("code", "is_interrupted"),
    [("SQLITE_INTERRUPT", True), ("SQLITE_BUSY", False), ("SQLITE_BUSY_SNAPSHOT", False)],
)
def test_an_interrupt_is_recognised_by_its_code_and_not_by_its_message(code, is_interrupted):
    """Another wording of SQLite does not change the result."""
    error = sqlite3.OperationalError("some other words, interrupted or not")
    error.sqlite_errorname = code

    found = to_catalog_error(error, "it")

    assert isinstance(found, CatalogBusyError)
    assert found.is_interrupted is is_interrupted


def test_an_unknown_code_is_named_in_the_error():
    """An error that has no class of its own keeps its message and its code."""
    error = sqlite3.OperationalError("too many terms")
    error.sqlite_errorname = "SQLITE_TOOBIG"

    found = to_catalog_error(error, "it")

    assert type(found) is CatalogError
    assert "too many terms (SQLITE_TOOBIG)" in str(found)


def test_a_corruption_error_survives_a_process_boundary(filled):
    """A worker process can return it, with the path of the newest valid backup."""
    backup = free_backup_path(filled, "backup")
    backup.write_bytes(filled.read_bytes())
    damage(filled)

    error = pickle.loads(pickle.dumps(corrupt_error(repr(str(filled)), "a page is malformed")))

    assert isinstance(error, CatalogCorruptError)
    assert error.copy == str(backup)
    assert "a page is malformed" in str(error)


async def test_a_corruption_error_of_an_event_loop_is_pickled_without_a_search(filled):
    """The backups are searched in the process that asks for `copy`."""
    backup = free_backup_path(filled, "backup")
    backup.write_bytes(filled.read_bytes())

    error = pickle.loads(pickle.dumps(corrupt_error(repr(str(filled)), "a page is malformed")))

    assert str(backup) not in str(error)
    assert error.copy == str(backup)
    assert str(backup) in str(error)
