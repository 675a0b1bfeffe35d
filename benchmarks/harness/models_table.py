"""
The table `models` as contenders see it: columns, SQL statements, PRAGMAs, and generated rows.

Processes that are timed from their start import this module, so it imports almost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

COLUMNS: Final[dict[str, type]] = {
    "id": int,
    "reference": str,
    "provider": str,
    "local_path": str,
    "size_bytes": int,
    "downloaded_at": int,
    "version": str,
    "format": str,
    "architecture": str,
    "quantization": str,
    "license": str,
    "context_length": int,
    "parameter_count": int,
    "source_url": str,
    "claimed_format": str,
    "claimed_architecture": str,
    "claimed_quantization": str,
    "claimed_license": str,
    "claimed_context_length": int,
    "claimed_parameter_count": int,
    "description": str,
    "download_count": int,
    "use_count": int,
    "last_used_at": int,
    "pinned_at": int,
    "pin_reason": str,
    "reference_folded": str,
    "description_folded": str,
    "state": str,
    "state_detail": str,
    "checked_at": int,
    "missing_since": int,
    "mount_point": str,
    "digest": str,
    "found_digest": str,
    "verified_at": int,
    "inventoried_at": int,
    "incomplete_reason": str,
    "headers_read_at": int,
    "signed_by": str,
    "signature_verdict": str,
    "signature_detail": str,
    "signature_checked_at": int,
    "store": str,
    "store_root": str,
    "kind": str,
    "claimed_kind": str,
    "unknown_reason": str,
    "listing_reason": str,
    "content_reason": str,
    "managed_root": str,
    "host": str,
}
"""The columns of `models` at head and their types. Every contender maps all of them."""

DEFAULTS: Final = {
    "host": "",
    "version": "",
    "download_count": 1,
    "use_count": 0,
    "state": "unchecked",
}
"""The values of the NOT NULL columns that a registration does not set."""

KEY: Final = ("provider", "reference", "version")
UNIQUE: Final = ("host", *KEY)
"""The columns of the unique key, in the order of its index."""


class Registration(NamedTuple):
    """The values that a registration writes, in the order of UPSERT's parameters."""

    provider: str
    reference: str
    version: str
    local_path: str
    size_bytes: int
    downloaded_at: int
    format: str
    architecture: str
    quantization: str
    license: str
    context_length: int
    parameter_count: int
    reference_folded: str


UPDATED: Final = tuple(name for name in Registration._fields if name not in KEY)
"""What a registration updates in an existing row. It also adds 1 to `download_count`."""

SELECTED: Final = tuple(name for name in COLUMNS if not name.endswith("_folded"))
"""The columns that a find or a list reads."""

_SELECTED = ", ".join(SELECTED)
FIND: Final = (
    f"SELECT {_SELECTED} FROM models WHERE host = '' AND provider = ? AND reference = ?"
    " AND version = ''"
)
LIST: Final = (
    f"SELECT {_SELECTED} FROM models"
    " WHERE host = '' ORDER BY downloaded_at DESC NULLS LAST, provider, reference, version"
)
NEWEST: Final = f"{LIST} LIMIT ?"
PAGE: Final = (
    f"SELECT {_SELECTED} FROM models WHERE host = '' AND architecture = ?"
    " ORDER BY size_bytes DESC NULLS LAST, provider, reference, version LIMIT ?"
)
TOTAL: Final = "SELECT coalesce(sum(size_bytes), 0) FROM models"
COUNT_BEHIND: Final = "SELECT count(*) FROM models WHERE architecture = ?"
TOTAL_BEHIND: Final = "SELECT coalesce(sum(size_bytes), 0) FROM models WHERE architecture = ?"
STATS: Final = (
    "SELECT provider, format, architecture, quantization, count(*), sum(size_bytes)"
    " FROM models GROUP BY 1, 2, 3, 4"
)
REMOVE: Final = "DELETE FROM models WHERE host = '' AND provider = ? AND reference = ?"
UPSERT: Final = (
    f"INSERT INTO models ({', '.join(Registration._fields)})"
    f" VALUES ({', '.join('?' for _ in Registration._fields)})"
    " ON CONFLICT (host, provider, reference, version) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in UPDATED)
    + ", download_count = models.download_count + 1"
)
USE: Final = (
    "UPDATE models SET use_count = use_count + 1, last_used_at = ?"
    " WHERE host = '' AND provider = ? AND reference = ? AND version = ''"
)

DURABILITIES: Final = ("full", "normal")
BUSY_TIMEOUT_S: Final = 60
"""SQLite's busy timeout. With a short one, contenders with many writers would fail."""


def pragmas(durability: str) -> dict[str, str]:
    """The PRAGMAs of every contender, equal to the catalog's, so that all are equally durable."""
    return {
        "journal_mode": "WAL",
        "foreign_keys": "ON",
        "cell_size_check": "ON",
        "synchronous": durability.upper(),
    }


def registration(number: int, path_version: int = 0) -> Registration:
    """The model with this number, always the same; the next one is far away in key order."""
    spread = number * 2654435761 % 2**32
    reference = f"org-{spread % 977:03d}/model-{number:08d}-{spread:010d}-Instruct-GGUF"
    provider = "hf" if number % 10 else "local"
    return Registration(
        provider=provider,
        reference=reference,
        version="",
        local_path=f"/var/lib/models/{provider}/{reference}/v{path_version}.gguf",
        size_bytes=10**8 + spread * 7,
        downloaded_at=1_700_000_000 + number,
        format="gguf",
        architecture=("llama", "qwen2", "gemma3", "phi3", "mistral")[spread % 5],
        quantization=("Q4_K_M", "Q5_K_M", "Q8_0")[spread % 3],
        license="apache-2.0",
        context_length=4096 << spread % 6,
        parameter_count=10**9 * (1 + spread % 70),
        reference_folded=reference.casefold(),
    )


def registrations(count: int, first: int = 0) -> Iterator[Registration]:
    """New models, downloaded now."""
    now = int(time.time())
    return (
        registration(number)._replace(downloaded_at=now) for number in range(first, first + count)
    )


def initial_rows(count: int) -> Iterable[Registration]:
    """The models that a database has at the start."""
    return (registration(number) for number in range(count))
