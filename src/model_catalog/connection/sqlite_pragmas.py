"""How SQLite keeps what is written: in which journal, and how surely before it is acknowledged."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from model_catalog.connection.database_file import network_file_system
from model_catalog.errors import InvalidModelError

Durability: TypeAlias = Literal["full", "normal"]
"""
What a power cut may cost: with `full` nothing that was acknowledged, with `normal` the last of it.

Neither damages the database, and a killed process loses nothing with either.
"""

Ask: TypeAlias = Callable[[str], Any]
"""Runs one statement outside a transaction, and returns the first value of its answer."""

# Two connections that write or checkpoint in the same moment may damage the database:
# https://www.sqlite.org/releaselog/3_51_3.html
_RACE_FIXED: Final = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
_RACE_BEGAN: Final = (3, 7, 0)

log = logging.getLogger(__name__)


def validate_durability(value: str) -> None:
    """Raise InvalidModelError for what is no Durability."""
    if value not in ("full", "normal"):
        raise InvalidModelError("durability", value, "is none of full, normal")


def connection_pragmas(durability: Durability) -> tuple[str, ...]:
    """What every connection is told when it is made."""
    # Cells are held against the size of their page when it is read: a damaged page is then an
    # error, and not a row that was never written.
    return (
        "PRAGMA foreign_keys = ON",
        "PRAGMA cell_size_check = ON",
        f"PRAGMA synchronous = {durability.upper()}",
    )


class JournalMode:
    """The journal of one database; what kind it is depends on where the file lies."""

    def __init__(self, path: Path, name: str, durability: Durability) -> None:
        self._path = path
        self._name = name
        self._durability = durability
        self._network: str | None = None
        self._looked = False

    def prepare(self, ask: Ask) -> None:
        """Have a connection that is going to write use the journal that is right for the file."""
        if not self._looked:
            self._network = network_file_system(self._path)
            self._looked = True
        kind = ask(f"PRAGMA journal_mode = {'DELETE' if self._network else 'WAL'}")
        if kind == "wal":
            return
        # Such a journal ends a transaction by being removed, and with less than this a power cut
        # may bring it back. What is less than FULL could damage the database.
        ask(f"PRAGMA synchronous = {'EXTRA' if self._durability == 'full' else 'FULL'}")
        _warn(self._name, self._network, kind)


@cache
def _warn(name: str, network: str | None, kind: str) -> None:
    """Say once in a process that a catalog has no write-ahead log."""
    if network is None:
        log.warning(
            "the catalog at %s cannot have a write-ahead log here, and has a journal of the kind "
            "%s: readers and a writer wait for each other",
            name,
            kind,
        )
    else:
        log.warning(
            "the catalog at %s lies on a network file system (%s), where SQLite's locks may fail: "
            "it has no write-ahead log there; use it from one machine at a time, or use PostgreSQL",
            name,
            network,
        )


@cache
def log_sqlite_version() -> None:
    """Say once in a process which SQLite it has, and what is known to be wrong with it."""
    found = sqlite3.sqlite_version_info
    log.info(
        "SQLite is %s%s",
        sqlite3.sqlite_version,
        ", in which two processes that write at once may, very rarely, damage a write-ahead log "
        "(WAL-reset race, fixed in 3.51.3): keep copies"
        if has_reset_race(found)
        else "",
    )


def has_reset_race(version: tuple[int, ...]) -> bool:
    """Whether a version of SQLite has the WAL-reset race, or is a branch's that had it mended."""
    newest = _RACE_FIXED[0]
    mended = version >= newest or any(
        version[:2] == fixed[:2] and version >= fixed for fixed in _RACE_FIXED
    )
    return version >= _RACE_BEGAN and not mended
