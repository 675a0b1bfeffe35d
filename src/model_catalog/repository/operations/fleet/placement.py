"""Plan on which hosts a copy of a model would fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from model_catalog.domain.fleet.copies import (
    ExcludedHost,
    Exclusion,
    ModelCopy,
    OfferedHost,
    PlacementPlan,
)
from model_catalog.domain.fleet.host import Host, HostState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Operation, read
from model_catalog.repository.operations.fleet.copies import CopyQuery, select_copies
from model_catalog.repository.operations.fleet.hosts import HostQuery, matches, select_hosts
from model_catalog.repository.operations.lookup import LookupKey


@dataclass(frozen=True, slots=True)
class PlacementQuery:
    """What to place: a model, its size if it is not recorded, and where it may go."""

    key: LookupKey
    lost_after_s: float
    size_bytes: int | None
    reserve_bytes: int
    labels: Mapping[str, str]


def plan(query: PlacementQuery) -> Operation[PlacementQuery, PlacementPlan]:
    """Return the operation that plans on which hosts a copy would fit."""
    return read(plan_copy, query)


def plan_copy(connection: Connection, query: PlacementQuery) -> PlacementPlan:
    """
    Return the plan for a copy of a model.

    Raises ModelNotFoundError, and InvalidModelError if the size is not known.
    """
    key = query.key
    copies = select_copies(connection, CopyQuery(key, query.lost_after_s))
    version = _wanted_version(copies, key)
    same_version = [copy for copy in copies if copy.ref.version == version]
    every_version = select_copies(
        connection, CopyQuery(key._replace(version=None), query.lost_after_s)
    )
    size_bytes = _size_bytes(same_version, query)
    has_model = {copy.host for copy in every_version if copy.ref.version == version}
    other_versions = Counter(copy.host for copy in every_version if copy.ref.version != version)
    offers: list[OfferedHost] = []
    excluded: list[ExcludedHost] = []
    for host in select_hosts(connection, HostQuery(query.lost_after_s)):
        free_bytes = (host.free_bytes or 0) - query.reserve_bytes - size_bytes
        reason = _exclusion(host, query.labels, free_bytes, has_model=host.name in has_model)
        if reason is None:
            offers.append(OfferedHost(host, other_versions[host.name], free_bytes))
        else:
            excluded.append(ExcludedHost(host, reason))
    offers.sort(key=lambda each: (each.copy_count, -each.free_after_bytes, each.host.name))
    return PlacementPlan(
        ModelRef(key.provider, key.reference, version),
        size_bytes,
        tuple(same_version),
        tuple(offers),
        tuple(excluded),
    )


def _wanted_version(copies: Sequence[ModelCopy], key: LookupKey) -> str:
    """Return the version that a key means in the fleet, the one that was downloaded last."""
    if not copies:
        return key.version or ""

    def downloaded(copy: ModelCopy) -> tuple[bool, float, str]:
        at: datetime | None = copy.downloaded_at
        return (at is not None, at.timestamp() if at else 0.0, copy.ref.version or "")

    # With a version that some host has, the copies have it or are meant by an alias of this name.
    if any(copy.ref.version == key.version for copy in copies):
        return key.version or ""
    return max(copies, key=downloaded).ref.version or ""


def _size_bytes(copies: Sequence[ModelCopy], query: PlacementQuery) -> int:
    if query.size_bytes is not None:
        return query.size_bytes
    if not copies:
        raise query.key.not_found()
    sizes = [copy.size_bytes for copy in copies if copy.size_bytes is not None]
    if not sizes:
        problem = "is recorded on no host: give size_bytes (`--size`)"
        raise InvalidModelError("size_bytes", None, problem)
    return max(sizes)


def _exclusion(
    host: Host, labels: Mapping[str, str], free_bytes: int, *, has_model: bool
) -> Exclusion | None:
    reasons = {
        Exclusion.HAS_MODEL: has_model,
        Exclusion.LOST: host.state is HostState.LOST,
        Exclusion.NEVER_ALIVE: host.state is HostState.NEVER,
        Exclusion.OTHER_LABELS: not matches(host, labels),
        Exclusion.UNKNOWN_SPACE: host.free_bytes is None,
        Exclusion.NO_ROOM: free_bytes < 0,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
