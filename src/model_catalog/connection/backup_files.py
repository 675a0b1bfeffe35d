"""Backup files beside a SQLite database: their names, a list of them, and integrity checks."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_from_bytes

MAX_AUTOMATIC_BACKUPS: Final = 3
"""How many of the backups that were made before migrations are kept."""

_TIME_FORMAT: Final = "%Y%m%dT%H%M%SZ"
_TIMESTAMP: Final = r"\d{8}T\d{6}Z"
_NUMBERED: Final = rf"(?P<time>{_TIMESTAMP})(-before-\w+)?(-(?P<number>\d+))?"

log = logging.getLogger("model_catalog.connection")


def sqlite_uri(path: Path, mode: str) -> str:
    """Return the `file:` URI of a path, for `sqlite3.connect(uri=True)`; `mode` is `ro` or `rw`."""
    # Percent-encoded, because a file name may contain `?`, `#`, `%20` and bytes that are not UTF-8.
    return f"file:{quote_from_bytes(os.fsencode(path))}?mode={mode}"


def free_backup_path(path: Path, kind: str, before: str | None = None) -> Path:
    """
    Return an unused path beside a database, for example `catalog.db.backup-20261123T140509Z`.

    `kind` is `backup`, `repaired` or `replaced`. The name of a backup made before a migration ends
    with the new revision: `...Z-before-0010`. A second backup in the same second ends with `-2`.
    The names sort in the order of creation: if the clock was set back, the time of the newest
    existing name is used again, with the next number.
    """
    timestamp = datetime.now(UTC).strftime(_TIME_FORMAT)
    number = 1
    existing = _list_numbered(path, rf"\.{kind}-{_NUMBERED}")
    if existing and existing[-1][0] >= (timestamp, 1):
        (timestamp, newest), _ = existing[-1]
        number = newest + 1
    suffix = f".{kind}-{timestamp}"
    if before is not None:
        suffix += "-before-" + re.sub(r"\W", "_", before)
    free = _append_to_name(path, suffix if number == 1 else f"{suffix}-{number}")
    while os.path.lexists(free):
        number += 1
        free = _append_to_name(path, f"{suffix}-{number}")
    return free


def _append_to_name(path: Path, suffix: str) -> Path:
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + suffix)


def automatic_backups(path: Path) -> list[Path]:
    """List the backups that were made before migrations, in the order of their creation."""
    return [
        backup
        for _, backup in _list_numbered(path, rf"\.backup-{_NUMBERED}")
        if "-before-" in backup.name
    ]


def unfinished_backups(path: Path) -> list[Path]:
    """List the partial files of automatic backups whose process was killed."""
    pattern = rf"\.backup-{_TIMESTAMP}-before-\w+(-\d+)?\.\w+\.part"
    return [entry for entry, _ in _list_matches(path, pattern, prefix=".")]


def _list_numbered(path: Path, pattern: str) -> list[tuple[tuple[str, int], Path]]:
    """List files beside a database with the time and the number in their names, sorted by them."""
    return sorted(
        ((match["time"], int(match["number"] or 1)), entry)
        for entry, match in _list_matches(path, pattern)
    )


def _list_matches(
    path: Path, suffix_pattern: str, prefix: str = ""
) -> list[tuple[Path, re.Match[str]]]:
    real = Path(os.path.realpath(path))
    pattern = re.compile(re.escape(prefix + real.name) + suffix_pattern)
    try:
        matches = ((entry, pattern.fullmatch(entry.name)) for entry in real.parent.iterdir())
        return [(entry, match) for entry, match in matches if match is not None]
    except OSError:
        return []


def newest_valid_backup(path: Path) -> Path | None:
    """
    Return the newest backup of a database that passes an integrity check, or None.

    Reads whole backups from the disk, newest first, until one passes.
    """
    newest_first = reversed(_list_numbered(path, rf"\.backup-{_NUMBERED}"))
    return next((backup for _, backup in newest_first if integrity_error(backup) is None), None)


def page_problems(query: Callable[[str], Iterable[Any]], check: str) -> list[str]:
    """
    Check the pages of a database, and return its problems, at most 100; empty if there are none.

    `check` is `quick_check` or `integrity_check`. `query` returns the first value of each row of a
    statement. If SQLite cannot evaluate an index or a constraint, each table is checked alone, and
    those that cannot be are logged: they need a collation or a function of another program.
    """
    try:
        return [row for row in query(f"PRAGMA {check}") if row != "ok"]
    except Exception as error:
        if not is_unresolved(error):
            raise
    problems = []
    for table in query("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"):
        quoted = table.replace('"', '""')
        try:
            problems += [row for row in query(f'PRAGMA {check}("{quoted}")') if row != "ok"]
        except Exception as error:
            if not is_unresolved(error):
                raise
            log.warning(
                "the table %r could not be checked for damage: %s", table, _driver_error(error)
            )
    return problems


def is_unresolved(error: Exception) -> bool:
    """
    Return whether SQLite refused a statement because it cannot resolve a name in the schema.

    For example a table, or a function or a collation that only another program registers.
    """
    code = getattr(_driver_error(error), "sqlite_errorname", None) or ""
    return code.startswith("SQLITE_ERROR")


def _driver_error(error: Exception) -> Any:
    # SQLAlchemy wraps the errors of a driver.
    return getattr(error, "driver_exception", error)


def integrity_error(backup: Path) -> str | None:
    """
    Return why a backup is not a complete catalog, or None if it is one. Reads the whole file.

    The file must not be written to meanwhile, and this process must not have it open.
    """
    try:
        with closing(sqlite3.connect(f"{sqlite_uri(backup, 'ro')}&immutable=1", uri=True)) as raw:
            problems = page_problems(
                lambda statement: [row[0] for row in raw.execute(statement)], "quick_check"
            )
            if problems:
                return problems[0]
            # Without an index, which may need a collation of another program.
            raw.execute("SELECT count(*) FROM models NOT INDEXED").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None
