"""Sort, count, relocate and migrate while the folder of SQLite's temporary files has no room."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogError,
    ModelCatalog,
    Sort,
    StorageFullError,
    downgrade,
    open_catalog,
)

# SQLite sorts up to 2 MB in memory, also without our setting.
ROWS = 1000
FOLDER = "/m/" + "x" * 4000


async def outcome(call) -> str:
    try:
        await call()
    except StorageFullError as error:
        return f"no room in {error.temporary_folder}: {'SQLITE_TMPDIR' in str(error)}"
    except CatalogError as error:
        return repr(error)
    return "done"


async def calls(catalog: ModelCatalog) -> dict[str, str]:
    async def relocate():
        await catalog.relocate("/m", "/n")

    return {
        "sort": await outcome(lambda: catalog.list_rows(sort=Sort.SIZE_BYTES)),
        "stats": await outcome(catalog.stats),
        "relocate": await outcome(relocate),
        "find": await outcome(lambda: catalog.get_model("m1", "hf")),
    }


async def open_and_close(path: Path) -> None:
    async with open_catalog(path):
        pass


async def run(folder: Path, temporary: Path, option: str) -> dict[str, object]:
    path, old = folder / "catalog.db", folder / "old.db"
    for each in (path, old):
        async with open_catalog(each) as catalog:
            await catalog.register_models(
                {
                    "reference": f"m{number}",
                    "provider": "hf",
                    "local_path": f"{FOLDER}/{number}",
                    "size_bytes": number * 7919 % ROWS,
                }
                for number in range(ROWS)
            )
    # As the Rust daemon wrote it.
    await downgrade(old, "0001")
    mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(temporary)]
    subprocess.run(mount, check=True)
    dd = ["dd", "if=/dev/zero", f"of={temporary}/ballast", "bs=4k"]
    subprocess.run(dd, check=False, capture_output=True)

    async with open_catalog(path) as catalog:
        own = await calls(catalog)
    adoption = await outcome(lambda: open_and_close(old))
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    hosts = await calls(ModelCatalog(async_sessionmaker(engine)))
    await engine.dispose()
    return {"own": own, "adoption": adoption, "host's": hosts}


if __name__ == "__main__":
    found = asyncio.run(run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
    print(json.dumps(found))
