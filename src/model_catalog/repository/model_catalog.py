"""The catalog itself: a repository of statements over the rows of its tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, Unpack
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, func, literal, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from model_catalog.domain import fields
from model_catalog.domain.fields import ModelChanges
from model_catalog.domain.file_record import FileRecord
from model_catalog.errors import ModelNotFoundError
from model_catalog.execution.executor import Executor, Joint
from model_catalog.execution.session_executor import SessionExecutor, SessionTransaction
from model_catalog.execution.transaction import TransactionExecutor
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.bulk_registration import (
    InsertBatch,
    build_batches,
    collect_rows,
)
from model_catalog.repository.operations.check_queries import Holdings
from model_catalog.repository.operations.export_import import Exchange
from model_catalog.repository.operations.labels import Labels
from model_catalog.repository.operations.listing import Listing
from model_catalog.repository.operations.model_files import Contents
from model_catalog.repository.operations.registration import UpsertRow, search_columns
from model_catalog.repository.operations.relocation import Relocation
from model_catalog.repository.operations.store_sync_queries import Adopting
from model_catalog.repository.operations.usage import Usage
from model_catalog.repository.statements.filters import (
    EFFECTIVE_COLUMNS,
    MODELS,
    Filters,
    model_columns,
)
from model_catalog.repository.statements.models import (
    Key,
    register_batch,
    reset_stale_results,
    select_by_key,
)
from model_catalog.repository.statements.row_conversion import to_model

# SQLite refuses to sum beyond 2**63. Of two parts of 32 bits each neither sum can overflow.
_OVERFLOW: Final = "integer overflow"
_SPLIT: Final = 2**32
_SIZE_SUMS: Final = (
    func.sum(model_columns.size_bytes // _SPLIT),
    func.sum(model_columns.size_bytes % _SPLIT),
)


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """How many models there are of a kind, and their bytes together; an unknown size counts 0."""

    model_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CatalogStats:
    """The models of a catalog in numbers; what is not known of a model is counted under None."""

    total: ModelTotals
    by_provider: dict[str, ModelTotals]
    by_format: dict[str | None, ModelTotals]
    by_architecture: dict[str | None, ModelTotals]
    by_quantization: dict[str | None, ModelTotals]


class ModelCatalog(Listing, Labels, Usage, Contents, Holdings, Adopting, Relocation, Exchange):
    """
    What is known of the models on this machine.

    Made over a host's `async_sessionmaker`, every call is a transaction of its own, and waits up to
    `timeout_s` seconds, for other writers or for its own statements, before it raises
    CatalogBusyError; nothing of it is kept then. Made over a host's `AsyncSession`, every call is
    part of that session's transaction, which is never committed nor closed here. A cancelled call
    runs to its end before the cancellation is delivered.

    A model is named by its reference, its provider, and perhaps a version or an alias of one;
    `version=None` means the one downloaded last. No call looks at the disk, and none that only
    reads writes. Models are handed out detached: to change one, update it or register it again.

    Every method raises CatalogError and what is derived from it, and nothing of a driver's.
    """

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession] | AsyncSession,
        *,
        timeout_s: float = 30.0,
    ) -> None:
        self._work_in(
            TransactionExecutor(SessionTransaction(sessions, timeout_s))
            if isinstance(sessions, AsyncSession)
            else SessionExecutor(sessions, timeout_s)
        )

    @classmethod
    def _over(cls, work: Executor) -> Self:
        """A catalog over another place of work than a host's sessions, as `open_catalog` has."""
        catalog = object.__new__(cls)
        catalog._work_in(work)
        return catalog

    def _work_in(self, work: Executor) -> None:
        self._work = work
        self._uses = WeakKeyDictionary()

    @property
    def database_files(self) -> tuple[Path, ...]:
        """
        The files of the catalog's own SQLite database, whether they are there or not; else none.

        A process that uses them may not open them otherwise: to close one drops SQLite's locks.
        """
        return self._work.database.files

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        """
        The same methods in one transaction: all of it is kept, or, if the block raises, none.

        On SQLite it holds the write lock from its beginning: do nothing slow inside. Within a
        transaction, or over a host's session, it is a savepoint.
        """
        async with self._work.transaction() as work:
            yield self._over(work)

    async def register_model(
        self, model: Model, files: Sequence[FileRecord] | None = None
    ) -> Model:
        """
        Record a model, or record it again, and return it as it is recorded.

        Writes the fields that were set on `model`; of a known one the others keep their values, and
        so do its tags, its pin, its aliases and its uses. `downloaded_at` is now unless it was
        set, or read; `download_count` goes up by one. The key is (provider, reference, version),
        where the version is no alias. A new path, size or digest resets what was verified.

        `files` take the place of those that are known of it; their digest is the model's, unless
        that was set. Raises InvalidModelError, and then nothing was written.
        """
        if files is not None:
            return await self.register_found(model, {"inventoried_at": datetime.now(UTC)}, files)
        registration = UpsertRow.of(model)
        return await self._work.write(Joint(registration, self._store, register_batch))

    async def register_models(self, models: Iterable[Model | Mapping[str, object]]) -> int:
        """
        Record many models in one transaction, all or none; return how many different ones.

        One may be given as the keywords of its `Model(...)`, as a dict: that takes less time. Where
        one key comes several times the fields that were set last are written.

        Other tasks have their turns meanwhile, also while `models` are taken. Raises
        InvalidModelError for the first that may not be stored, and then none was.
        """
        rows = await collect_rows(models)
        batches: list[InsertBatch] = []

        def unit(connection: Connection) -> None:
            # In the thread that writes, where there is one, and not again where it has to wait.
            if not batches:
                batches.extend(build_batches(rows))
            for batch in batches:
                self._upsert(batch.shape, tells=False).run(connection, batch.columns)

        if rows:
            await self._work.write_all(unit)
        return sum(batch.row_count for batch in batches)

    async def update_model(
        self,
        reference: str,
        provider: str,
        version: str | None = None,
        **changes: Unpack[ModelChanges],
    ) -> Model:
        """
        Set the named fields of a model and no others, and return it; None clears.

        A new path, size or digest resets what was verified. Clearing what the user said of a model
        lets its header's claim be seen again. It is no download: `download_count` stays. Raises
        ModelNotFoundError and InvalidModelError.
        """
        key = Key.of(reference, provider, version)
        values = fields.validate_update(changes)
        if not values:
            return await self.get_model(reference, provider, version)
        new = {name: literal(value, model_columns[name].type) for name, value in values.items()}
        return await self._change(
            key, {**values, **search_columns(values), **reset_stale_results(new)}
        )

    async def find_model(
        self, reference: str, provider: str, version: str | None = None
    ) -> Model | None:
        """
        The model of exactly this key, or None. Case counts, and so does every blank.

        `version` is an exact one, or else an alias. `version=None` means the one downloaded last;
        of several in the same second, the one that was first recorded last.
        """
        key = Key.of(reference, provider, version)
        statement = select_by_key(self._work.database.dialect, newest=version is None)
        rows = await self._work.find(statement, key.values)
        return to_model(rows[0]) if rows else None

    async def get_model(self, reference: str, provider: str, version: str | None = None) -> Model:
        """As `find_model`, but raises ModelNotFoundError where that returns None."""
        model = await self.find_model(reference, provider, version)
        if model is None:
            raise ModelNotFoundError(reference, provider, version)
        return model

    async def count_models(self, **filters: Unpack[Filters]) -> int:
        """How many models pass all filters, which are those of `list_models`."""
        statement = select(func.count()).select_from(MODELS).where(*self._where(filters))

        def unit(connection: Connection) -> int:
            return connection.execute(statement).scalar_one()

        return await self._work.read(unit)

    async def get_total_size(self, **filters: Unpack[Filters]) -> int:
        """
        The bytes of all models that pass the filters, which are those of `list_models`.

        0 when there are none. An unknown size counts 0. Exact, also beyond 2**63.
        """
        where = self._where(filters)

        def unit(connection: Connection) -> int:
            # One sum takes a fifth less than two.
            try:
                return int(
                    connection.scalar(select(func.sum(model_columns.size_bytes)).where(*where)) or 0
                )
            except OperationalError as error:
                if _OVERFLOW not in str(error.orig):
                    raise
            return _total(*connection.execute(select(*_SIZE_SUMS).where(*where)).one())

        return await self._work.read(unit)

    async def stats(self, **filters: Unpack[Filters]) -> CatalogStats:
        """
        How many models there are and how large, together and of each kind, the largest kind first.

        The filters are those of `list_models`.
        """
        # One statement: PostgreSQL shows the next one what others have committed since.
        kinds = [
            EFFECTIVE_COLUMNS[kind]
            for kind in ("provider", "format", "architecture", "quantization")
        ]
        statement = select(*kinds, func.count(), *_SIZE_SUMS).select_from(MODELS)
        statement = statement.where(*self._where(filters)).group_by(*kinds)

        def unit(connection: Connection) -> CatalogStats:
            rows = [
                (row[:-3], ModelTotals(row[-3], _total(row[-2], row[-1])))
                for row in connection.execute(statement).all()
            ]
            return CatalogStats(
                _sum_totals(tally for _, tally in rows),
                *(_group_by_size((kinds[n], tally) for kinds, tally in rows) for n in range(4)),
            )

        return await self._work.read(unit)

    async def remove_model(self, reference: str, provider: str, version: str | None = None) -> bool:
        """
        Forget a model, or with `version=None` every version of it; True if it was known.

        Its tags, its aliases and the list of its files go with it. The file stays.
        """
        key = Key.of(reference, provider, version)
        which = (
            key.every_version
            if version is None
            else [model_columns.id == key.model_id.scalar_subquery()]
        )

        def unit(connection: Connection) -> bool:
            return self._forget(connection, *which) > 0

        return await self._work.write(unit)


def _sum_totals(tallies: Iterable[ModelTotals]) -> ModelTotals:
    models = sizes = 0
    for tally in tallies:
        models += tally.model_count
        sizes += tally.size_bytes
    return ModelTotals(models, sizes)


def _group_by_size(tallies: Iterable[tuple[Any, ModelTotals]]) -> dict[Any, ModelTotals]:
    """Those of one kind together, the largest kind first; of equal ones the unknown is last."""
    found: dict[Any, list[ModelTotals]] = {}
    for kind, tally in tallies:
        found.setdefault(kind, []).append(tally)
    sums = [(kind, _sum_totals(own)) for kind, own in found.items()]
    sums.sort(key=lambda each: (-each[1].size_bytes, -each[1].model_count, _last(each[0])))
    return dict(sums)


def _last(kind: str | None) -> tuple[bool, str]:
    return kind is None, kind or ""


def _total(high: int | None, low: int | None) -> int:
    return int(high or 0) * _SPLIT + int(low or 0)
