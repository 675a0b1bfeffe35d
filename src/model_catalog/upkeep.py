"""The catalog and the disk: what lies at a path is looked at, and then recorded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model_catalog import rules
from model_catalog.catalog import ModelCatalog
from model_catalog.files.description import Described, describe
from model_catalog.files.opening import identity
from model_catalog.model import Model


@dataclass(frozen=True, slots=True)
class Recorded:
    """A model as it is recorded, and what was found at its path."""

    model: Model
    described: Described

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not whole: a shard is missing, a file is shorter than it says. Often none."""
        return self.described.reasons


async def register_path(
    catalog: ModelCatalog,
    path: str | os.PathLike[str],
    *,
    provider: str,
    reference: str,
    version: str = "",
) -> Recorded:
    """
    Look at a file or a folder, and record it as a model with its size and what its headers claim.

    A folder, or a file that is one shard of a set, is one model; one that is not whole is recorded
    all the same, and the reasons are told. What the headers claimed before is replaced, and what
    the user said is not. The disk is read in a thread, before the one short transaction; the
    catalog's own database is never opened, wherever it lies.

    Raises what `register_model` raises, NotAFileError for a FIFO or a device, ProtectedFileError
    for the database, BadLayoutError for a folder of too many files, and OSError for a path that
    is not there or cannot be read.
    """
    full = Path(path).absolute()  # noqa: ASYNC240 - it asks for the working directory alone
    cancelled = threading.Event()

    def look() -> Described:
        return describe(full, cancelled.is_set, forbidden=_identities(catalog.database_files))

    try:
        described = await asyncio.to_thread(look)
    finally:
        # A thread cannot be cancelled: it is asked to stop.
        cancelled.set()
    claims = {f"claimed_{name}": getattr(described.header, name, None) for name in rules.CLAIMABLE}
    model = Model(
        reference=reference,
        provider=provider,
        version=version,
        local_path=os.fspath(full),
        size_bytes=described.size_bytes,
        **claims,
    )
    return Recorded(await catalog.register_model(model), described)


def _identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    found = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.add(identity(path.stat()))
    return found
