"""Tags, pins and aliases of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    bindparam,
    delete,
    func,
    literal,
    or_,
    select,
)

from model_catalog.connection.database_info import host_of
from model_catalog.domain import key_validation, validation
from model_catalog.domain.model_ref import ModelName, ModelRef, resolve_name, split_arguments
from model_catalog.domain.search_text import fold_case
from model_catalog.domain.validation import utc_now
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Operation, read, write
from model_catalog.execution.observation.changed_rows import (
    ChangedRows,
    changes,
    recording,
    records_changes,
)
from model_catalog.mapping.child_tables import ALIASES, TAGS
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.lookup import (
    LookupKey,
    get_model_id,
    load_model,
    set_columns,
)
from model_catalog.repository.statements.filters import (
    MODELS,
    Filters,
    build_where,
    model_columns,
    own_models,
)
from model_catalog.repository.statements.models import insert_into

_ALIAS_COLUMNS: Final = (ALIASES.c.provider, ALIASES.c.reference, ALIASES.c.alias)


@dataclass(frozen=True, slots=True)
class TagCount:
    """A tag in its most frequent spelling, and the number of models that have it."""

    tag: str
    model_count: int


@dataclass(frozen=True, slots=True)
class Alias:
    """A second name for one version of a reference."""

    provider: str
    reference: str
    alias: str
    version: str
    """The version of the model that the alias points at."""

    @property
    def ref(self) -> ModelRef:
        """The name of the model that the alias points at, with its version."""
        return ModelRef(self.provider, self.reference, self.version)


class _ModelTags(NamedTuple):
    key: LookupKey
    tags: dict[str, str]
    """The tags by their case-folded forms."""


class _AliasOfKey(NamedTuple):
    key: LookupKey
    alias: str


def tag(
    key: LookupKey, tags: Iterable[str], more: Iterable[str] = ()
) -> Operation[_ModelTags, Model]:
    """Return the operation that adds tags to a model."""
    return write(add_tags, _ModelTags(key, _tags_by_fold(tags, more)))


@records_changes
def add_tags(connection: Connection, value: _ModelTags) -> Model:
    """Add tags to a model, and return it; tags that it has keep their spelling."""
    model_id = get_model_id(connection, value.key)
    rows = [
        {"model_id": model_id, "folded": folded, "tag": text} for folded, text in value.tags.items()
    ]
    if rows:
        _require_few_tags(connection, model_id, value.tags)
        insert = insert_into(TAGS, connection.dialect.name)
        with recording(connection, ChangedRows(ids=[model_id]), "tags"):
            connection.execute(insert.on_conflict_do_nothing(), rows)
    return load_model(connection, model_id)


def _require_few_tags(connection: Connection, model_id: int, new: Mapping[str, str]) -> None:
    """Raise InvalidModelError if a model would have too many tags."""
    of_model = TAGS.c.model_id == model_id
    count = connection.execute(select(func.count()).where(of_model)).scalar_one()
    if count + len(new) > validation.MAX_TAGS:
        existing = connection.execute(select(TAGS.c.folded).where(of_model)).scalars()
        if (total := len(new.keys() | set(existing))) > validation.MAX_TAGS:
            raise InvalidModelError(
                "tags", total, f"are too many: a model has at most {validation.MAX_TAGS} tags"
            )


def untag(
    key: LookupKey, tags: Iterable[str], more: Iterable[str] = ()
) -> Operation[_ModelTags, Model]:
    """Return the operation that removes tags from a model."""
    return write(remove_tags, _ModelTags(key, _tags_by_fold(tags, more)))


def _tags_by_fold(tags: Iterable[str], more: Iterable[str]) -> dict[str, str]:
    texts = [*validation.tags("tag", tags), *validation.tags("tags", more)]
    # Reversed: of two tags that differ only in case the first one is kept.
    return {fold_case(text): text for text in reversed(texts)}


@records_changes
def remove_tags(connection: Connection, value: _ModelTags) -> Model:
    """Remove tags from a model, and return it; tags that it does not have are ignored."""
    model_id = get_model_id(connection, value.key)
    statement = delete(TAGS).where(TAGS.c.model_id == model_id, TAGS.c.folded == bindparam("tag"))
    if value.tags:
        # One execution for each tag: the number of parameters of a statement is limited.
        with recording(connection, ChangedRows(ids=[model_id]), "tags"):
            connection.execute(statement, [{"tag": folded} for folded in sorted(value.tags)])
    return load_model(connection, model_id)


def list_tags(filters: Filters, dialect: str) -> Operation[Any, list[TagCount]]:
    """Return the operation that counts the models of each tag."""
    return read(count_tags, build_where(filters, dialect), may_lag=True)


def count_tags(connection: Connection, where: Sequence[ColumnElement[bool]]) -> list[TagCount]:
    """Return the tags of the models that meet all conditions, sorted by case-folded tag."""
    spellings = (
        select(TAGS.c.folded, TAGS.c.tag, func.count().label("models"))
        .join(MODELS, model_columns.id == TAGS.c.model_id)
        .where(*own_models(connection, where))
        .group_by(TAGS.c.folded, TAGS.c.tag)
        .order_by(TAGS.c.folded, func.count().desc(), TAGS.c.tag)
    )
    counts: dict[str, TagCount] = {}
    for folded, text, models in connection.execute(spellings):
        first = counts.setdefault(folded, TagCount(text, 0))
        counts[folded] = TagCount(first.tag, first.model_count + models)
    return list(counts.values())


def pin(key: LookupKey, reason: str | None) -> Operation[Any, Model]:
    """Return the operation that pins a model; a pinned one keeps its time."""
    now: ColumnElement[datetime | None] = literal(utc_now(), model_columns.pinned_at.type)
    checked = literal(validation.long_text("reason", reason, validation.MAX_REASON_BYTES), Text)
    return set_columns(
        key,
        {
            "pinned_at": func.coalesce(model_columns.pinned_at, now),
            "pin_reason": func.coalesce(checked, model_columns.pin_reason),
        },
    )


def unpin(key: LookupKey) -> Operation[Any, Model]:
    """Return the operation that removes the pin of a model."""
    return set_columns(key, {"pinned_at": None, "pin_reason": None})


def split_alias(model: object, provider: str | None, alias: str | None) -> tuple[str | None, str]:
    """Return the provider and the alias of a call. Raises InvalidModelError without an alias."""
    provider, texts = split_arguments(model, provider, () if alias is None else (alias,))
    if len(texts) != 1:
        problem = "is missing or given twice: give one, as in alias='stable'"
        raise InvalidModelError("alias", alias, problem)
    return provider, texts[0]


def set_alias(key: LookupKey, alias: str) -> Operation[_AliasOfKey, Alias]:
    """Return the operation that creates or moves an alias."""
    return write(upsert_alias, _AliasOfKey(key, key_validation.alias("alias", alias)))


def _rows_of_moved_alias(connection: Connection, value: _AliasOfKey) -> ChangedRows:
    # The model that the alias points at, and the one that it has pointed at.
    is_meant = model_columns.id == value.key.select_id(connection).scalar_subquery()
    return ChangedRows([or_(is_meant, model_columns.id.in_(_select_target(connection, value)))])


def _rows_of_alias(connection: Connection, value: _AliasOfKey) -> ChangedRows:
    return ChangedRows([model_columns.id.in_(_select_target(connection, value))])


def _select_target(connection: Connection, value: _AliasOfKey) -> Select[int]:
    return select(ALIASES.c.model_id).where(*_is_alias(connection, value))


def _is_alias(connection: Connection, value: _AliasOfKey) -> list[ColumnElement[bool]]:
    return [
        ALIASES.c.host == host_of(connection),
        ALIASES.c.provider == value.key.provider,
        ALIASES.c.reference == value.key.reference,
        ALIASES.c.alias == value.alias,
    ]


@changes(_rows_of_moved_alias, "aliases")
def upsert_alias(connection: Connection, value: _AliasOfKey) -> Alias:
    """Point an alias at the model that the key means, and return the alias."""
    key = value.key
    model_id = get_model_id(connection, key)
    insert = insert_into(ALIASES, connection.dialect.name)
    statement = insert.on_conflict_do_update(
        index_elements=["host", "provider", "reference", "alias"],
        # An alias that a store made becomes the user's own, and no later scan moves it.
        set_={"model_id": insert.excluded.model_id, "store": None},
    )
    names = {"provider": key.provider, "reference": key.reference, "alias": value.alias}
    row = {**names, "host": host_of(connection), "model_id": model_id}
    connection.execute(statement, [row])
    version = connection.execute(
        select(model_columns.version).where(model_columns.id == model_id)
    ).scalar_one()
    return Alias(**names, version=version)


def remove_alias(key: LookupKey, alias: str) -> Operation[_AliasOfKey, bool]:
    """Return the operation that deletes an alias of the reference of a key."""
    return write(delete_alias, _AliasOfKey(key, validation.lookup_text("alias", alias)))


@changes(_rows_of_alias, "aliases")
def delete_alias(connection: Connection, value: _AliasOfKey) -> bool:
    """Delete an alias; return whether it existed."""
    statement = delete(ALIASES).where(*_is_alias(connection, value)).returning(ALIASES.c.alias)
    return bool(connection.execute(statement).all())


def list_aliases(reference: ModelName | None, provider: str | None) -> Operation[Any, list[Alias]]:
    """Return the operation that lists all aliases, or those of a reference, provider or model."""
    where: list[ColumnElement[bool]] = []
    if reference is not None and not isinstance(reference, str):
        reference, provider, version = resolve_name(reference, provider)
        if version is not None:
            where.append(model_columns.version == version)
    if reference is not None:
        where.append(ALIASES.c.reference == validation.lookup_text("reference", reference))
    if provider is not None:
        where.append(ALIASES.c.provider == validation.lookup_text("provider", provider))
    return read(select_aliases, where, may_lag=True)


def select_aliases(connection: Connection, where: Sequence[ColumnElement[bool]]) -> list[Alias]:
    """Return the aliases that meet all conditions, sorted by provider, reference and alias."""
    statement = (
        select(*_ALIAS_COLUMNS, model_columns.version)
        .join(MODELS, model_columns.id == ALIASES.c.model_id)
        .where(ALIASES.c.host == host_of(connection), *where)
        .order_by(*_ALIAS_COLUMNS)
    )
    return [Alias(*row) for row in connection.execute(statement)]
