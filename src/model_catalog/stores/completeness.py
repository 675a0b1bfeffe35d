"""Whether a model is whole, and of which format, by the names of its files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import islice
from typing import Final

from model_catalog.files.file_names import ShardSet, parse_shard_name
from model_catalog.stores.scan_result import StoreFile, mtime_to_datetime
from model_catalog.stores.store_walk import shorten_list

_MAX_LISTED_NAMES: Final = 3
_FORMATS: Final = (
    ("safetensors", (".safetensors",)),
    ("gguf", (".gguf",)),
    ("pickle", (".bin", ".ckpt", ".pt", ".pth")),
)


def detect_format(files: Sequence[StoreFile]) -> str | None:
    """The first of safetensors, GGUF and pickle that the weights' names end like."""
    names = [file.path.lower() for file in files if file.role == "weights"]
    for format_, suffixes in _FORMATS:
        if any(name.endswith(suffixes) for name in names):
            return format_
    return None


def incomplete_reasons(files: Sequence[StoreFile], gone: Collection[str] = ()) -> list[str]:
    """
    Why a model of these files is not whole: weights or shards that are not there.

    `gone` are the paths of those that are named and of which no bytes are there.
    """
    found = []
    names, count = _missing_shards({file.path for file in files}, gone)
    if count:
        found.append(f"missing: {shorten_list(names, count)}")
    if not any(file.role in {"weights", "projector"} for file in files):
        found.append("there are no weights")
    return found


def newest_mtime(files: Collection[StoreFile]) -> datetime | None:
    """When the last of some files was written to, in UTC; None where there are none."""
    return mtime_to_datetime(max((file.fingerprint.mtime_ns for file in files), default=-1))


def _missing_shards(there: Collection[str], gone: Collection[str]) -> tuple[list[str], int]:
    sets: Counter[tuple[str, ShardSet]] = Counter()
    for path in there:
        folder, slash, name = path.rpartition("/")
        if (shard := parse_shard_name(name)) is not None:
            sets[folder + slash, shard[1]] += 1
    names, count = set(gone), len(gone)
    for (folder, shards), found in sets.items():
        # A name may say that it is one of a million: they are counted and not gone through.
        absent = (folder + name for name in shards.file_names() if folder + name not in there)
        names.update(islice(absent, _MAX_LISTED_NAMES))
        others = sum(1 for path in gone if _is_in_shard_set(path, folder, shards))
        count += shards.count - found - others
    return sorted(names), count


def _is_in_shard_set(path: str, folder: str, shards: ShardSet) -> bool:
    head, slash, name = path.rpartition("/")
    shard = parse_shard_name(name)
    return head + slash == folder and shard is not None and shard[1] == shards
