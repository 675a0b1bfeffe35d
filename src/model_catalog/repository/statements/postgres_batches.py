"""One statement of PostgreSQL's for several models: what they are given comes as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, cast

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Select,
    Table,
    TableValuedAlias,
    Text,
    any_,
    bindparam,
    column,
    func,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY

from model_catalog.domain.fields import KEY
from model_catalog.execution.prepared_statement import Prepared, Row, stored
from model_catalog.mapping.tables import ModelAlias
from model_catalog.repository.statements.filters import TAGS, C
from model_catalog.repository.statements.row_conversion import join_of, known

_ALIASES: Final = cast("Table", ModelAlias.__table__)
_DIALECT: Final = "postgresql"


def given(columns: Iterable[Column[Any]]) -> TableValuedAlias:
    """
    The values of some columns for several rows, numbered from 1 in `n`, as a table.

    As arrays, because then the text of the statement is the same however many rows there are.
    """
    columns = list(columns)
    arrays = (bindparam(f"all_{each.key}", type_=ARRAY(each.type)) for each in columns)
    return (
        func.unnest(*arrays)
        .table_valued(*(column(each.key, each.type) for each in columns), with_ordinality="n")
        .render_derived(name="given")
    )


def arrays_of(names: Iterable[str], rows: Collection[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What is `given`."""
    return {f"all_{name}": [row[name] for row in rows] for name in names}


def find_each(connection: Connection, keys: Sequence[Mapping[str, Any]]) -> Sequence[Sequence[Row]]:
    """For each key the row of the model that it means, or none; without a version the newest."""
    found: list[list[Row]] = [[] for _ in keys]
    for row in _each_by_key().rows(connection, arrays_of(KEY, keys)):
        *fields, number = row
        found[number - 1].append(fields)
    return found


@cache
def _each_by_key() -> Prepared:
    wanted = given(Column(name, Text()) for name in KEY)
    # The model is asked for by its id, as alone: what it is chosen by is read from an index.
    meant = _meant(wanted).lateral("meant")
    statement = known(_DIALECT).add_columns(stored(wanted.c.n))
    return Prepared(
        statement.select_from(wanted.join(meant, true()).join(C.id.table, C.id == meant.c.id))
    )


def _meant(wanted: TableValuedAlias) -> Select[int]:
    # Where there is no version none is exact, and the newest is the first.
    models = C.id.table.alias("its")
    its, key = models.c, wanted.c
    aliased = (
        select(_ALIASES.c.model_id)
        .where(
            _ALIASES.c.provider == key.provider,
            _ALIASES.c.reference == key.reference,
            _ALIASES.c.alias == key.version,
        )
        .correlate(wanted)
    )
    exact = its.version == key.version
    return (
        select(its.id)
        .where(
            its.provider == key.provider,
            its.reference == key.reference,
            key.version.is_(None) | exact | (its.id == aliased.scalar_subquery()),
        )
        .order_by(
            func.coalesce(exact, False).desc(), its.downloaded_at.desc().nulls_last(), its.id.desc()
        )
        .limit(1)
        .correlate(wanted)
    )


def tags_of(connection: Connection, ids: Sequence[int]) -> dict[int, str]:
    """The tags of models in one text each, of those that have any."""
    rows = _tags_of_each().rows(connection, {"ids": ids})
    return dict(map(tuple, rows))


@cache
def _tags_of_each() -> Prepared:
    model_id = TAGS.c.model_id
    among = model_id == any_(bindparam("ids", type_=ARRAY(BigInteger())))
    tags = stored(join_of(_DIALECT, TAGS.c.tag))
    return Prepared(select(stored(model_id), tags).where(among).group_by(model_id))
