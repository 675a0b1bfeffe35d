"""The databases that are measured: made once by the migrations, filled, and copied."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.contenders import ContenderSpec
from benchmarks.harness.models_table import UPSERT, initial_rows
from benchmarks.harness.postgres_server import PostgresServer
from model_catalog import upgrade

_NON_WORD: Final = re.compile(r"\W+")


class DatabaseFiles:
    """Files with a catalog of so many rows, below one folder; each is made when first wanted."""

    def __init__(self, folder: Path, server: PostgresServer | None = None) -> None:
        self._folder = folder
        self._server = server

    async def shared(self, rows: int) -> Path:
        """A file that is only read."""
        path = self._folder / f"{rows}-rows.db"
        if not path.exists():
            draft = path.with_suffix(".draft")
            await upgrade(draft)
            with closing(sqlite3.connect(draft)) as raw:
                raw.execute("PRAGMA synchronous = OFF")
                with raw:
                    # In the order of the key the index is written from one end to the other.
                    raw.executemany(UPSERT, sorted(initial_rows(rows)))
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            draft.rename(path)
        return path

    async def target(self, entrant: ContenderSpec, rows: int, *, own: bool) -> str:
        """What a contender opens: a file that all share, or a copy that is its own."""
        if entrant.database == "postgresql":
            if self._server is None:
                raise RuntimeError("there is no PostgreSQL server")
            return await self._server.target(rows)
        shared = await self.shared(rows)
        if not own:
            return str(shared)
        path = self._folder / f"{_NON_WORD.sub('-', entrant.name)}-{rows}-rows.db"
        shutil.copyfile(shared, path)
        return str(path)

    def discard(self, target: str) -> None:
        """Remove a copy."""
        if "://" not in target:
            for suffix in ("", "-wal", "-shm"):
                Path(target + suffix).unlink(missing_ok=True)
