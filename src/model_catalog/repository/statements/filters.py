"""The filters of listings as SQL conditions; the tables, and the columns that queries read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, Final, TypedDict, cast

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.sql.functions import Function
from sqlalchemy.types import NullType

from model_catalog.connection.database_info import host_of
from model_catalog.domain import fields, validation
from model_catalog.domain.file_record import FileState
from model_catalog.domain.search_text import fold_case
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.child_tables import FILES, TAGS
from model_catalog.mapping.search_index.condition import ContainsText, use_index
from model_catalog.mapping.tables import Model

MODELS: Final = cast("Table", Model.__table__)
model_columns: Final = MODELS.c

# Not parameters: PostgreSQL uses the partial index of the models with a host only if the text of
# the statement states its condition.
HAS_HOST: Final = model_columns.host != literal_column("''")
HAS_NO_HOST: Final = model_columns.host == literal_column("''")

EFFECTIVE_COLUMNS: Final[Mapping[str, ColumnElement[Any]]] = {
    name: (
        func.coalesce(model_columns[name], model_columns[f"claimed_{name}"])
        if name in fields.HEADER_FIELDS
        else model_columns[name]
    )
    for name in fields.FIELDS
}
"""The value of each field: the user's, or the value that the header states if that is NULL."""


def of_host(connection: Connection) -> ColumnElement[bool]:
    """Return the condition that a model is one of the catalog's host, for a search by key."""
    return model_columns.host == host_of(connection)


def own_models(
    connection: Connection, where: Sequence[ColumnElement[bool]] = ()
) -> list[ColumnElement[bool]]:
    """
    Return the conditions of a statement about many models: the catalog's host, and `where`.

    For a search it reads the search index.
    """
    where, is_narrow = use_index(connection, where, for_page=False)
    # The candidates of a search are read by id.
    others = () if is_narrow else where
    return [is_of_host(host_of(connection), connection.dialect.name, others), *where]


def is_of_host(
    host: str | ColumnElement[str], dialect: str, where: Sequence[ColumnElement[bool]]
) -> ColumnElement[bool]:
    """Return the condition that a model is of a host, beside others of many models."""
    if dialect != "sqlite" or any(map(_has_index_of_host, where)):
        return model_columns.host == host
    return is_own(host)


def is_own(host: str | ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that a model is of a host, for which SQLite uses no index."""
    return or_(_has_no_other_host(host), model_columns.host == host)


def select_aggregate(
    connection: Connection, aggregate: ColumnElement[Any], where: Sequence[ColumnElement[bool]]
) -> Select[Any]:
    """Select an aggregate of the models of the catalog's host that meet all conditions."""
    if where or connection.dialect.name != "sqlite":
        return select(aggregate).select_from(MODELS).where(*own_models(connection, where))
    return _select_unfiltered(aggregate, host_of(connection))


@lru_cache(maxsize=64)
def _select_unfiltered(aggregate: ColumnElement[Any], host: str) -> Select[Any]:
    models = select(aggregate).select_from(MODELS)
    own = models.where(model_columns.host == host)
    # Without a condition SQLite counts rows without reading them: 30 times as fast for 20,000.
    return select(
        case((_has_no_other_host(host), models.scalar_subquery()), else_=own.scalar_subquery())
    )


# It is built once for each host: that takes longer than a short statement.
@lru_cache(maxsize=64)
def _has_no_other_host(host: str | ColumnElement[str]) -> ColumnElement[bool]:
    """
    Return whether all models of the database are of one host, as in most SQLite files.

    SQLite evaluates it once, and then does not read the column of each row, which is the last one.
    """
    others = MODELS.alias("others")
    return and_(
        *(
            ~select(literal(1)).select_from(others).where(condition).exists()
            for condition in (others.c.host < host, others.c.host > host)
        )
    )


def hint(function: str, condition: ColumnElement[bool]) -> ColumnElement[Any]:
    """
    Return a condition with a hint for SQLite's planner: `likely` or `unlikely`.

    It has no type: SQLAlchemy would compare a Boolean with 1, and SQLite then ignores the hint.
    """
    hinted: ColumnElement[Any] = getattr(func, function)(condition, type_=NullType())
    return hinted


def expect_many(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    """Return a condition of a filter, of which SQLite expects that many models meet it."""
    is_hint = isinstance(condition, Function) and condition.name == "unlikely"
    return hint("likely", *condition.clauses) if is_hint else condition


def _has_index_of_host(condition: ColumnElement[bool]) -> bool:
    """Return whether an index begins with the host and the column of the condition."""
    clauses = (condition, *getattr(condition, "clauses", ()))
    indexed = (model_columns.provider, model_columns.store)
    return any(getattr(each, "left", None) is column for each in clauses for column in indexed)


class Filters(TypedDict, total=False):
    """
    Filters for listings. All given filters must match; `None` means the filter is not applied.

    Bounds of sizes and lengths are inclusive, bounds of times are exclusive.
    """

    provider: str | None
    reference: str | None
    version: str | None
    """An exact version; aliases are not looked up."""
    search: str | None
    """A text that the reference, the description or a tag contains, regardless of case."""
    tags: Collection[str] | None
    """The model has all of these tags, regardless of case."""
    any_tags: Collection[str] | None
    """The model has at least one of these tags, regardless of case."""
    kind: str | None
    """`unknown` also matches a model whose kind nothing has looked for."""
    format: str | None
    architecture: str | None
    quantization: str | None
    license: str | None
    min_size_bytes: int | None
    max_size_bytes: int | None
    min_context_length: int | None
    """In tokens."""
    downloaded_after: datetime | None
    downloaded_before: datetime | None
    used_after: datetime | None
    used_before: datetime | None
    never_used: bool | None
    pinned: bool | None
    state: FileState | None
    """The result of the last check of the files."""
    digest: str | None
    """The SHA-256 of the model or of one of its files."""
    damaged: bool | None
    """Whether the last verification found other bytes than the expected ones."""
    incomplete: bool | None
    """Whether files that loading needs are missing or too short."""
    store: str | None
    """The kind of external store that contains the model, for example `ollama`."""
    foreign: bool | None
    """Whether an external store contains the model, and the catalog has not downloaded it."""
    ids: Collection[int] | None
    """The model has one of these ids, any number of them. Without an id no model matches."""


def build_where(filters: Mapping[str, object], dialect: str) -> list[ColumnElement[bool]]:
    """
    Return the conditions of some filters.

    Raises InvalidModelError for an invalid value, and TypeError for an unknown filter.
    """
    _require_known(filters)
    return [
        _CONDITIONS[name](name, value, dialect)
        for name, value in filters.items()
        if value is not None
    ]


def build_bound_where(
    filters: Mapping[str, object], dialect: str
) -> tuple[list[ColumnElement[bool]], dict[str, Any], tuple[str, ...] | None]:
    """
    Return the conditions of some filters, and the values of the parameters in them.

    The third value are the names of the filters if each has a `bound_condition`, and otherwise
    None. Raises as `build_where` does.
    """
    _require_known(filters)
    where, values = [], {}
    names = tuple(name for name, value in filters.items() if value is not None)
    for name in names:
        if name in _BOUND:
            where.append(bound_condition(name, dialect))
            values[bound_name(name)] = validation.lookup_text(name, filters[name])
        else:
            where.append(_CONDITIONS[name](name, filters[name], dialect))
    return where, values, names if len(values) == len(names) else None


def bound_name(name: str) -> str:
    """Return the name of the parameter that a filter has in statements."""
    return f"filter_{name}"


@cache
def bound_condition(name: str, dialect: str) -> ColumnElement[bool]:
    """Return the condition that a field equals the parameter of its filter."""
    column = EFFECTIVE_COLUMNS[name]
    is_equal = column == bindparam(bound_name(name), type_=column.type)
    return _hinted(is_equal, dialect) if _CONDITIONS[name] is _equals_key else is_equal


def _require_known(filters: Mapping[str, object]) -> None:
    unknown = set(filters) - _CONDITIONS.keys()
    if unknown:
        raise TypeError(f"there is no filter {min(unknown)!r}: use one of {', '.join(_CONDITIONS)}")


Condition = Callable[[str, object, str], ColumnElement[bool]]


def _equals(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    return EFFECTIVE_COLUMNS[field] == validation.lookup_text(field, value)


def _equals_key(field: str, value: object, dialect: str) -> ColumnElement[bool]:
    return _hinted(_equals(field, value, dialect), dialect)


def _hinted(is_equal: ColumnElement[bool], dialect: str) -> ColumnElement[bool]:
    # Otherwise SQLite reads all models of a host, in the default order of listings.
    return hint("unlikely", is_equal) if dialect == "sqlite" else is_equal


def _has_kind(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    kind = validation.kind(field, value)
    recorded = EFFECTIVE_COLUMNS["kind"]
    return or_(recorded.is_(None), recorded == kind) if kind == "unknown" else recorded == kind


def _contains(field: str, value: object, dialect: str) -> ColumnElement[bool]:
    return ContainsText(fold_case(validation.search(field, value)), dialect)


def _has_all(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    tags = _folded_tags(field, value)
    # One count for any number of tags: with a semijoin for each tag PostgreSQL's planner does not
    # finish.
    return _has_at_least(len(tags), tags) if tags else true()


def _has_any(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    return _has_at_least(1, _folded_tags(field, value))


def _folded_tags(field: str, value: object) -> list[str]:
    return sorted({fold_case(tag) for tag in validation.filter_tags(field, value)})


def _has_at_least(number: int, tags: Collection[str]) -> ColumnElement[bool]:
    """Return the condition that a model has at least this number of these tags."""
    models = select(TAGS.c.model_id).where(TAGS.c.folded.in_(tags)).group_by(TAGS.c.model_id)
    return model_columns.id.in_(models.having(func.count() >= number))


def _at_least(name: str) -> Condition:
    return lambda field, value, _: (
        EFFECTIVE_COLUMNS[name] >= validation.non_negative_int(field, value)
    )


def _at_most(name: str) -> Condition:
    return lambda field, value, _: (
        EFFECTIVE_COLUMNS[name] <= validation.non_negative_int(field, value)
    )


def _after(column: ColumnElement[datetime]) -> Condition:
    return lambda field, value, _: column > validation.timestamp(field, value)


def _before(column: ColumnElement[datetime]) -> Condition:
    def condition(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
        bound = validation.timestamp(field, value)
        # `timestamp` cuts fractions of a second off, as stored times are whole seconds. A stored
        # time in the second of a bound with a fraction is before the bound.
        return column < bound if bound == value else column <= bound

    return condition


def _null_flag(column: ColumnElement[Any], *, is_null: bool) -> Condition:
    def condition(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
        return column.is_(None) if _flag(field, value) is is_null else column.is_not(None)

    return condition


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidModelError(field, value, "is neither True nor False")
    return value


def _is_foreign(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    is_foreign = model_columns.store.is_not(None) & model_columns.managed_root.is_(None)
    return is_foreign if _flag(field, value) else ~is_foreign


def _has_digest(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    digest = validation.digest(field, value)
    with_file = select(FILES.c.model_id).where(FILES.c.digest == digest)
    return (model_columns.digest == digest) | (
        model_columns.id.in_(with_file) & model_columns.inventoried_at.is_not(None)
    )


def _has_id(field: str, value: object, dialect: str) -> ColumnElement[bool]:
    ids = validation.row_ids(field, value)
    # One parameter for all ids: the number of parameters of a statement is limited.
    if dialect == "postgresql":
        return model_columns.id == any_(literal(ids, ARRAY(BigInteger)))
    listed = func.json_each(literal(json.dumps(ids), Text)).table_valued("value")
    return model_columns.id.in_(select(listed.c.value))


_CONDITIONS: Final[Mapping[str, Condition]] = {
    "provider": _equals_key,
    "reference": _equals_key,
    "version": _equals,
    "search": _contains,
    "tags": _has_all,
    "any_tags": _has_any,
    "kind": _has_kind,
    "format": _equals,
    "architecture": _equals,
    "quantization": _equals,
    "license": _equals,
    "min_size_bytes": _at_least("size_bytes"),
    "max_size_bytes": _at_most("size_bytes"),
    "min_context_length": _at_least("context_length"),
    "downloaded_after": _after(model_columns.downloaded_at),
    "downloaded_before": _before(model_columns.downloaded_at),
    "used_after": _after(model_columns.last_used_at),
    "used_before": _before(model_columns.last_used_at),
    "never_used": _null_flag(model_columns.last_used_at, is_null=True),
    "pinned": _null_flag(model_columns.pinned_at, is_null=False),
    "state": lambda field, value, _: model_columns.state == validation.state(field, value),
    "digest": _has_digest,
    "damaged": _null_flag(model_columns.found_digest, is_null=False),
    "incomplete": _null_flag(model_columns.incomplete_reason, is_null=False),
    "store": _equals,
    "foreign": _is_foreign,
    "ids": _has_id,
}
_BOUND: Final = {name for name, each in _CONDITIONS.items() if each in (_equals, _equals_key)}
