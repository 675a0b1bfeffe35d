"""
A process that asks for models, for the tests of several processes.

    python download_program.py TARGET FOLDER LEASE_S TASKS MODE NAME...

In the mode `fast` each download appends a line to FOLDER/log and writes a small file. In the mode
`hang` it prints `started`, writes half of the file and waits until its standard input ends. In the
mode `use` it holds the model in use and prints `using`. At the end it prints the paths.
"""

import asyncio
import os
import sys
from pathlib import Path

from download_helpers import safetensors_bytes

from model_catalog import open_catalog
from model_catalog.downloads import get_or_download, use_model


async def main(target, folder, lease_s, tasks, mode, names):
    root = Path(folder)

    async def download(claim):
        with (root / "log").open("a") as log:
            log.write(f"{claim.ref.reference} {os.getpid()}\n")
        path = Path(await claim.create_folder(root)) / "m.safetensors"
        data = safetensors_bytes(os.getpid() % 256, 100_000)
        with path.open("wb") as file:
            file.write(data[:50_000])
            if mode == "hang":
                print("started", flush=True)
                await asyncio.to_thread(sys.stdin.read)
            else:
                await asyncio.sleep(0.05)
            file.write(data[50_000:])
        return path

    async with open_catalog(target) as catalog:
        if mode == "use":
            async with use_model(catalog, names[0], lease_s=lease_s):
                print("using", flush=True)
                await asyncio.to_thread(sys.stdin.read)
            return
        asked = [
            get_or_download(catalog, name, download, lease_s=lease_s, root=root)
            for _ in range(tasks)
            for name in names
        ]
        models = await asyncio.gather(*asked)
        for path in sorted({model.local_path for model in models}):
            print(path, flush=True)


if __name__ == "__main__":
    target, folder, lease_s, tasks, mode, *names = sys.argv[1:]
    asyncio.run(main(target, folder, float(lease_s), int(tasks), mode, names))
