"""Adopt a store twice as an unprivileged user, because root ignores the modes of files."""

import asyncio
import json
import os
import sys
from pathlib import Path

from model_catalog import open_catalog
from model_catalog.upkeep import adopt, scan_store


async def run(root, folder):
    counts = []
    async with open_catalog(folder / "catalog.db") as catalog:
        for _ in range(2):
            done = await adopt(catalog, await scan_store(catalog, "ollama", root))
            counts.append([len(done.new), len(done.problems), len(done.unchanged)])
    return counts


async def warm_up(folder):
    """Run all lazy imports now: the modules may be in folders that only root can read."""
    await run(Path(__file__).parent, folder)


if __name__ == "__main__":
    store, mine = map(Path, sys.argv[1:])
    (mine / "warm").mkdir()
    asyncio.run(warm_up(mine / "warm"))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    print(json.dumps(asyncio.run(run(store, mine))))
