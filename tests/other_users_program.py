"""As root: let two users use one catalog in a folder that both may write to."""

import asyncio
import json
import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from model_catalog import CatalogError, Model, ModelCatalog, open_catalog

OWNER, READER = 1001, 1002


async def read(catalog: ModelCatalog) -> object:
    return await catalog.count_models()


async def write(catalog: ModelCatalog) -> object:
    await catalog.register_model(Model(reference="m", provider="hf", local_path="/m"))
    return "written"


async def call(path: Path, function) -> object:
    try:
        async with open_catalog(path, timeout_s=5) as catalog:
            return await function(catalog)
    except CatalogError as error:
        return [type(error).__name__, str(error)]


def run_as(user: int, function):
    """Return what a function returns in a child process of a user."""
    end, start = os.pipe()
    if child := os.fork():
        os.close(start)
        with os.fdopen(end) as pipe:
            found = pipe.read()
        os.waitpid(child, 0)
        return json.loads(found)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.write(start, json.dumps(function()).encode())
    os._exit(0)


def leave_sidecars(path: Path) -> None:
    """Read as another program does, which leaves the files that it may not remove."""
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("SELECT count(*) FROM models").fetchone()


def main(folder: Path) -> dict[str, object]:
    path = folder / "catalog.db"
    run_as(OWNER, lambda: asyncio.run(call(path, write)))
    path.chmod(0o644)
    found = {
        "reader": run_as(READER, lambda: asyncio.run(call(path, read))),
        "files": sorted(each.name for each in folder.iterdir()),
        "owner": run_as(OWNER, lambda: asyncio.run(call(path, write))),
    }

    async def read_beside_owner() -> object:
        async with open_catalog(path) as catalog:
            await write(catalog)
            return await asyncio.to_thread(run_as, READER, lambda: asyncio.run(call(path, read)))

    run_as(READER, lambda: leave_sidecars(path))
    found["blocked owner"] = run_as(OWNER, lambda: asyncio.run(call(path, write)))
    found["root"] = asyncio.run(call(path, write))
    found["freed owner"] = run_as(OWNER, lambda: asyncio.run(call(path, write)))
    os.chown(path, 0, 0)
    found["reader beside root"] = asyncio.run(read_beside_owner())
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        # Import everything that is imported on first use: only root may be able to read the files.
        asyncio.run(call(top / "first.db", write))
        (top / "first.db").unlink()
        top.chmod(0o777)
        json.dump(main(top), sys.stdout)
