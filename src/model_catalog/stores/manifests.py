"""Read the JSON files of stores: manifests, indexes and configs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from model_catalog.files.formats import header
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.stores.link_resolution import SkippedError
from model_catalog.stores.store_walk import MAX_FILES, LinkTarget, StoreWalk

_MAX_MEMBERS: Final = 100
_SIZE_TEXT: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([KMBT])", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def read_members(
    walk: StoreWalk,
    target: LinkTarget,
    limit_bytes: int,
    wanted: Collection[str],
    lists: Mapping[str, Callable[[Any], Any]] | None = None,
) -> dict[str, Any]:
    """
    Return the wanted members of the object in a JSON file of a store.

    `lists` are the members that must be lists or null, each with a function that is called for each
    of its elements, at most MAX_FILES. The results are kept and the elements are not, so that a
    long list does not take much memory. Any other member is skipped. Raises the errors of
    `StoreWalk.open_file`, of JsonStream and of these functions.
    """
    lists = lists or {}
    members: dict[str, Any] = {}
    with walk.open_file(target, limit_bytes) as file:
        stream = JsonStream(file, 0, file.size_bytes)
        for name in stream.members(_MAX_MEMBERS):
            if (parse := lists.get(name)) is None:
                value = stream.value()
                if name in wanted:
                    members[name] = value
            elif stream.take_null():
                members[name] = None
            else:
                members[name] = [parse(stream.value()) for _ in stream.elements(MAX_FILES)]
        stream.require_end()
    return members


def parse_descriptor(
    value: object, digest_pattern: re.Pattern[str], *, is_config: bool
) -> tuple[dict[str, Any], str, int]:
    """
    Return a descriptor of an OCI manifest, the digits of its SHA-256, and its size in bytes.

    `digest_pattern` matches the text of a digest, with the digits as its first group. Raises
    SkippedError if the descriptor is invalid.
    """
    name = "its config" if is_config else "a layer"
    if not isinstance(value, dict):
        name = name if is_config else "one of its layers"
        raise SkippedError(f"{name} is not an object")
    digest, size = value.get("digest"), value.get("size")
    match = digest_pattern.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise SkippedError(f"the digest of {name} is not a SHA-256")
    if type(size) is not int or size < 0:
        raise SkippedError(f"the size of {name} is not a number of bytes")
    return value, match[1], size


def parse_parameter_count(value: object) -> int | None:
    """Return the number that a text such as "8.0B" stands for, or None for any other value."""
    match = _SIZE_TEXT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    count = round(float(match[1]) * _UNITS[match[2].upper()])
    return count if 0 < count <= header.MAX_PARAMETERS else None


def parse_quantization(value: object) -> str | None:
    """Return the name of a quantization. None if the program wrote that it is unknown."""
    text = header.printable_text(value)
    if text is None or text.lower() == "unknown":
        return None
    # The name of the file type in llama.cpp is MOSTLY_Q4_K_M.
    return text.removeprefix("MOSTLY_") or None
