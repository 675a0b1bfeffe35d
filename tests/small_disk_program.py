"""Run one operation on a catalog whose disk is full, then free space, and report both outcomes."""

import asyncio
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogError,
    Model,
    ModelCatalog,
    backup,
    check_schema,
    open_catalog,
    prepare_engine,
    upgrade,
)

BIG = "/" + "x" * 4000

# With its backups and its write-ahead log, a migration takes about seven times the database's size.
ROWS = 30


def big(reference: str) -> Model:
    return Model(reference=reference, provider="hf", local_path=BIG)


class SmallDisk:
    """A file system of 1.25 MiB; a ballast file uses up its space."""

    def __init__(self, folder: Path) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1280k", "tmpfs", str(folder)], check=True
        )
        self._ballast = folder / "ballast"

    def fill(self, room: int) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            with suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            os.ftruncate(file.fileno(), max(0, self._ballast.stat().st_size - room))

    def free(self) -> None:
        self._ballast.unlink()


class SmallFiles:
    """A limit on the size of files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self, room: int) -> None:
        longest = max(each.stat().st_size for each in self._folder.iterdir())
        self._limit(longest + room)

    def free(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def failure(step) -> str | None:
    try:
        await step
    except CatalogError as error:
        return type(error).__name__
    return None


async def until_full(catalog: ModelCatalog) -> tuple[str, int]:
    """Return the error of the first call that fails, and how many calls succeeded before it."""
    for number in range(2000):
        if error := await failure(catalog.register_model(big(f"until full {number}"))):
            return error, number
    return "none", number


async def write(path: Path, disk) -> dict:
    async with open_catalog(path) as catalog:
        await catalog.register_models(big(f"before {number}") for number in range(20))
        disk.fill(100_000)
        error, acknowledged = await until_full(catalog)
        read = await catalog.count_models()
        disk.free()
        await catalog.register_model(big("after"))
        return {
            "error": error,
            "read": read == 20 + acknowledged,
            "kept": await catalog.count_models() == 21 + acknowledged,
        }


async def migration(path: Path, disk) -> dict:
    await upgrade(path, "0001")
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.executemany(
            "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, ?)",
            [(f"m{number}", BIG) for number in range(ROWS)],
        )
    # First no space for the backup, then space for the backup alone. The index of the write-ahead
    # log takes 32 KiB; without space for it SQLite cannot even read.
    outcomes = []
    size = path.stat().st_size
    rooms = (40_000, size + 60_000) if isinstance(disk, SmallDisk) else (-100_000, 10_000)
    for room in rooms:
        disk.fill(room)
        outcomes.append(await failure(upgrade(path)))
        with closing(sqlite3.connect(path)) as raw:
            columns = len(raw.execute("PRAGMA table_info(models)").fetchall())
            rows = raw.execute("SELECT count(*) FROM models").fetchone()[0]
        disk.free()
    error = outcomes[0] if outcomes[0] == outcomes[1] else outcomes
    async with open_catalog(path) as catalog:
        await catalog.register_model(big("after"))
        return {
            "error": error,
            "read": (columns, rows) == (5, ROWS),
            "kept": await catalog.count_models() == ROWS + 1,
        }


async def checkpoint(path: Path, disk) -> dict:
    # Pages that are only in the write-ahead log, and do not fit into the database at the close.
    await upgrade(path)
    async with open_catalog(path) as catalog:
        await catalog.register_models(big(f"before {number}") for number in range(40))
        disk.fill(0)
        error, acknowledged = await until_full(catalog)
        read = await catalog.count_models()
    left = path.with_name("catalog.db-wal").stat().st_size
    if isinstance(disk, SmallDisk):
        disk.fill(40_000)
    read = (read, len(await _all(path))) == (40 + acknowledged, 40 + acknowledged)
    disk.free()
    async with open_catalog(path) as catalog:
        await catalog.register_model(big("after"))
        kept = left > 0 and await catalog.count_models() == 41 + acknowledged
    return {"error": error, "read": read, "kept": kept}


async def _all(path: Path) -> list[Model]:
    async with open_catalog(path, create=False) as catalog:
        return await catalog.list_models()


async def copy(path: Path, disk) -> dict:
    async with open_catalog(path) as catalog:
        await catalog.register_models(big(f"before {number}") for number in range(60))
    async with open_catalog(path) as catalog:
        # Space for only the first pages of this file.
        room = 50_000 if isinstance(disk, SmallDisk) else -150_000
        disk.fill(room)
        error = await failure(backup(catalog, path.with_name("copy.db")))
        left = [each.name for each in path.parent.iterdir() if "copy" in each.name]
        read = await catalog.count_models() == 60 and not left
        disk.free()
        await catalog.register_model(big("after"))
        copied = await backup(catalog, path.with_name("copy.db"))
    return {"error": error, "read": read, "kept": len(await _all(copied)) == 61}


async def pages(path: Path, _disk) -> dict:
    """A host limits its database file to 60 pages."""
    limit = 60
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    prepare_engine(engine)

    @event.listens_for(engine.sync_engine, "connect")
    def few_pages(connection, _record) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {limit}")
        cursor.close()

    await upgrade(engine)
    catalog = ModelCatalog(async_sessionmaker(engine))
    error, acknowledged = await until_full(catalog)
    read = await catalog.count_models() == acknowledged
    limit = 10_000
    await engine.dispose()
    await catalog.register_model(big("after"))
    kept = await catalog.count_models() == acknowledged + 1
    await engine.dispose()
    return {"error": error, "read": read, "kept": kept}


async def run(act: str, means: str, folder: Path) -> dict:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    disk = {"disk": SmallDisk, "files": SmallFiles, "pages": lambda _: None}[means](folder)
    path = folder / "catalog.db"
    found = await globals()[act](path, disk)
    found["problems"] = await check_schema(path)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1], sys.argv[2], Path(sys.argv[3])))))
