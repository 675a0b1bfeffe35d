"""The databases that are measured: made once by the migrations, filled, and copied."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.contenders import Entrant
from benchmarks.server import Server
from benchmarks.table import UPSERT, stored
from model_catalog import upgrade

_WORDS: Final = re.compile(r"\W+")


class Stock:
    """Files with a catalog of so many rows, below one folder; each is made when first wanted."""

    def __init__(self, folder: Path, server: Server | None = None) -> None:
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
                    raw.executemany(UPSERT, sorted(stored(rows)))
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            draft.rename(path)
        return path

    async def target(self, entrant: Entrant, rows: int, *, own: bool) -> str:
        """What a contender opens: a file that all share, or a copy that is its own."""
        if entrant.database == "postgresql":
            if self._server is None:
                raise RuntimeError("there is no PostgreSQL server")
            return await self._server.target(rows)
        shared = await self.shared(rows)
        if not own:
            return str(shared)
        path = self._folder / f"{_WORDS.sub('-', entrant.name)}-{rows}-rows.db"
        shutil.copyfile(shared, path)
        return str(path)

    def discard(self, target: str) -> None:
        """Remove a copy."""
        if "://" not in target:
            for suffix in ("", "-wal", "-shm"):
                Path(target + suffix).unlink(missing_ok=True)
