"""Compare the free space of a disk with the size of a download."""

from __future__ import annotations

import os
import shutil

from model_catalog.downloads.eviction.plan import EvictionPlan
from model_catalog.downloads.eviction.planning import plan_eviction
from model_catalog.downloads.states import Scope
from model_catalog.errors import NotEnoughSpaceError
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.worker_threads import run_in_thread


async def require_space(
    catalog: ModelCatalog, path: str, needed_bytes: int, scope: Scope = "host"
) -> None:
    """
    Raise NotEnoughSpaceError if the disk of a path has less free space than a download needs.

    The error has the eviction plan that would make room, if there is one. The path need not exist.
    Raises OSError if the disk cannot be asked.
    """
    free_bytes = await run_in_thread(lambda _: free_space(path))
    if free_bytes >= needed_bytes:
        return
    plan = await _plan_to_free(catalog, path, needed_bytes - free_bytes, scope)
    raise NotEnoughSpaceError(path, needed_bytes, free_bytes, plan)


async def _plan_to_free(
    catalog: ModelCatalog, path: str, free_bytes: int, scope: Scope
) -> EvictionPlan | None:
    """Return the plan that frees so many bytes on the disk of a path; None if there is none."""
    folder = await run_in_thread(lambda _: _existing_folder(path))
    plan = await plan_eviction(catalog, free_bytes=free_bytes, disk_of=folder, scope=scope)
    return None if plan.shortfall_bytes else plan


def free_space(path: str) -> int:
    """Return the free bytes, for this user, of the disk that a path is or would be on."""
    return shutil.disk_usage(_existing_folder(path)).free


def _existing_folder(path: str) -> str:
    existing = os.path.abspath(path)
    while not os.path.exists(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    return existing
