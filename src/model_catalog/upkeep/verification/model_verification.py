"""Verify models by reading their files, and record the results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Unpack

from model_catalog.domain import validation
from model_catalog.errors import InvalidModelError
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.statements.filters import Filters
from model_catalog.upkeep.queries.verification_queries import (
    VerificationCandidate,
    verification_candidates,
)
from model_catalog.upkeep.verification.model_verifier import ModelVerifier
from model_catalog.upkeep.verification.read_budget import ReadBudget
from model_catalog.upkeep.verification.results import LEVELS, Level, VerifiedModel
from model_catalog.upkeep.worker_threads import (
    OnProgress,
    ProgressMeter,
    device_of,
    run_in_thread,
)


async def verify_models(
    catalog: ModelCatalog,
    level: Level = "full",
    *,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
    not_since: timedelta | None = None,
    on_progress: OnProgress | None = None,
    **filters: Unpack[Filters],
) -> AsyncGenerator[VerifiedModel, None]:
    """
    Verify models, those read longest ago first, and yield each result when it is ready.

    `quick` compares the status of the files. `structure` also reads their headers, and finds a file
    that is shorter than its tensors need. `full` reads every byte. A file without a digest gets the
    digest that was read. A different digest is recorded beside the expected one and never replaces
    it; `accept_model` does that. A missing or offline model is yielded, but its state is not
    recorded; `check_models` does that. Different disks are read at the same time, and the files of
    one disk one after the other.

    The iteration ends before the first file that would exceed `max_bytes` or `max_seconds`. One
    file is always read. Each file is recorded when it has been read, so the next call continues
    with the next file. `not_since` skips the models that were verified within this time. Close the
    iterator to stop the verification.

    `on_progress` is called in the event loop, ten times a second, with the bytes read and the bytes
    to read.

    Raises InvalidModelError for an unknown level, and what the filters raise.
    """
    if level not in LEVELS:
        raise InvalidModelError("level", level, f"is not one of {', '.join(LEVELS)}")
    before = None if not_since is None else datetime.now(UTC) - not_since
    candidates = await verification_candidates(catalog, before, **filters)
    budget = ReadBudget(
        validation.non_negative_int("max_bytes", max_bytes),
        None if max_seconds is None else validation.seconds("max_seconds", max_seconds),
    )
    meter = ProgressMeter(on_progress, _total_bytes(candidates) if level == "full" else 0)
    verifier = ModelVerifier(catalog, level, budget, meter)
    by_device: dict[int, list[VerificationCandidate]] = {}
    devices = await run_in_thread(lambda _: _devices(candidates))
    for device, candidate in zip(devices, candidates, strict=True):
        by_device.setdefault(device, []).append(candidate)
    async with aclosing(_verify_in_parallel(verifier, list(by_device.values()))) as results:
        async for result in results:
            yield result


def _total_bytes(candidates: list[VerificationCandidate]) -> int:
    return sum(candidate.size_bytes or 0 for candidate in candidates)


def _devices(candidates: list[VerificationCandidate]) -> list[int]:
    return [device_of(candidate.local_path) for candidate in candidates]


async def _verify_in_parallel(
    verifier: ModelVerifier, queues: list[list[VerificationCandidate]]
) -> AsyncGenerator[VerifiedModel, None]:
    """Verify several queues at the same time, one for each disk, and yield results as they come."""
    # A None in the results says that one of the queues has ended.
    results: asyncio.Queue[VerifiedModel | None] = asyncio.Queue()

    async def work(queue: list[VerificationCandidate]) -> None:
        try:
            for candidate in queue:
                result = await verifier.verify(candidate)
                if result is not None:
                    await results.put(result)
                if verifier.is_exhausted:
                    break
        finally:
            await results.put(None)

    tasks = [asyncio.create_task(work(queue)) for queue in queues]
    try:
        running = len(tasks)
        while running:
            result = await results.get()
            if result is None:
                running -= 1
            else:
                yield result
        for task in tasks:
            # Raises the error of a task, for example when the database is gone.
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
