"""The columns in which models are selected, and the conversion of raw rows to `Model` objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import NoneType
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Integer,
    ScalarSelect,
    Select,
    case,
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
    UnixTimestamp,
    decode_path,
    decode_state,
    decode_timestamp,
)
from model_catalog.mapping.computed_fields import STORED_TAGS
from model_catalog.mapping.tables import Model, new_detached_model
from model_catalog.repository.statements.filters import EFFECTIVE_COLUMNS, MODELS, model_columns

# Of most models only the first columns are set. The second are set when files were examined, and
# all others are rarely set. Adjacent columns that are all NULL are found in one comparison. To fill
# a dict of 51 values takes 1.9 us. To copy one without values and set 17 in it takes 0.9 us.
_USUAL: Final = (
    *("id", "provider", "reference", "version", "host", "local_path", "size_bytes"),
    *("downloaded_at", "format", "architecture", "quantization", "license", "context_length"),
    *("parameter_count", "download_count", "use_count", "state"),
)
_EXAMINED: Final = (
    *("claimed_format", "claimed_architecture", "claimed_quantization", "claimed_license"),
    *("claimed_context_length", "claimed_parameter_count", "claimed_kind", "digest"),
    *("checked_at", "verified_at", "inventoried_at", "headers_read_at", "mount_point"),
)
MODEL_COLUMNS: Final = tuple(dict.fromkeys((*_USUAL, *_EXAMINED, *EFFECTIVE_COLUMNS)))
"""The columns of `select_models` in their order. The tags come after them."""

# Rows have few combinations of types: one for each set of fields that are not NULL.
_MAX_KNOWN_TYPES: Final = 10_000


class _Columns:
    """The names and types of the columns of a row, which ends with the text of the tags."""

    def __init__(self, names: Iterable[str]) -> None:
        kinds = {name: type(model_columns[name].type) for name in names}
        self.names: Final = (*kinds, None)
        self.types: Final = (
            *(int if issubclass(kind, Integer | UnixTimestamp) else str for kind in kinds.values()),
            str,
        )
        """The type of each value as it is read."""
        self.timestamps: Final = tuple(_indexes_of(UnixTimestamp, kinds))
        self.paths: Final = tuple(_indexes_of(PathText, kinds))
        self.known_types: Final[set[tuple[type, ...]]] = set()


def _indexes_of(wanted: type, kinds: Mapping[str, type]) -> Iterator[int]:
    return (index for index, kind in enumerate(kinds.values()) if kind is wanted)


_MODEL: Final = _Columns(MODEL_COLUMNS)
_PLAIN_ROW: Final = _Columns(EFFECTIVE_COLUMNS)
_STATE_INDEX: Final = _PLAIN_ROW.names.index("state")
_ATTRIBUTES: Final = (*(ATTRIBUTES[name] for name in MODEL_COLUMNS), STORED_TAGS)
_UNSET_MODEL: Final[dict[str, Any]] = {**dict.fromkeys(ATTRIBUTES.values()), STORED_TAGS: ()}


class _Section(NamedTuple):
    """Some adjacent columns of a row that are often all NULL."""

    place: slice
    unset: tuple[None, ...]
    """Their values, if all are NULL."""
    attributes: tuple[tuple[str, Callable[[Any], Any] | None], ...]
    """The attribute of each column, and the function that converts its values, if one does."""


def _section(start: int, end: int) -> _Section:
    converters: dict[int, Callable[[Any], Any]] = {
        **dict.fromkeys(_MODEL.timestamps, decode_timestamp),
        **dict.fromkeys(_MODEL.paths, decode_path),
        len(MODEL_COLUMNS): split_aggregate,
    }
    indexes = range(start, end)
    attributes = tuple((_ATTRIBUTES[index], converters.get(index)) for index in indexes)
    return _Section(slice(start, end), (None,) * len(indexes), attributes)


_DEFAULTS: Final = {ATTRIBUTES[name]: value for name, value in COLUMN_DEFAULTS.items()}
_INTERNAL_COLUMNS: Final = [
    column.key for column in model_columns if column.key not in EFFECTIVE_COLUMNS
]
_make_tuple: Final = tuple.__new__


def select_models(dialect: str) -> Select[Any]:
    """Select all columns of models as raw values, then their tags as one text, for `to_models`."""
    return _select_with_tags(dialect, {name: model_columns[name] for name in MODEL_COLUMNS})


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
    selected = select_fields(dialect)
    if dialect == "postgresql" and "_tags" in selected.selected_columns:
        # To look for the tags of each model takes a third of the server's time for a list. So it
        # looks once whether any model has tags.
        *fields, tags = selected.selected_columns
        has_tags = select(literal_column("1")).select_from(TAGS).exists()
        selected = select(*fields, raw_column(case((has_tags, tags))).label("_tags"))
    columns = selected.compile(dialect=compiler, compile_kwargs={"literal_binds": True}, **options)
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


_FIRST: Final = slice(len(_USUAL))
_SECTIONS: Final = (
    _section(len(_USUAL), len(_USUAL) + len(_EXAMINED)),
    _section(len(_USUAL) + len(_EXAMINED), len(_ATTRIBUTES)),
)


def to_model(row: Row) -> Model:
    """Convert a row of `select_models` to a model."""
    return to_model_of_server(_replace_odd_values(row, _MODEL))


def to_models(rows: Iterable[Row]) -> list[Model]:
    """Convert rows of `select_models` to models."""
    return [to_model_of_server(_replace_odd_values(row, _MODEL)) for row in rows]


def to_model_of_server(row: Row) -> Model:
    """Convert a row of PostgreSQL to a model: it has the types of its columns."""
    # A copy of a dict with the same keys is not resized, as a new one would be.
    values = _UNSET_MODEL.copy()
    # In the order of _USUAL. `update` takes 0.4 us longer.
    (
        values["id"],
        values["provider"],
        values["reference"],
        values["version"],
        values["host"],
        path,
        values["size_bytes"],
        downloaded_at,
        values["user_format"],
        values["user_architecture"],
        values["user_quantization"],
        values["user_license"],
        values["user_context_length"],
        values["user_parameter_count"],
        values["download_count"],
        values["use_count"],
        state,
    ) = row[_FIRST]
    values["local_path"] = decode_path(path)
    if downloaded_at is not None:
        values["downloaded_at"] = decode_timestamp(downloaded_at)
    values["state"] = decode_state(state)
    for section in _SECTIONS:
        if (part := row[section.place]) != section.unset:
            _set_section(values, section, part)
    return new_detached_model(values)


def to_models_of_server(rows: Iterable[Row]) -> list[Model]:
    """Convert rows of PostgreSQL to models, as `to_model_of_server` does."""
    return list(map(to_model_of_server, rows))


def _set_section(values: dict[str, Any], section: _Section, part: Row) -> None:
    for (name, convert), stored in zip(section.attributes, part, strict=False):
        if stored is not None:
            values[name] = stored if convert is None else convert(stored)


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
        values[:] = _replace_odd_values(row, _PLAIN_ROW)
        for index in _PLAIN_ROW.timestamps:
            if (timestamp := values[index]) is not None:
                values[index] = decode_timestamp(timestamp)
        for index in _PLAIN_ROW.paths:
            if (path := values[index]) is not None:
                values[index] = decode_path(path)
        values[_STATE_INDEX] = decode_state(values[_STATE_INDEX])
        tags = values[-1]
        values[-1] = () if tags is None else split_aggregate(tags)
        yield values


def _replace_odd_values(row: Row, columns: _Columns) -> Row:
    """
    Return a row without values of a wrong type, which another program wrote to SQLite.

    A field that may be None becomes None, and another one its default. A text that is not UTF-8
    is read as bytes, in which invalid bytes are replaced if the field may not be None.
    """
    types = tuple(map(type, row))
    if types in columns.known_types:
        return row
    values = list(row)
    is_odd = False
    for index, (found, expected) in enumerate(zip(types, columns.types, strict=True)):
        if found in (expected, NoneType) or (found is bytes and index in columns.paths):
            continue
        is_odd = True
        name = columns.names[index]
        if found is bytes and expected is str and not (name and is_nullable(name)):
            values[index] = values[index].decode("utf-8", "replace")
        else:
            values[index] = COLUMN_DEFAULTS[name] if name else None
    if not is_odd and len(columns.known_types) < _MAX_KNOWN_TYPES:
        columns.known_types.add(types)
    return tuple(values)
