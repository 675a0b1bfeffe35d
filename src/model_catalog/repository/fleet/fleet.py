"""The public class `Fleet`: read access to the models of all hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Unpack

from model_catalog.domain import validation
from model_catalog.domain.fleet import DEFAULT_LOST_AFTER_S, host_validation
from model_catalog.domain.fleet.copies import (
    HostTotals,
    ModelCopies,
    ModelCopy,
    PlacementPlan,
)
from model_catalog.domain.model_ref import ModelName, ModelRef
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Executor
from model_catalog.execution.observation.observed_executor import observe_calls
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.fleet import copies, models, placement, totals
from model_catalog.repository.operations.fleet.copies import CopyQuery, CountQuery
from model_catalog.repository.operations.fleet.placement import PlacementQuery
from model_catalog.repository.operations.lookup import LookupKey
from model_catalog.repository.statements.filters import Filters

_PAGE_SIZE: Final = 500
_MAX_PAGE: Final = 1000


class Fleet:
    """
    The models of all hosts of a database, to read. `ModelCatalog.fleet()` makes one.

    A copy is *usable* if it is whole and present as last checked, and if its host is not lost. The
    state of a host is that of `HostRegistry`, by the clock of the database. A model that was
    recorded without a host has the host `""`, whose state is `unregistered`.

    Each method reads what is committed at its time. A plan reserves nothing.
    """

    def __init__(self, executor: Executor, *, lost_after_s: float = DEFAULT_LOST_AFTER_S) -> None:
        self._executor = executor
        observe_calls(self, executor, "Fleet.")
        self._lost_after_s = host_validation.lost_after("lost_after_s", lost_after_s)

    async def who_has(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> list[ModelCopy]:
        """
        Return the copies of a model on all hosts, the best one first; empty if there is none.

        Without a version they are all versions. On each host `version` may be an alias. Usable
        copies come first, then those of hosts that are alive, then the one used last.

        Raises InvalidModelError.
        """
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(copies.find_copies(CopyQuery(key, self._lost_after_s)))

    async def totals_by_host(self) -> list[HostTotals]:
        """
        Return the number of models, their size and the free space of each host, sorted by name.

        These are the hosts that are registered, and those that have models.
        """
        return await self._executor.run(totals.find_totals(self._lost_after_s))

    async def list_scarce_models(
        self, *, copy_count: int = 1, limit: int = 100, after: ModelRef | None = None
    ) -> list[ModelCopies]:
        """
        Return the models with at most this number of usable copies, sorted by name.

        With 1, the default, they are the models that one host has alone, and those that no host has
        in a usable state. Each version is a model of its own. `limit` is at most 1,000, and `after`
        is the `ref` of the last one of the page before.

        Raises InvalidModelError.
        """
        query = CountQuery(
            self._lost_after_s, 0, validation.limit("copy_count", copy_count), *_page(limit, after)
        )
        return await self._executor.run(copies.find_by_count(query))

    async def list_spare_models(
        self, *, keep: int = 2, limit: int = 100, after: ModelRef | None = None
    ) -> list[ModelCopies]:
        """
        Return the models with more than `keep` usable copies, sorted by name.

        `each.to_spare(keep)` are the copies that could go, least recently used first. `limit` and
        `after` are as in `list_scarce_models`. Raises InvalidModelError.
        """
        minimum = validation.count("keep", keep) + 1
        query = CountQuery(self._lost_after_s, minimum, None, *_page(limit, after))
        return await self._executor.run(copies.find_by_count(query))

    async def plan_placement(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        *,
        size_bytes: int | None = None,
        reserve_bytes: int = 0,
        labels: Mapping[str, str] | None = None,
    ) -> PlacementPlan:
        """
        Return the hosts on which a copy of a model would fit, the best one first.

        Without a version it is the version that any host downloaded last. A host is offered if it
        is registered, alive, does not have this version, has all of these `labels`, and would still
        have `reserve_bytes` of free space. Hosts with the fewest other versions of the model come
        first, then those with the most free space. All other hosts are named with the reason.

        `size_bytes` replaces the largest recorded size of a copy. It is needed for a model that no
        host has. Raises ModelNotFoundError and InvalidModelError.
        """
        query = PlacementQuery(
            LookupKey.validated(reference, provider, version),
            self._lost_after_s,
            validation.non_negative_int("size_bytes", size_bytes),
            validation.non_negative_int("reserve_bytes", reserve_bytes) or 0,
            host_validation.label_filter("labels", labels),
        )
        return await self._executor.run(placement.plan(query))

    async def list_models(
        self,
        *,
        hosts: Sequence[str] | None = None,
        limit: int | None = None,
        after: Model | None = None,
        **filters: Unpack[Filters],
    ) -> list[Model]:
        """
        Return the models of all hosts, or of `hosts`, that pass all filters.

        Sorted by host, provider, reference and version. `limit` and `after`, the last model of the
        page before, select a page. `Model.host` says where a model is.

        Raises InvalidModelError.
        """
        page = models.list_page(
            self._executor.database.dialect, filters, hosts=hosts, limit=limit, after=after
        )
        return await self._executor.run(page)

    async def iter_models(
        self, *, hosts: Sequence[str] | None = None, **filters: Unpack[Filters]
    ) -> AsyncIterator[Model]:
        """Yield the models as `list_models` sorts them, reading a page at a time."""
        last: Model | None = None
        while page := await self.list_models(hosts=hosts, limit=_PAGE_SIZE, after=last, **filters):
            for model in page:
                yield model
            last = page[-1]


def _page(limit: int, after: object) -> tuple[int, ModelRef | None]:
    size = validation.limit("limit", limit)
    if not size or size > _MAX_PAGE:
        raise InvalidModelError("limit", limit, f"is not a page size: give 1 to {_MAX_PAGE:,}")
    if after is not None and not isinstance(after, ModelRef):
        problem = f"is a {type(after).__name__}: pass the `ref` of the last one of the page before"
        raise InvalidModelError("after", after, problem)
    return size, after
