"""Make and adopt the stores that the adoption tests use."""

import struct

from layouts import C1, C2, HuggingFace

from model_catalog.stores.store_kinds import SCANNERS
from model_catalog.upkeep import adopt

GGUF = b"GGUF" + bytes(100)
OTHER = b"GGUF" + bytes(99) + b"1"
_HEADER = b'{"w":{"dtype":"F16","shape":[4,8],"data_offsets":[0,64]}}'
SAFETENSORS = struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(64)
FILES = {"m.gguf": GGUF, "config.json": b"{}"}


def make_hub(folder):
    """Make a cache with two revisions of one repository and one revision of another."""
    cache = HuggingFace(folder / "hub")
    cache.write_marker_files()
    cache.revision("org/a", C1, FILES, refs=("main", "v1"))
    cache.revision("org/a", C2, {"m.gguf": OTHER}, refs=("next",))
    cache.revision("org/b", C1, {"b.gguf": GGUF})
    return cache


def scan(store, root):
    return SCANNERS[store](root)


async def adopt_scan(catalog, cache, **options):
    return await adopt(catalog, scan("huggingface", cache.root), **options)


def names(findings):
    return [(each.ref.reference, each.ref.version) for each in findings]
