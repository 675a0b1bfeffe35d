"""The catalog itself: a repository of statements over the rows of the models table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, Self, cast

from sqlalchemy import ColumnElement, Select, Table, and_, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from model_catalog import rules
from model_catalog.errors import InvalidModelError, ModelNotFoundError
from model_catalog.model import Model, detached
from model_catalog.work import OwnTransactions, SharedTransaction, Work

_KEY: Final = ("provider", "reference", "version")
# Statements are over the table and not over the mapping: what they return is in no session, and a
# host's session keeps the objects it has.
_MODELS: Final = cast("Table", Model.__table__)
_C: Final = _MODELS.c
_NAMES: Final = tuple(_C.keys())
_NEWEST_FIRST: Final = (
    _C.downloaded_at.desc().nulls_last(),
    _C.provider,
    _C.reference,
    _C.version,
)
_PAGE: Final = 500
# Of two parts of 32 bits each neither sum can overflow; SQLite refuses to sum beyond 2**63.
_SPLIT: Final = 2**32


class ModelCatalog:
    """
    What is known of the models on this machine.

    Made over a host's `async_sessionmaker`, every call is a transaction of its own, and waits up to
    `timeout_s` seconds for other writers before it raises CatalogBusyError. Made over a host's
    `AsyncSession`, every call is part of that session's transaction, which is never committed
    nor closed here. A cancelled call runs to its end before the cancellation is delivered.

    No call looks at the disk. Models are handed out detached: to change one, register it again.

    Every method raises CatalogError and what is derived from it, and nothing of a driver's.
    """

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession] | AsyncSession,
        *,
        timeout_s: float = 30.0,
    ) -> None:
        self._work: Work = (
            SharedTransaction(sessions)
            if isinstance(sessions, AsyncSession)
            else OwnTransactions(sessions, timeout_s)
        )

    @classmethod
    def _over(cls, work: Work) -> Self:
        catalog = object.__new__(cls)
        catalog._work = work
        return catalog

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        """
        The same methods in one transaction: all of it is kept, or, if the block raises, none.

        On SQLite it holds the write lock from its beginning: do nothing slow inside. Within a
        transaction, or over a host's session, it is a savepoint.
        """
        async with self._work.transaction() as work:
            yield self._over(work)

    async def register_model(self, model: Model) -> Model:
        """
        Record a model, or record it again, and return it as it is recorded.

        Writes the fields that were set on `model`; of a known one the others keep their values.
        `downloaded_at` is now unless it was set. The key is (provider, reference, version).

        Raises InvalidModelError, and then nothing was written.
        """
        row = _row(model)
        statement = self._upsert(row).values(row).returning(_MODELS)

        async def unit(session: AsyncSession) -> Model:
            found = (await session.execute(statement)).one()
            return detached(dict(zip(_NAMES, found, strict=True)))

        return await self._work.write(unit)

    async def register_models(self, models: Iterable[Model]) -> int:
        """
        Record many models in one transaction, all or none; return how many different ones.

        Where one key comes several times the fields that were set last are written.

        Raises InvalidModelError for the first that may not be stored, and then none was.
        """
        rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for model in models:
            row = _row(model)
            rows.setdefault(tuple(row.get(name, "") for name in _KEY), {}).update(row)
        # In the order of the key, so that two processes lock rows in the same order; and by the
        # fields that were set, because those are the statement.
        ordered = sorted(rows.items(), key=lambda item: (sorted(item[1]), item[0]))
        batches = [
            [row for _, row in batch] for _, batch in groupby(ordered, lambda item: sorted(item[1]))
        ]

        async def unit(session: AsyncSession) -> None:
            for batch in batches:
                await session.execute(self._upsert(batch[0]), batch)

        if batches:
            async with self._work.transaction() as work:
                await work.write(unit)
        return len(rows)

    async def find_model(
        self, reference: str, provider: str, version: str | None = None
    ) -> Model | None:
        """
        The model of exactly this key, or None. Case counts, and so does every blank.

        `version=None` means the one downloaded last; of several in the same second, the one that
        was first recorded last.
        """
        statement = (
            select(_MODELS)
            .where(*_key(reference, provider, version))
            .order_by(_C.downloaded_at.desc().nulls_last(), _C.id.desc())
            .limit(1)
        )
        return next(iter(await self._read(statement)), None)

    async def get_model(self, reference: str, provider: str, version: str | None = None) -> Model:
        """As `find_model`, but raises ModelNotFoundError where that returns None."""
        model = await self.find_model(reference, provider, version)
        if model is None:
            raise ModelNotFoundError(reference, provider, version)
        return model

    async def list_models(
        self, *, provider: str | None = None, reference: str | None = None
    ) -> list[Model]:
        """
        All models, or those of a provider, or of a reference; empty when there are none.

        The newest `downloaded_at` first, those without one last; then by provider, reference and
        version, by the bytes of their UTF-8. No two are equal in that.
        """
        return await self._read(
            select(_MODELS).where(*_filters(provider, reference)).order_by(*_NEWEST_FIRST)
        )

    async def iter_models(
        self, *, provider: str | None = None, reference: str | None = None
    ) -> AsyncIterator[Model]:
        """
        As `list_models`, a page at a time, for a catalog that is not to be held in memory at once.

        No transaction is open between two models, so the caller may write meanwhile. A model that
        is registered again meanwhile moves to the front, and is not met a second time.
        """
        statement = (
            select(_MODELS)
            .where(*_filters(provider, reference))
            .order_by(*_NEWEST_FIRST)
            .limit(_PAGE)
        )
        page = await self._read(statement)
        while page:
            for model in page:
                yield model
            page = await self._read(statement.where(_behind(page[-1])))

    async def remove_model(self, reference: str, provider: str, version: str | None = None) -> bool:
        """
        Forget a model, or with `version=None` every version of it; True if it was known.

        The file stays.
        """
        statement = delete(_MODELS).where(*_key(reference, provider, version)).returning(_C.id)

        async def unit(session: AsyncSession) -> bool:
            return bool((await session.execute(statement)).all())

        return await self._work.write(unit)

    async def get_total_size(
        self, *, provider: str | None = None, reference: str | None = None
    ) -> int:
        """The bytes of all models together; 0 when there are none. An unknown size counts 0."""
        statement = select(
            func.sum(_C.size_bytes // _SPLIT), func.sum(_C.size_bytes % _SPLIT)
        ).where(*_filters(provider, reference))

        async def unit(session: AsyncSession) -> int:
            high, low = (await session.execute(statement)).one()
            return int(high or 0) * _SPLIT + int(low or 0)

        return await self._work.read(unit)

    async def _read(self, statement: Select[Any]) -> list[Model]:
        async def unit(session: AsyncSession) -> Sequence[Sequence[Any]]:
            return [tuple(row) for row in await session.execute(statement)]

        rows = await self._work.read(unit)
        return [detached(dict(zip(_NAMES, row, strict=True))) for row in rows]

    def _upsert(self, row: dict[str, Any]) -> sqlite.Insert | postgresql.Insert:
        dialect = sqlite if self._work.dialect == "sqlite" else postgresql
        insert: sqlite.Insert | postgresql.Insert = dialect.insert(_MODELS)
        return insert.on_conflict_do_update(
            index_elements=_KEY,
            set_={name: insert.excluded[name] for name in row if name not in _KEY},
        )


def _row(model: Model) -> dict[str, Any]:
    """What is to be written: the fields that were set on the model, checked."""
    if not isinstance(model, Model):
        raise InvalidModelError("model", model, f"is a {type(model).__name__}: give a Model")
    row = rules.checked(vars(model))
    row.setdefault("version", "")
    if row.get("downloaded_at") is None:
        row["downloaded_at"] = datetime.now(UTC).replace(microsecond=0)
    return row


def _key(reference: str, provider: str, version: str | None) -> list[ColumnElement[bool]]:
    found = [
        _C.provider == rules.lookup_text("provider", provider),
        _C.reference == rules.lookup_text("reference", reference),
    ]
    if version is not None:
        found.append(_C.version == rules.lookup_text("version", version))
    return found


def _filters(provider: str | None, reference: str | None) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if provider is not None:
        found.append(_C.provider == rules.lookup_text("provider", provider))
    if reference is not None:
        found.append(_C.reference == rules.lookup_text("reference", reference))
    return found


def _behind(last: Model) -> ColumnElement[bool]:
    """The models that come after this one in the order of `list_models`."""
    later = or_(
        _C.provider > last.provider,
        and_(_C.provider == last.provider, _C.reference > last.reference),
        and_(
            _C.provider == last.provider,
            _C.reference == last.reference,
            _C.version > last.version,
        ),
    )
    if last.downloaded_at is None:
        return and_(_C.downloaded_at.is_(None), later)
    return or_(
        _C.downloaded_at < last.downloaded_at,
        _C.downloaded_at.is_(None),
        and_(_C.downloaded_at == last.downloaded_at, later),
    )
