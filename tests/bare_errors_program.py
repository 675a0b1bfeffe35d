"""Call the catalog without threads, or from a working directory that is gone; print the errors."""

import asyncio
import json
import os
import resource
import sys
import tempfile

from model_catalog import (
    Model,
    backup,
    check_schema,
    open_catalog,
    repair,
    restore,
    schema_state,
    upgrade,
)
from model_catalog.upkeep import register_path


async def open_and_count(target) -> None:
    async with open_catalog(target) as catalog:
        await catalog.count_models()


async def outcome(call) -> str:
    try:
        await call
    except Exception as error:  # noqa: BLE001 - a bare error is what the test looks for
        return type(error).__name__
    return "done"


async def without_threads(folder: str) -> dict[str, str]:
    path = f"{folder}/catalog.db"
    await open_and_count(path)
    os.chmod(folder, 0o777)  # noqa: PTH101
    # Of a user that has no other process: the limit does not hold for root.
    os.setgid(65534)
    os.setuid(23456)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    return {
        "open": await outcome(open_and_count(path)),
        "upgrade": await outcome(upgrade(path)),
        "state": await outcome(schema_state(path)),
        "check": await outcome(check_schema(path)),
        "backup": await outcome(backup(path, f"{folder}/copy.db")),
        "restore": await outcome(restore(path, f"{folder}/new.db")),
        "repair": await outcome(repair(path)),
    }


async def without_directory(folder: str) -> dict[str, str]:
    async with open_catalog(f"{folder}/catalog.db") as catalog:
        await catalog.register_model(Model(reference="m", provider="hf", local_path="/none"))
        gone = tempfile.mkdtemp()
        os.chdir(gone)
        os.rmdir(gone)  # noqa: PTH106
        found = {
            "backup": await outcome(backup(catalog, "copy.db")),
            "register": await outcome(register_path(catalog, "m", provider="hf", reference="n")),
            "find": await outcome(catalog.get_model("m", "hf")),
        }
    for call in (open_and_count, upgrade, schema_state, check_schema, repair):
        found[call.__name__] = await outcome(call("catalog.db"))
    found["default"] = await outcome(open_and_count(None))
    found["restore"] = await outcome(restore(f"{folder}/catalog.db", "new.db"))
    os.chdir("/")
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(globals()[sys.argv[1]](sys.argv[2]))))
