"""Call a catalog as an unprivileged user, because file permissions do not restrict root."""

import asyncio
import json
import os
import sys
import tempfile

from model_catalog import CatalogError, Model, open_catalog, schema_state, upgrade


async def read(path):
    async with open_catalog(path) as catalog:
        return [model.reference for model in await catalog.list_models()]


async def write(path):
    async with open_catalog(path) as catalog:
        await catalog.register_model(Model(reference="n", provider="hf", local_path="/n"))


CALLS = {"read": read, "write": write, "upgrade": upgrade, "state": schema_state}


def outcome(call, path):
    try:
        return {"result": asyncio.run(CALLS[call](path))}
    except CatalogError as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        # Import everything that is imported on first use: only root may be able to read the files.
        # A new catalog does not need Alembic, but an older one does.
        asyncio.run(upgrade(f"{folder}/catalog.db", "0001"))
        outcome("write", f"{folder}/catalog.db")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    print(json.dumps([outcome(call, path) for call, path in json.loads(sys.argv[1])]))
