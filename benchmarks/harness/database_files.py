"""The databases that contenders open: migrated to head once, filled, and copied."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import URL, create_engine, inspect

from benchmarks.contenders import ContenderSpec, Installation
from benchmarks.harness.models_table import UPSERT, initial_rows
from benchmarks.harness.postgres_server import PostgresServer
from benchmarks.versions.installations import migrate
from model_catalog.repository.statements.totals.model_totals import count_new_models

_NON_WORD: Final = re.compile(r"\W+")


class DatabaseFiles:
    """SQLite files and PostgreSQL databases with a given number of models, created on first use."""

    def __init__(self, folder: Path, server: PostgresServer | None = None) -> None:
        self._folder = folder
        self._server = server

    async def shared(self, rows: int, installation: Installation | None = None) -> Path:
        """
        The SQLite file with this many models. Callers only read it.

        It has the newest revision that the installation knows.
        """
        label = "" if installation is None else f"-{installation.label}"
        path = self._folder / f"{rows}-rows{label}.db"
        if not path.exists():
            draft = path.with_suffix(".draft")
            await asyncio.to_thread(migrate, str(draft), installation)
            with closing(sqlite3.connect(draft)) as raw:
                raw.execute("PRAGMA synchronous = OFF")
                with raw:
                    # Rows in key order append to the key's index, which is faster.
                    raw.executemany(UPSERT, sorted(initial_rows(rows)))
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            _count(draft)
            draft.rename(path)
        return path

    async def target(self, contender: ContenderSpec, rows: int, *, private: bool) -> str:
        """
        The path or URL that a contender opens.

        With `private` it is a copy that no other contender opens. `discard` deletes the copy.
        """
        if contender.database == "postgresql":
            if self._server is None:
                raise RuntimeError("no PostgreSQL server was found")
            return await self._server.target(rows, contender.installation, private=private)
        shared = await self.shared(rows, contender.installation)
        if not private:
            return str(shared)
        path = self._folder / f"{_NON_WORD.sub('-', contender.label)}-{rows}-rows.db"
        shutil.copyfile(shared, path)
        return str(path)

    def discard(self, target: str) -> None:
        """Delete a private copy."""
        if "://" in target:
            if self._server is not None:
                self._server.discard(target)
            return
        for suffix in ("", "-wal", "-shm"):
            Path(target + suffix).unlink(missing_ok=True)


def _count(path: Path) -> None:
    """Count all models, as the catalog does in its writes. Those of plain SQL are not counted."""
    engine = create_engine(URL.create("sqlite", database=str(path)))
    with engine.begin() as connection:
        # An older version has no counters.
        if inspect(connection).has_table("model_totals"):
            count_new_models(connection, at_most=sys.maxsize)
    engine.dispose()
