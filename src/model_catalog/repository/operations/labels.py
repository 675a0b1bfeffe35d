"""What a user attaches to a model: tags, a pin, names for its versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Unpack

from sqlalchemy import Connection, Text, bindparam, delete, func, literal, select

from model_catalog.domain import validation
from model_catalog.mapping.tables import Model, fold_case
from model_catalog.repository.statements.filters import (
    MODELS,
    TAGS,
    Filters,
    build_where,
    model_columns,
)
from model_catalog.repository.statements.models import ALIASES, Key, Records


@dataclass(frozen=True, slots=True)
class TagCount:
    """A tag, as it is written most, and how many models have it."""

    tag: str
    model_count: int


@dataclass(frozen=True, slots=True)
class Alias:
    """A name of one reference, and the version it points at."""

    provider: str
    reference: str
    alias: str
    version: str


class Labels(Records):
    """The operations on tags, pins and aliases."""

    async def tag_model(
        self, reference: str, provider: str, *tags: str, version: str | None = None
    ) -> Model:
        """
        Give a model tags, and return it; those it has already stay as they were written.

        Tags are kept as they are written, and two that differ in case alone are the same. Each is
        at most 128 characters long. Raises ModelNotFoundError and InvalidModelError.
        """
        key = Key.of(reference, provider, version)
        spelled = {fold_case(tag): tag for tag in reversed(validation.tags("tag", tags))}

        def unit(connection: Connection) -> Model:
            model_id = self._id(connection, key)
            rows = [
                {"model_id": model_id, "folded": fold, "tag": spelled[fold]} for fold in spelled
            ]
            if rows:
                connection.execute(self._insert(TAGS).on_conflict_do_nothing(), rows)
            return self._model(connection, model_id)

        return await self._work.write(unit)

    async def untag_model(
        self, reference: str, provider: str, *tags: str, version: str | None = None
    ) -> Model:
        """
        Take tags from a model, in whatever case, and return it; those it has not are passed over.

        Raises ModelNotFoundError and InvalidModelError.
        """
        key = Key.of(reference, provider, version)
        wanted = sorted({fold_case(tag) for tag in validation.tags("tag", tags)})

        def unit(connection: Connection) -> Model:
            model_id = self._id(connection, key)
            here = delete(TAGS).where(
                TAGS.c.model_id == model_id, TAGS.c.folded == bindparam("tag")
            )
            if wanted:
                # One by one: a statement takes so many parameters and no more.
                connection.execute(here, [{"tag": tag} for tag in wanted])
            return self._model(connection, model_id)

        return await self._work.write(unit)

    async def list_tags(self, **filters: Unpack[Filters]) -> list[TagCount]:
        """The tags of all models, or of some, in the order of their folded names."""
        spellings = (
            select(TAGS.c.folded, TAGS.c.tag, func.count().label("models"))
            .join(MODELS, model_columns.id == TAGS.c.model_id)
            .where(*build_where(filters, self._work.database.dialect))
            .group_by(TAGS.c.folded, TAGS.c.tag)
            .order_by(TAGS.c.folded, func.count().desc(), TAGS.c.tag)
        )

        def unit(connection: Connection) -> list[TagCount]:
            found: dict[str, TagCount] = {}
            for fold, tag, models in connection.execute(spellings):
                first = found.setdefault(fold, TagCount(tag, 0))
                found[fold] = TagCount(first.tag, first.model_count + models)
            return list(found.values())

        return await self._work.read(unit)

    async def pin_model(
        self,
        reference: str,
        provider: str,
        version: str | None = None,
        *,
        reason: str | None = None,
    ) -> Model:
        """
        Protect a model from eviction, and return it.

        A pinned one stays pinned since when it was; a reason that is given replaces the one it had.
        Raises ModelNotFoundError, and InvalidModelError for a reason over 1 KiB.
        """
        now = literal(datetime.now(UTC).replace(microsecond=0), model_columns.pinned_at.type)
        checked = literal(validation.long_text("reason", reason, validation.MAX_REASON_BYTES), Text)
        return await self._change(
            Key.of(reference, provider, version),
            {
                "pinned_at": func.coalesce(model_columns.pinned_at, now),
                "pin_reason": func.coalesce(checked, model_columns.pin_reason),
            },
        )

    async def unpin_model(self, reference: str, provider: str, version: str | None = None) -> Model:
        """Let a model go again, and return it. Raises ModelNotFoundError."""
        key = Key.of(reference, provider, version)
        return await self._change(key, {"pinned_at": None, "pin_reason": None})

    async def set_alias(
        self, reference: str, provider: str, alias: str, version: str | None = None
    ) -> Alias:
        """
        Let a name of this reference point at one of its versions; one that is there is moved.

        Wherever a version is given an alias may be, and a version of that very name comes first.
        The alias goes with the model it points at. `version=None` is the one downloaded last.

        Raises ModelNotFoundError and InvalidModelError.
        """
        key = Key.of(reference, provider, version)
        name = validation.alias("alias", alias)
        insert = self._insert(ALIASES)
        statement = insert.on_conflict_do_update(
            index_elements=["provider", "reference", "alias"],
            # Of a store's alias it makes the user's own, which no scan moves.
            set_={"model_id": insert.excluded.model_id, "store": None},
        )

        def unit(connection: Connection) -> Alias:
            model_id = self._id(connection, key)
            values = {"provider": key.provider, "reference": key.reference, "alias": name}
            connection.execute(statement, [{**values, "model_id": model_id}])
            pointed = connection.execute(
                select(model_columns.version).where(model_columns.id == model_id)
            )
            return Alias(**values, version=pointed.scalar_one())

        return await self._work.write(unit)

    async def remove_alias(self, reference: str, provider: str, alias: str) -> bool:
        """Forget a name; True if it was known. The model it pointed at stays."""
        key = Key.of(reference, provider, alias)
        statement = (
            delete(ALIASES)
            .where(
                ALIASES.c.provider == key.provider,
                ALIASES.c.reference == key.reference,
                ALIASES.c.alias == key.version,
            )
            .returning(ALIASES.c.alias)
        )

        def unit(connection: Connection) -> bool:
            return bool(connection.execute(statement).all())

        return await self._work.write(unit)

    async def list_aliases(
        self, reference: str | None = None, provider: str | None = None
    ) -> list[Alias]:
        """All aliases, or those of a reference or a provider; by provider, reference and alias."""
        columns = (ALIASES.c.provider, ALIASES.c.reference, ALIASES.c.alias)
        statement = select(*columns, model_columns.version).join(
            MODELS, model_columns.id == ALIASES.c.model_id
        )
        if reference is not None:
            statement = statement.where(
                ALIASES.c.reference == validation.lookup_text("reference", reference)
            )
        if provider is not None:
            statement = statement.where(
                ALIASES.c.provider == validation.lookup_text("provider", provider)
            )

        def unit(connection: Connection) -> list[Alias]:
            return [Alias(*row) for row in connection.execute(statement.order_by(*columns))]

        return await self._work.read(unit)
