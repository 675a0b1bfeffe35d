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

from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.execution.prepared_statement import PreparedStatement, Row, raw_column
from model_catalog.mapping.tables import ModelAlias
from model_catalog.repository.statements.filters import TAGS, model_columns
from model_catalog.repository.statements.row_conversion import select_models, string_agg

_ALIASES: Final = cast("Table", ModelAlias.__table__)
_DIALECT: Final = "postgresql"


def array_table(columns: Iterable[Column[Any]]) -> TableValuedAlias:
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


def array_parameters(
    names: Iterable[str], rows: Collection[Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """What is `given`."""
    return {f"all_{name}": [row[name] for row in rows] for name in names}


def find_many(connection: Connection, keys: Sequence[Mapping[str, Any]]) -> Sequence[Sequence[Row]]:
    """For each key the row of the model that it means, or none; without a version the newest."""
    found: list[list[Row]] = [[] for _ in keys]
    for row in _each_by_key().rows(connection, array_parameters(KEY_FIELDS, keys)):
        *fields, number = row
        found[number - 1].append(fields)
    return found


@cache
def _each_by_key() -> PreparedStatement:
    wanted = array_table(Column(name, Text()) for name in KEY_FIELDS)
    # The model is asked for by its id, as alone: what it is chosen by is read from an index.
    meant = _meant(wanted).lateral("meant")
    statement = select_models(_DIALECT).add_columns(raw_column(wanted.c.n))
    return PreparedStatement(
        statement.select_from(
            wanted.join(meant, true()).join(model_columns.id.table, model_columns.id == meant.c.id)
        )
    )


def _meant(wanted: TableValuedAlias) -> Select[int]:
    # Where there is no version none is exact, and the newest is the first.
    models = model_columns.id.table.alias("its")
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


def load_tags(connection: Connection, ids: Sequence[int]) -> dict[int, str]:
    """The tags of models in one text each, of those that have any."""
    rows = _tags_of_each().rows(connection, {"ids": ids})
    return dict(map(tuple, rows))


@cache
def _tags_of_each() -> PreparedStatement:
    model_id = TAGS.c.model_id
    among = model_id == any_(bindparam("ids", type_=ARRAY(BigInteger())))
    tags = raw_column(string_agg(_DIALECT, TAGS.c.tag))
    return PreparedStatement(select(raw_column(model_id), tags).where(among).group_by(model_id))
