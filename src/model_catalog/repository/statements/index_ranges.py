"""
The parts of a listing that an index has in order, one after the other.

A page is read from the place in the index where it begins, and ends at its limit. An OR of the
parts would make a database read and sort all models.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Final

from sqlalchemy import (
    CTE,
    BigInteger,
    Column,
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.util import ClauseAdapter
from sqlalchemy.types import NullType

from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.execution.prepared_statement import raw_column
from model_catalog.repository.statements.filters import MODELS, hint, model_columns

KEY: Final = tuple(model_columns[name] for name in KEY_FIELDS)
LIMIT: Final = bindparam("limit", type_=BigInteger)
_KEY_AFTER: Final = tuple(bindparam(f"after_{c.name}", type_=c.type) for c in KEY)
LATER_KEY: Final = tuple_(*KEY) > tuple_(*_KEY_AFTER)
HOST: Final = bindparam("host", type_=model_columns.host.type)
OWN: Final = model_columns.host == HOST
MAX_PROVIDERS: Final = 32
"""The models of more providers are not merged by name."""

_BY_NAME: Final = (model_columns.reference, model_columns.provider, model_columns.version)


@dataclass(frozen=True, slots=True)
class Range:
    """Models that an index has one after the other: their condition, and their order."""

    condition: ColumnElement[bool]
    order: tuple[ColumnElement[Any], ...]
    equal: ColumnElement[bool] | None = None
    """The value that all of them have. SQLite takes it to be rare, and uses its index."""
    is_later: bool = False
    """Whether only the models after the cursor's key are meant."""
    provider: ColumnElement[str] | None = None
    """The provider of all of them, if they are in the order of the key."""

    def of_provider(self, provider: ColumnElement[str]) -> Range:
        """Return the models of a provider, if these are in the order of the key."""
        return replace(self, provider=provider) if self.order == KEY else self

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """The conditions of the models, without `equal`."""
        if self.provider is None:
            return [self.condition, LATER_KEY] if self.is_later else [self.condition]
        conditions = [KEY[0] == self.provider, self.condition]
        return [*conditions, *_later_of(self.provider)] if self.is_later else conditions


def _later_of(
    provider: ColumnElement[str], *, descending: bool = False
) -> list[ColumnElement[bool]]:
    """
    Return the conditions of the models of a provider after the cursor, in the order of the key.

    `descending` says that the models of the cursor's provider follow those of later providers.
    """
    # With LATER_KEY SQLite would search the provider by that comparison, and sort all its models.
    # So it gets the place in the index of one provider where it begins.
    _, reference, version = KEY
    after_provider, *after_others = _KEY_AFTER
    is_same = provider == after_provider
    start = case((is_same, after_others[0]), else_=literal_column("''"))
    is_later = provider < after_provider if descending else provider > after_provider
    later = and_(is_same, tuple_(reference, version) > tuple_(*after_others))
    return [reference >= start, or_(is_later, later)]


def provider_range(provider: ColumnElement[str], *, descending: bool, is_after: bool) -> Range:
    """Return the range of the models of one provider in an order by provider."""
    later = _later_of(provider, descending=descending) if is_after else []
    return Range(and_(KEY[0] == provider, *later), KEY)


def provider_ranges(*, descending: bool, is_after: bool) -> list[Range]:
    """Return the ranges of an order by provider, in the index of the key."""
    if not descending:
        return [Range(true(), KEY, is_later=is_after)]
    provider, *others = KEY
    if is_after:
        first: ColumnElement[str] = bindparam("after_provider", type_=provider.type)
        own_later = tuple_(*others) > tuple_(*_KEY_AFTER[1:])
    else:
        models = MODELS.alias("others")
        last = select(func.max(models.c.provider)).where(models.c.host == HOST)
        first, own_later = last.scalar_subquery(), true()
    # The models of one provider are read in order, and only then those of the next. In the index
    # the providers descend and their models do not, so a database sorts the models of each.
    return [
        Range(and_(provider == first, own_later), KEY),
        Range(provider < first, (provider.desc(), *others)),
    ]


def value_ranges(
    column: ColumnElement[Any], *, descending: bool, after: ColumnElement[Any] | None
) -> list[Range]:
    """Return the ranges of an order by a column, from the first value or after a cursor."""
    sorted_column = column.desc() if descending else column.asc()
    if column is model_columns.downloaded_at:
        # No value is NULL here. But PostgreSQL reads an index only for the order of NULL that the
        # index has, and this one alone begins with NULL.
        sorted_column = sorted_column.nulls_last() if descending else sorted_column.nulls_first()
    order = (sorted_column, *KEY)
    if after is None:
        return [Range(column.is_not(None), order)]
    is_later = column < after if descending else column > after
    return [Range(true(), KEY, column == after, is_later=True), Range(is_later, order)]


def null_range(column: ColumnElement[Any], *, is_after: bool) -> Range:
    """Return the range of the models without a value, or of those after a cursor among them."""
    return Range(column.is_(None), KEY, is_later=is_after)


def count_ranges(
    column: ColumnElement[Any],
    *,
    descending: bool,
    after: ColumnElement[Any] | None,
    after_zero: bool,
) -> list[Range]:
    """
    Return the ranges of an order by a count, from the first or after a cursor.

    `after_zero` says that the cursor's count is 0. The index has no model with the count 0. The
    models with it are read in the order of the key.
    """
    # The text of the statement must state the condition of the index.
    zero: ColumnElement[int] = literal_column("0")
    is_counted = column != zero
    order = (column.desc() if descending else column.asc(), *KEY)
    counted = Range(and_(is_counted, column > zero), order)
    uncounted = Range(column == zero, KEY)
    # Only another program records a negative count.
    ranges = [Range(and_(is_counted, column < zero), order), uncounted, counted]
    if descending:
        ranges.reverse()
    if after is None:
        return ranges
    current = uncounted if after_zero else counted
    later = [Range(and_(current.condition, column == after), KEY, is_later=True)]
    if not after_zero:
        is_later = column < after if descending else column > after
        later.append(Range(and_(current.condition, is_later), order))
    place = [each is current for each in ranges].index(True)
    return [*later, *ranges[place + 1 :]]


def name_ranges(*, descending: bool, is_after: bool) -> list[Range]:
    """Return the ranges of an order by reference, in the index that PostgreSQL has of it."""
    reference = model_columns.reference
    first, *others = _BY_NAME
    order = (first.desc() if descending else first.asc(), *others)
    if not is_after:
        return [Range(reference.is_not(None), order)]
    after = {c.name: bindparam(f"after_{c.name}", type_=c.type) for c in _BY_NAME}
    if not descending:
        return [Range(tuple_(*_BY_NAME) > tuple_(*(after[c.name] for c in _BY_NAME)), order)]
    is_equal = reference == after["reference"]
    later = tuple_(*others) > tuple_(*(after[c.name] for c in others))
    return [Range(and_(is_equal, later), order), Range(reference < after["reference"], order)]


def select_ids(
    ranges: Sequence[Range], dialect: str, where: Sequence[ColumnElement[bool]] = ()
) -> Select[Any]:
    """
    Select the ids of the first `limit` models of these ranges that meet all conditions.

    A range is read only if the ranges before it have fewer models than the limit.
    """
    if dialect == "sqlite":
        return select_in_order(ranges, (model_columns.id,))
    # PostgreSQL may execute the queries of a UNION ALL in any order, and does not execute a query
    # that has a limit of 0.
    found: list[CTE] = []
    for number, each in enumerate(ranges):
        before = (select(func.count()).select_from(part).scalar_subquery() for part in found)
        missing = reduce(operator.sub, before, LIMIT)
        equal = () if each.equal is None else (each.equal,)
        models = select(model_columns.id).where(OWN, *where, *each.conditions, *equal)
        inner = models.order_by(*each.order).limit(LIMIT).subquery()
        found.append(select(inner.c.id).limit(missing).cte(f"range_{number}"))
    return select(union_all(*(select(part.c.id) for part in found)).subquery())


def select_in_order(ranges: Sequence[Range], columns: Sequence[ColumnElement[Any]]) -> Select[Any]:
    """Select columns of the first `limit` models of these ranges, in their order, on SQLite."""
    queries = [
        select(*columns)
        .where(
            hint("likely", OWN),
            *each.conditions,
            *(() if each.equal is None else (_rare(each.equal),)),
        )
        .order_by(*each.order)
        .limit(LIMIT)
        for each in ranges
    ]
    if len(queries) == 1:
        return queries[0]
    # SQLite reads one query of a UNION ALL after the other, until it has as many rows as the limit.
    parts = union_all(*(select(query.subquery()) for query in queries))
    return select(parts.limit(LIMIT).subquery())


def _rare(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    # `unlikely` is too weak: SQLite would read all later keys in order, rather than sort.
    rare: ColumnElement[Any] = func.likelihood(
        condition, literal_column("0.00001"), type_=NullType()
    )
    return rare


def select_first_of(
    models: Select[Any], where: Sequence[ColumnElement[bool]], limit: ColumnElement[int]
) -> Select[Any]:
    """
    Select the ids of the first models that meet all conditions, from a SELECT in their order.

    It has the columns of `columns_of(where)`. SQLite reads its rows one at a time, until it has as
    many models as `limit`.
    """
    found = models.subquery()
    adapted = (ClauseAdapter(found).traverse(condition) for condition in where)
    return select(found.c.id).where(*adapted).limit(limit)


def columns_of(where: Sequence[ColumnElement[bool]]) -> list[ColumnElement[Any]]:
    """Return the id, and the columns of models that some conditions refer to."""
    named = {
        each: None
        for condition in where
        for each in visitors.iterate(condition)
        if isinstance(each, Column) and each.table is MODELS and each is not model_columns.id
    }
    return [model_columns.id, *named]


def count_some(name: str) -> Select[Any]:
    """Count the models with a provider or a store, which is the parameter `name`, up to a limit."""
    column = model_columns[name]
    models: Select[Any] = select(literal_column("1")).where(
        OWN, column == bindparam(name, type_=column.type)
    )
    return select(raw_column(func.count())).select_from(models.limit(LIMIT).subquery())


def select_providers() -> Select[Any]:
    """Select the providers of the host in order, at most `MAX_PROVIDERS` and one more."""
    models = MODELS.alias("others")
    own = models.c.host == HOST
    first = select(func.min(models.c.provider).label("provider")).where(own)
    found = first.cte("providers", recursive=True)
    following = select(func.min(models.c.provider)).where(own, models.c.provider > found.c.provider)
    found = found.union_all(
        select(following.scalar_subquery()).where(found.c.provider.is_not(None))
    )
    return (
        select(raw_column(found.c.provider))
        .where(found.c.provider.is_not(None))
        .limit(MAX_PROVIDERS + 1)
    )


def provider_name(number: int) -> str:
    """Return the name of the parameter for one of the providers of `select_by_name`."""
    return f"provider_{number}"


def select_by_name(
    providers: int, columns: Sequence[ColumnElement[Any]], *, descending: bool, is_after: bool
) -> Select[Any]:
    """
    Select columns of the first `limit` models of some providers by reference, on SQLite.

    The providers are parameters. `is_after` says that a page starts after a model. The key has an
    index that begins with the provider, so SQLite merges the models of the providers.
    """
    names = [*(c for c in _BY_NAME), *(c for c in columns if c not in set(_BY_NAME))]
    queries = []
    for number in range(providers):
        provider = bindparam(provider_name(number), type_=model_columns.provider.type)
        later = _later_names(provider, descending=descending) if is_after else []
        queries.append(
            select(*names).where(hint("likely", OWN), model_columns.provider == provider, *later)
        )
    found: Any = queries[0] if len(queries) == 1 else union_all(*queries)
    reference, *others = (found.selected_columns[column.name] for column in _BY_NAME)
    ordered = found.order_by(reference.desc() if descending else reference, *others)
    merged = ordered.limit(LIMIT).subquery()
    return select(*(merged.c[column.key] for column in columns))


def _later_names(provider: ColumnElement[str], *, descending: bool) -> list[ColumnElement[bool]]:
    """Return the condition of the models of a provider after a model, by reference."""
    after = {c.name: bindparam(f"after_{c.name}", type_=c.type) for c in _BY_NAME}
    column, version = model_columns.reference, model_columns.version
    # The first condition is where SQLite begins in the index.
    at_or_later = column <= after["reference"] if descending else column >= after["reference"]
    rest = tuple_(provider, version) > tuple_(after["provider"], after["version"])
    return [at_or_later, or_(column != after["reference"], rest)]
