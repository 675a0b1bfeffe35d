"""
Statements for many models at once, whose text does not depend on their number.

Their parameters are arrays on PostgreSQL, and JSON on SQLite.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Connection,
    TableValuedAlias,
    Text,
    any_,
    bindparam,
    column,
    func,
    select,
    true,
)

from model_catalog.connection.database_info import host_of
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.execution.prepared_statement import PreparedStatement, Row, raw_column
from model_catalog.mapping.child_tables import TAGS
from model_catalog.repository.statements.filters import model_columns
from model_catalog.repository.statements.model_key import (
    only_candidates,
    select_model_id_of_each,
)
from model_catalog.repository.statements.row_conversion import (
    MODEL_COLUMNS,
    select_models,
    string_agg,
)

_DIALECT: Final = "postgresql"

Key: TypeAlias = tuple[str, str, str | None]
"""A reference, a provider, and a version or None."""
_REFERENCE, _PROVIDER, _VERSION = map(MODEL_COLUMNS.index, ("reference", "provider", "version"))


def array_table(columns: Iterable[Column[Any]]) -> TableValuedAlias:
    """
    Return a table of the values of some columns for many rows; `n` numbers the rows from 1.

    The values are array parameters: the text of the statement does not depend on the row count.
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
    """Return the parameters of an `array_table` with these rows."""
    return {f"all_{name}": [row[name] for row in rows] for name in names}


def fetch_rows_by_keys(
    connection: Connection, keys: Sequence[Mapping[str, Any]]
) -> list[Row | None]:
    """Return for each key the row of the model that it means, or None."""
    rows: list[Row | None] = [None] * len(keys)
    values = {**array_parameters(KEY_FIELDS, keys), "host": host_of(connection)}
    for row in _select_by_keys().fetch_all(connection, values):
        rows[row[-1] - 1] = row[:-1]
    return rows


@cache
def _select_by_keys() -> PreparedStatement:
    keys = array_table(Column(name, Text()) for name in KEY_FIELDS)
    # The model is joined by its id, as in the statement for one key: PostgreSQL then reads the
    # columns that choose it from an index.
    chosen = select_model_id_of_each(
        keys, bindparam("host", type_=model_columns.host.type)
    ).lateral("chosen")
    models = select_models(_DIALECT).add_columns(raw_column(keys.c.n))
    return PreparedStatement(
        models.select_from(
            keys.join(chosen, true()).join(model_columns.id.table, model_columns.id == chosen.c.id)
        )
    )


def fetch_only_candidates(connection: Connection, keys: Iterable[Key]) -> dict[Key, Row]:
    """Return the rows of models on SQLite by the keys that mean them, see `only_candidates`."""
    found: dict[Key, Row] = {}
    exact: list[Key] = []
    unversioned: list[Key] = []
    for key in keys:
        (unversioned if key[2] is None else exact).append(key)
    host = host_of(connection)
    for newest, some in ((False, exact), (True, unversioned)):
        if some:
            statement = _select_only_candidates(newest=newest)
            rows = statement.fetch_all(connection, {"keys": json.dumps(some), "host": host})
            for row in rows:
                version = None if newest else row[_VERSION]
                found[row[_REFERENCE], row[_PROVIDER], version] = row
    return found


@cache
def _select_only_candidates(*, newest: bool) -> PreparedStatement:
    keys = func.json_each(bindparam("keys", type_=Text())).table_valued("value", name="given")
    host = bindparam("host", type_=model_columns.host.type)
    return PreparedStatement(only_candidates(select_models("sqlite"), host, keys, newest=newest))


def fetch_tags(connection: Connection, model_ids: Sequence[int]) -> dict[int, str]:
    """Return the tags of models by id, as `split_aggregate` splits them; without tags, no entry."""
    rows = _select_tags().fetch_all(connection, {"ids": model_ids})
    return dict(map(tuple, rows))


@cache
def _select_tags() -> PreparedStatement:
    model_id = TAGS.c.model_id
    selected = model_id == any_(bindparam("ids", type_=ARRAY(BigInteger())))
    tags = raw_column(string_agg(_DIALECT, TAGS.c.tag))
    return PreparedStatement(select(raw_column(model_id), tags).where(selected).group_by(model_id))
