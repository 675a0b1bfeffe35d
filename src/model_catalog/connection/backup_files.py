"""The copies that lie beside a database: how they are called, and which of them are good."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes

KEPT: Final = 3
"""How many of the copies that are made by themselves stay."""

_STAMP: Final = r"\d{8}T\d{6}Z"


def uri_of(path: Path, mode: str) -> str:
    """A file's name as SQLite takes it with parameters, whatever bytes it is made of."""
    # Percent-encoded, because the name of a file may hold `?`, `#`, `%20` and bytes that are no
    # text.
    return f"file:{quote_from_bytes(os.fsencode(path))}?mode={mode}"


def free_backup_path(path: Path, why: str, before: str | None = None) -> Path:
    """
    A name that is free, beside a database: as `catalog.db.backup-20261123T140509Z`.

    `why` is `backup`, `repaired` or `replaced`. What is made before a migration says to which
    revision, as in `...Z-before-0010`, and the second of one second ends with `-2`.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    ending = f".{why}-{stamp}"
    if before is not None:
        ending += "-before-" + re.sub(r"\W", "_", before)
    free = _beside(path, ending)
    number = 1
    while os.path.lexists(free):
        number += 1
        free = _beside(path, f"{ending}-{number}")
    return free


def _beside(path: Path, ending: str) -> Path:
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + ending)


def automatic_backups(path: Path) -> list[Path]:
    """The copies that were made by themselves before migrations, oldest first."""
    return _listed(path, rf"\.backup-{_STAMP}-before-\w+(-\d+)?")


def unfinished_backups(path: Path) -> list[Path]:
    """What is left of automatic copies whose making was killed."""
    return _listed(path, rf"\.backup-{_STAMP}-before-\w+\.\w+\.part", prefix=".")


def _listed(path: Path, ending: str, prefix: str = "") -> list[Path]:
    real = Path(os.path.realpath(path))
    pattern = re.compile(re.escape(prefix + real.name) + ending)
    try:
        # The names begin alike, and then comes the time.
        return sorted(each for each in real.parent.iterdir() if pattern.fullmatch(each.name))
    except OSError:
        return []


def newest_valid_backup(path: Path) -> Path | None:
    """The newest copy of a database beside it that is a whole catalog; reads it from the disk."""
    found = reversed(_listed(path, rf"\.backup-{_STAMP}(-before-\w+)?(-\d+)?"))
    return next((copy for copy in found if integrity_error(copy) is None), None)


def integrity_error(copy: Path) -> str | None:
    """
    Why a copy that nobody writes to is no whole catalog; None where it is one.

    Never of a database that this process has open.
    """
    try:
        with closing(sqlite3.connect(f"{uri_of(copy, 'ro')}&immutable=1", uri=True)) as raw:
            answer: str = raw.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                return answer
            raw.execute("SELECT count(*) FROM models").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None
