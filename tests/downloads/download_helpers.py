"""Downloads of small files, which count how often they run."""

import asyncio
import json
import struct

NAME = "hf:org/tiny"


def safetensors_bytes(fill=0, size_bytes=1024):
    header = {"w": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes([fill]) * size_bytes


class Downloader:
    """
    A download that writes a small model, and counts its calls.

    With `release` it waits for that event when it has begun, which sets `started`.
    """

    def __init__(self, folder, *, release=None, fill=0):
        self.folder = folder
        self.started = asyncio.Event()
        self.release = release
        self.fill = fill
        self.claims = []

    @property
    def count(self):
        return len(self.claims)

    async def __call__(self, claim):
        self.claims.append(claim)
        self.started.set()
        if self.release is not None:
            await self.release.wait()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{claim.ref.reference.replace('/', '--')}.safetensors"
        path.write_bytes(safetensors_bytes(self.fill))
        return path


async def until(condition, timeout_s=20):
    """Wait until a condition holds, which may be an async function."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)
