"""The columns in which models are selected, and the conversion of raw rows to `Model` objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from operator import itemgetter
from types import NoneType
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Integer,
    ScalarSelect,
    Select,
    func,
    literal_column,
    select,
)
from sqlalchemy.types import NullType

from model_catalog.domain.fields import (
    ATTRIBUTES,
    COLUMN_DEFAULTS,
    HEADER_FIELDS,
    ModelRow,
    is_nullable,
)
from model_catalog.domain.search_text import fold_case
from model_catalog.execution.prepared_statement import Row, raw_column, schema_options
from model_catalog.mapping.child_tables import TAGS
from model_catalog.mapping.column_types import (
    TAG_SEPARATOR,
    PathText,
    StateText,
    UnixTimestamp,
    decode_path,
    decode_state,
    decode_timestamp,
)
from model_catalog.mapping.computed_fields import STORED_TAGS
from model_catalog.mapping.tables import Model, new_detached_model
from model_catalog.repository.statements.filters import EFFECTIVE_COLUMNS, MODELS, model_columns

_TYPES: Final = [type(model_columns[name].type) for name in EFFECTIVE_COLUMNS]
_TIMESTAMP_INDEXES: Final = tuple(
    index for index, kind in enumerate(_TYPES) if kind is UnixTimestamp
)
_PATH_INDEXES: Final = tuple(index for index, kind in enumerate(_TYPES) if kind is PathText)
_STATE_INDEX: Final = _TYPES.index(StateText)
# The type of each value as it is read. The last one is the text of the tags.
_STORED_TYPES: Final = (
    *(int if issubclass(kind, Integer | UnixTimestamp) else str for kind in _TYPES),
    str,
)
# Rows have few combinations of types: one for each set of fields that are not NULL.
_MAX_KNOWN_TYPES: Final = 10_000
_known_types: Final[set[tuple[type, ...]]] = set()
_NAMES: Final = (*EFFECTIVE_COLUMNS, None)
_ATTRIBUTES: Final = (*ATTRIBUTES.values(), STORED_TAGS)
_NO_VALUES: Final[dict[str, Any]] = dict.fromkeys(_ATTRIBUTES)
_LATER_TIMESTAMPS: Final = tuple(
    name for index in _TIMESTAMP_INDEXES if (name := _ATTRIBUTES[index]) != "downloaded_at"
)
_OTHER_PATHS: Final = tuple(
    name for index in _PATH_INDEXES if (name := _ATTRIBUTES[index]) != "local_path"
)
_RARELY_SET: Final = (*_LATER_TIMESTAMPS, *_OTHER_PATHS, STORED_TAGS)
_rarely_set: Final = itemgetter(*map(_ATTRIBUTES.index, _RARELY_SET))
_NEVER_SET: Final = (None,) * len(_RARELY_SET)
_DEFAULTS: Final = {ATTRIBUTES[name]: value for name, value in COLUMN_DEFAULTS.items()}
_INTERNAL_COLUMNS: Final = [
    column.key for column in model_columns if column.key not in EFFECTIVE_COLUMNS
]
_make_tuple: Final = tuple.__new__


def select_models(dialect: str) -> Select[Any]:
    """Select all columns of models as raw values, then their tags as one text, for `to_models`."""
    return _select_with_tags(dialect, {name: model_columns[name] for name in EFFECTIVE_COLUMNS})


def select_rows(dialect: str) -> Select[Any]:
    """Select as `select_models`, but the effective value of each HEADER field, for `to_rows`."""
    return _select_with_tags(dialect, EFFECTIVE_COLUMNS)


def as_text(
    select_fields: Callable[[str], Select[Any]], dialect: str, schema: str | None
) -> Select[Any]:
    """
    Return `select_models` or `select_rows` for a connection, with its columns as one text.

    `schema` is the schema of the catalog's tables. SQLAlchemy compares a statement with those that
    it has compiled. That takes 0.5 ms for fifty columns, and 0.02 ms for one text.
    """
    return select(_columns_text(select_fields, dialect, schema)).select_from(MODELS)


@cache
def _columns_text(
    select_fields: Callable[[str], Select[Any]], dialect: str, schema: str | None
) -> ColumnElement[Any]:
    # Neither of them doubles a percent sign. SQLAlchemy does that for the driver.
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite  # noqa: PLC0415

        compiler: Dialect = sqlite.dialect()
    else:
        # It takes 30 ms to import, and a SQLite file does not need it.
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415

        compiler = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    options = {} if schema is None else schema_options(schema)
    columns = select_fields(dialect).compile(
        dialect=compiler, compile_kwargs={"literal_binds": True}, **options
    )
    return literal_column(f"{columns}".removeprefix("SELECT ").rpartition("\nFROM ")[0], NullType())


def _select_with_tags(dialect: str, columns: Mapping[str, ColumnElement[Any]]) -> Select[Any]:
    fields = (raw_column(expression).label(name) for name, expression in columns.items())
    return select(*fields, raw_column(aggregate_children(dialect, TAGS.c.tag)).label("_tags"))


def aggregate_children(
    dialect: str, text: ColumnElement[str], *which: ColumnElement[bool]
) -> ScalarSelect[str]:
    """Select the texts of a model's child rows, joined in any order; NULL without child rows."""
    children = select(string_agg(dialect, text)).where(
        text.table.c.model_id == model_columns.id, *which
    )
    return children.correlate(MODELS).scalar_subquery()


def string_agg(dialect: str, text: ColumnElement[str]) -> ColumnElement[str]:
    """Join the texts of many rows to one text, for `split_aggregate`."""
    join = func.group_concat if dialect == "sqlite" else func.string_agg
    return join(text, TAG_SEPARATOR)


def split_aggregate(joined: str | bytes | None) -> tuple[str, ...]:
    """Return the texts that `string_agg` joined, sorted by their case-folded forms."""
    if joined is None:
        return ()
    if isinstance(joined, bytes):
        # Another program wrote a text to SQLite that is not UTF-8.
        joined = joined.decode("utf-8", "replace")
    return tuple(sorted(joined.split(TAG_SEPARATOR), key=lambda text: (fold_case(text), text)))


def to_model(row: Row) -> Model:
    """Convert a row of `select_models` to a model."""
    return _to_model(_replace_odd_values(row))


def to_models(rows: Iterable[Row]) -> list[Model]:
    """Convert rows of `select_models` to models."""
    return [_to_model(_replace_odd_values(row)) for row in rows]


def to_models_of_server(rows: Iterable[Row]) -> list[Model]:
    """Convert rows of PostgreSQL to models: they have the types of their columns."""
    return list(map(_to_model, rows))


def _to_model(row: Row) -> Model:
    # A copy of a dict with the same keys is not resized, as a new one would be. A check of the
    # length would take a tenth of the time.
    values = _NO_VALUES.copy()
    values.update(zip(_ATTRIBUTES, row, strict=False))
    if (timestamp := values["downloaded_at"]) is not None:
        values["downloaded_at"] = decode_timestamp(timestamp)
    values["local_path"] = decode_path(values["local_path"])
    values["state"] = decode_state(values["state"])
    if _rarely_set(row) == _NEVER_SET:
        values[STORED_TAGS] = ()
    else:
        _decode_rarely_set(values)
    return new_detached_model(values)


def _decode_rarely_set(values: dict[str, Any]) -> None:
    for name in _LATER_TIMESTAMPS:
        if (timestamp := values[name]) is not None:
            values[name] = decode_timestamp(timestamp)
    for name in _OTHER_PATHS:
        if (path := values[name]) is not None:
            values[name] = decode_path(path)
    values[STORED_TAGS] = split_aggregate(values[STORED_TAGS])


def to_rows(rows: Iterable[Row]) -> list[ModelRow]:
    """Convert rows of `select_rows` to plain tuples."""
    # As `ModelRow._make`, which would also check the length of each row.
    return [_make_tuple(ModelRow, values) for values in _decode(rows)]


def model_from_insert(model_id: int, row: Mapping[str, Any]) -> Model:
    """Return the model of a row that was just inserted, without reading it from the database."""
    values = {**_DEFAULTS, **row, "id": model_id, STORED_TAGS: ()}
    for name in _INTERNAL_COLUMNS:
        del values[name]
    for name in HEADER_FIELDS:
        if name in values:
            values[ATTRIBUTES[name]] = values.pop(name)
    return new_detached_model(values)


def _decode(rows: Iterable[Row]) -> Iterator[list[Any]]:
    """Yield the values of each row with times, paths, state and tags converted."""
    # The same list is yielded for each row: to make a new one would take as long as to read a row.
    values: list[Any] = []
    for row in rows:
        values[:] = _replace_odd_values(row)
        for index in _TIMESTAMP_INDEXES:
            if (timestamp := values[index]) is not None:
                values[index] = decode_timestamp(timestamp)
        for index in _PATH_INDEXES:
            if (path := values[index]) is not None:
                values[index] = decode_path(path)
        values[_STATE_INDEX] = decode_state(values[_STATE_INDEX])
        tags = values[-1]
        values[-1] = () if tags is None else split_aggregate(tags)
        yield values


def _replace_odd_values(row: Row) -> Row:
    """
    Return a row without values of a wrong type, which another program wrote to SQLite.

    A field that may be None becomes None, and another one its default. A text that is not UTF-8
    is read as bytes, in which invalid bytes are replaced if the field may not be None.
    """
    types = tuple(map(type, row))
    if types in _known_types:
        return row
    values = list(row)
    is_odd = False
    for index, (found, expected) in enumerate(zip(types, _STORED_TYPES, strict=True)):
        if found in (expected, NoneType) or (found is bytes and index in _PATH_INDEXES):
            continue
        is_odd = True
        name = _NAMES[index]
        if found is bytes and expected is str and not (name and is_nullable(name)):
            values[index] = values[index].decode("utf-8", "replace")
        else:
            values[index] = COLUMN_DEFAULTS[name] if name else None
    if not is_odd and len(_known_types) < _MAX_KNOWN_TYPES:
        _known_types.add(types)
    return values
