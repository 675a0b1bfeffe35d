"""Backup files beside a SQLite database: their names, a list of them, and integrity checks."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes

MAX_AUTOMATIC_BACKUPS: Final = 3
"""How many of the backups that were made before migrations are kept."""

_TIMESTAMP: Final = r"\d{8}T\d{6}Z"


def sqlite_uri(path: Path, mode: str) -> str:
    """Return the `file:` URI of a path, for `sqlite3.connect(uri=True)`; `mode` is `ro` or `rw`."""
    # Percent-encoded, because a file name may contain `?`, `#`, `%20` and bytes that are not UTF-8.
    return f"file:{quote_from_bytes(os.fsencode(path))}?mode={mode}"


def free_backup_path(path: Path, kind: str, before: str | None = None) -> Path:
    """
    Return an unused path beside a database, for example `catalog.db.backup-20261123T140509Z`.

    `kind` is `backup`, `repaired` or `replaced`. The name of a backup made before a migration ends
    with the new revision: `...Z-before-0010`. A second backup in the same second ends with `-2`.
    """
    timestamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    suffix = f".{kind}-{timestamp}"
    if before is not None:
        suffix += "-before-" + re.sub(r"\W", "_", before)
    free = _append_to_name(path, suffix)
    number = 1
    while os.path.lexists(free):
        number += 1
        free = _append_to_name(path, f"{suffix}-{number}")
    return free


def _append_to_name(path: Path, suffix: str) -> Path:
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + suffix)


def automatic_backups(path: Path) -> list[Path]:
    """List the backups that were made before migrations, oldest first."""
    return _list_backups(path, rf"\.backup-{_TIMESTAMP}-before-\w+(-\d+)?")


def unfinished_backups(path: Path) -> list[Path]:
    """List the partial files of automatic backups whose process was killed."""
    return _list_backups(path, rf"\.backup-{_TIMESTAMP}-before-\w+\.\w+\.part", prefix=".")


def _list_backups(path: Path, suffix_pattern: str, prefix: str = "") -> list[Path]:
    real = Path(os.path.realpath(path))
    pattern = re.compile(re.escape(prefix + real.name) + suffix_pattern)
    try:
        # The names have a common prefix and then the time, so they sort by time.
        return sorted(entry for entry in real.parent.iterdir() if pattern.fullmatch(entry.name))
    except OSError:
        return []


def newest_valid_backup(path: Path) -> Path | None:
    """
    Return the newest backup of a database that passes an integrity check, or None.

    Reads whole backups from the disk, newest first, until one passes.
    """
    newest_first = reversed(_list_backups(path, rf"\.backup-{_TIMESTAMP}(-before-\w+)?(-\d+)?"))
    return next((backup for backup in newest_first if integrity_error(backup) is None), None)


def integrity_error(backup: Path) -> str | None:
    """
    Return why a backup is not a complete catalog, or None if it is one. Reads the whole file.

    The file must not be written to meanwhile, and this process must not have it open.
    """
    try:
        with closing(sqlite3.connect(f"{sqlite_uri(backup, 'ro')}&immutable=1", uri=True)) as raw:
            answer: str = raw.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                return answer
            raw.execute("SELECT count(*) FROM models").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None
