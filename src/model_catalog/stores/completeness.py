"""The format and completeness of a model, judged by the names of its files only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import islice
from typing import Final

from model_catalog.files.file_names import WEIGHT_ROLES, ShardSet, parse_shard_name
from model_catalog.stores.scan_result import StoreFile, mtime_to_datetime
from model_catalog.stores.store_walk import shorten_list

_MAX_LISTED_NAMES: Final = 3
_FORMATS: Final = (
    ("safetensors", (".safetensors",)),
    ("gguf", (".gguf",)),
    ("pickle", (".bin", ".ckpt", ".pt", ".pth")),
)


def detect_format(files: Sequence[StoreFile]) -> str | None:
    """Return the first of safetensors, GGUF and pickle that a weights file has the suffix of."""
    weights = [file for file in files if file.role == "weights"]
    # A folder or a file may hold nothing but an adapter, a projector or a draft.
    weights = weights or [file for file in files if file.role in WEIGHT_ROLES]
    names = [file.path.lower() for file in weights]
    for format_, suffixes in _FORMATS:
        if any(name.endswith(suffixes) for name in names):
            return format_
    return None


def incomplete_reasons(files: Sequence[StoreFile], gone: Collection[str] = ()) -> list[str]:
    """
    Return why a model with these files is incomplete: missing shards or missing weights.

    `gone` are the paths of files that the store names but whose bytes do not exist.
    """
    reasons = []
    names, count = _missing_shards({file.path for file in files}, gone)
    if count:
        reasons.append(f"missing: {shorten_list(names, count)}")
    if not any(file.role in WEIGHT_ROLES for file in files):
        reasons.append("no weights were found")
    return reasons


def newest_mtime(files: Collection[StoreFile]) -> datetime | None:
    """Return the latest modification time of the files in UTC, or None without files."""
    return mtime_to_datetime(max((file.fingerprint.mtime_ns for file in files), default=-1))


def _missing_shards(existing: Collection[str], gone: Collection[str]) -> tuple[list[str], int]:
    """Return some paths of missing files, sorted, and the number of all missing files."""
    sets: Counter[tuple[str, ShardSet]] = Counter()
    for path in existing:
        folder, slash, name = path.rpartition("/")
        if (shard := parse_shard_name(name)) is not None:
            sets[folder + slash, shard[1]] += 1
    names, count = set(gone), len(gone)
    for (folder, shards), existing_count in sets.items():
        # A name can claim a set of a million shards. The missing ones are counted without a loop
        # over all names.
        absent = (folder + name for name in shards.file_names() if folder + name not in existing)
        names.update(islice(absent, _MAX_LISTED_NAMES))
        gone_count = sum(1 for path in gone if _is_in_shard_set(path, folder, shards))
        count += shards.count - existing_count - gone_count
    return sorted(names), count


def _is_in_shard_set(path: str, folder: str, shards: ShardSet) -> bool:
    head, slash, name = path.rpartition("/")
    shard = parse_shard_name(name)
    return head + slash == folder and shard is not None and shard[1] == shards
