"""Prepared statements: SQLAlchemy statements that are compiled once and then only executed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    CursorResult,
    Delete,
    Dialect,
    Insert,
    Select,
    Update,
    type_coerce,
)
from sqlalchemy.types import NullType
from sqlalchemy.util import await_

from model_catalog.connection.database_info import catalog_schema
from model_catalog.execution.postgresql.driver_statements import fetch_from_driver, is_direct

# asyncpg cannot be cancelled while it sends more rows than the buffers of the sockets hold, because
# the server reads none while it waits for a lock. 100,000 rows then take 400 round trips, which is
# nothing beside the 100,000 executions.
_ROWS_AT_ONCE: Final = 250

# A program lists with a handful of combinations of filters and orders.
_MAX_SELECTS: Final = 500

# To convert as many takes 0.6 ms, and 2.5 ms if all columns are set.
_ROWS_PER_SLICE: Final = 250

T = TypeVar("T")

Row: TypeAlias = Sequence[Any]
"""The values of one row as the database stores them, without type conversion."""


def raw_column(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column whose values every driver returns as they are stored."""
    return type_coerce(column, NullType())


def sqlite_driver(connection: Connection) -> sqlite3.Connection | None:
    """Return the `sqlite3` connection below a SQLAlchemy connection; None with another driver."""
    driver = connection.connection.driver_connection
    return driver if isinstance(driver, sqlite3.Connection) else None


def convert_in_slices(
    connection: Connection,
    rows: Iterable[Row],
    convert: Callable[[Iterable[Row]], list[T]],
    row_count: int | None,
) -> list[T]:
    """
    Return what a function makes of the rows of a SELECT.

    `row_count` is the most rows that there are; None is an unknown number. With an asynchronous
    driver this runs in the event loop, which goes on after each 250 rows.
    """
    is_in_loop = connection.dialect.is_async and sqlite_driver(connection) is None
    if not is_in_loop or (row_count is not None and row_count <= _ROWS_PER_SLICE):
        return convert(rows)
    slices: Iterable[Sequence[Row]]
    if isinstance(rows, CursorResult):
        # In one step for all rows, SQLAlchemy would not release the GIL.
        slices = rows.partitions(_ROWS_PER_SLICE)
    else:
        slices = _take_slices(rows if isinstance(rows, list) else list(rows))
    converted: list[T] = []
    for part in slices:
        converted += convert(part)
        if len(part) == _ROWS_PER_SLICE:
            await_(asyncio.sleep(0))
    return converted


def _take_slices(rows: list[Row]) -> Iterator[list[Row]]:
    """Yield the rows, and release each slice, so that its memory can be used again."""
    for start in range(0, len(rows), _ROWS_PER_SLICE):
        end = min(start + _ROWS_PER_SLICE, len(rows))
        part = rows[start:end]
        rows[start:end] = [()] * len(part)
        yield part


class PreparedStatement:
    """
    A SQLAlchemy statement that is compiled once and executed many times.

    The driver executes the compiled text directly on a connection of `sqlite3`, and in a session of
    PostgreSQL that is the catalog's own. On the connections of a host (`aiosqlite`, `asyncpg`,
    `psycopg`), and behind a pooler, SQLAlchemy executes the statement. Both ways return raw values,
    which only works for a statement that selects `raw_column`s.
    """

    # Executing on the driver is the one bypass of SQLAlchemy here. It costs 6.9 us for a lookup by
    # key instead of 21 us, and 12.5 us for an upsert instead of 29.5 us (measured on a database in
    # memory). Its price: `echo`, `before_cursor_execute` and tracing do not see these statements,
    # and their errors are `sqlite3.Error` instead of `sqlalchemy.exc.DBAPIError`. On PostgreSQL it
    # takes 0.1 ms less for a lookup by key.

    def __init__(
        self,
        statement: Select[Any] | CompoundSelect[Any] | Insert | Update | Delete,
        names: Iterable[str] | None = None,
    ) -> None:
        """Prepare a statement; `names` are the columns that an INSERT sets."""
        self._statement: Final = statement
        self._names: Final = None if names is None else list(names)
        self._compiled: _Compiled | None = None
        self._compiled_for_server: dict[tuple[str, str | None], _Compiled] = {}

    def fetch_all(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Row]:
        """Execute the statement with these parameters, and return all rows."""
        driver = sqlite_driver(connection)
        if driver is not None:
            return self.fetch_all_from_driver(driver, connection.dialect, values)
        if is_direct(connection):
            return self._fetch_all_from_server(connection, values)
        return connection.execute(self._statement, values).all()

    def _fetch_all_from_server(
        self, connection: Connection, values: Mapping[str, Any]
    ) -> Sequence[Row]:
        """Execute the statement on the driver of a session of PostgreSQL, and return all rows."""
        dialect, schema = connection.dialect, catalog_schema(connection)
        compiled = self._compiled_for_server.get((dialect.driver, schema))
        if compiled is None:
            options = {} if schema is None else schema_options(schema)
            compiled = _compile(self._statement, self._names, dialect, **options)
            self._compiled_for_server[dialect.driver, schema] = compiled
        return fetch_from_driver(
            connection, compiled.text, compiled.names, compiled.parameters(values)
        )

    def fetch_all_from_driver(
        self, driver: sqlite3.Connection, dialect: Dialect, values: Mapping[str, Any]
    ) -> list[Row]:
        """Execute the statement on a `sqlite3` connection, and return all rows."""
        compiled = self._compile_once(dialect)
        return driver.execute(compiled.text, compiled.parameters(values)).fetchall()

    def iterate(self, connection: Connection, values: Mapping[str, Any]) -> Iterable[Row]:
        """Execute the statement, and return its rows as an iterator that reads from the cursor."""
        driver = sqlite_driver(connection)
        if driver is not None:
            compiled = self._compile_once(connection.dialect)
            rows: Iterable[Row] = driver.execute(compiled.text, compiled.parameters(values))
            return rows
        if is_direct(connection):
            return self._fetch_all_from_server(connection, values)
        return connection.execute(self._statement, values)

    def insert_on_driver(
        self, driver: sqlite3.Connection, dialect: Dialect, values: Mapping[str, Any]
    ) -> int | None:
        """Execute an INSERT on `sqlite3`; return the new row's id, or None if none was inserted."""
        compiled = self._compile_once(dialect)
        cursor = driver.execute(compiled.text, compiled.parameters(values))
        return cursor.lastrowid if cursor.rowcount else None

    def execute_many(self, connection: Connection, columns: Mapping[str, Sequence[Any]]) -> int:
        """
        Execute the statement once for each row; `columns` has the values of each parameter.

        Returns the number of rows that changed. It is unknown, and too small, with some drivers.
        """
        driver = sqlite_driver(connection)
        if driver is not None:
            compiled = self._compile_once(connection.dialect)
            return driver.executemany(compiled.text, compiled.parameter_rows(columns)).rowcount
        rows = zip(*columns.values(), strict=True)
        changed = 0
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            values = [dict(zip(columns, row, strict=True)) for row in part]
            changed += max(connection.execute(self._statement, values).rowcount, 0)
        return changed

    def _compile_once(self, dialect: Dialect) -> _Compiled:
        if self._compiled is None:
            self._compiled = _compile(self._statement, self._names, dialect)
        return self._compiled


def fetch_cached(
    connection: Connection, statement: Select[Any], values: Mapping[str, Any]
) -> Iterable[Row]:
    """
    Execute a SELECT of raw values that was built for this call, and return its rows.

    In the catalog's own sessions of PostgreSQL the driver executes it. The text is compiled once
    for all statements that differ in their values only.
    """
    # SQLAlchemy's own cache has this key, and no public name for it. Its `execute` takes 0.25 ms
    # more for a page of 50: it describes each column of the result, once for each execution.
    key = statement._generate_cache_key() if is_direct(connection) else None  # noqa: SLF001
    if key is None:
        return connection.execute(statement, values)
    dialect, schema = connection.dialect, catalog_schema(connection)
    full_key = (dialect.driver, schema, key.key)
    select = _compiled_selects.get(full_key)
    if select is None:
        options = {} if schema is None else schema_options(schema)
        compiled: Any = statement.compile(dialect=dialect, cache_key=key, **options)
        select = _CompiledSelect(compiled, f"{compiled}", _ordered_names(compiled), {})
        for name in select.names:
            bound = compiled.binds[name]
            if convert := bound.type.dialect_impl(dialect).bind_processor(dialect):
                select.converters[name] = convert
        if len(_compiled_selects) >= _MAX_SELECTS:
            _compiled_selects.clear()
        _compiled_selects[full_key] = select
    if select.compiled.post_compile_params:
        # A list of values is part of the text.
        return connection.execute(statement, values)
    given = select.compiled.construct_params(values, extracted_parameters=key.bindparams)
    for name, convert in select.converters.items():
        given[name] = convert(given[name])
    return fetch_from_driver(
        connection, select.text, select.names, [given[name] for name in select.names]
    )


class _CompiledSelect(NamedTuple):
    """The SQL text of a SELECT that was built for a call, for others that differ in values only."""

    compiled: Any
    text: str
    names: tuple[str, ...]
    """The parameters in the order of their placeholders."""
    converters: dict[str, Callable[[Any], Any]]


_compiled_selects: Final[dict[tuple[Any, ...], _CompiledSelect]] = {}


class _Compiled(NamedTuple):
    """The SQL text of a statement, and how its parameters are made."""

    text: str
    names: tuple[str, ...]
    """The parameters in the order of their placeholders."""
    to_tuple: Callable[[dict[str, Any]], tuple[Any, ...]]
    constants: dict[str, Any]
    """The parameters whose values are part of the statement."""
    converters: tuple[tuple[str, Callable[[Any], Any]], ...]
    """The parameters that need type conversion, with the function that converts."""

    def parameters(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the parameters of one execution."""
        converted = {**self.constants, **values}
        for name, convert in self.converters:
            converted[name] = convert(converted[name])
        return self.to_tuple(converted)

    def parameter_rows(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
        """Return the parameters of each execution, for columns of values of the same length."""
        converted: dict[str, Iterable[Any]] = {
            **{name: repeat(value) for name, value in self.constants.items()},
            **columns,
        }
        for name, convert in self.converters:
            converted[name] = _convert_column(convert, columns[name])
        return zip(*(converted[name] for name in self.names), strict=False)


def _convert_column(convert: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    """Convert every value, and equal values only once if most of them are repeated."""
    distinct = set(values)
    if 2 * len(distinct) > len(values):
        return [convert(value) for value in values]
    converted = {value: convert(value) for value in distinct}
    return list(map(converted.__getitem__, values))


def _compile(
    statement: Select[Any] | CompoundSelect[Any] | Insert | Update | Delete,
    names: list[str] | None,
    dialect: Dialect,
    **options: Any,
) -> _Compiled:
    compiled = statement.compile(dialect=dialect, column_keys=names, **options)
    if missing := [column.key for column in getattr(compiled, "insert_prefetch", ())]:
        raise TypeError(
            f"SQLAlchemy would compute defaults for {', '.join(missing)}: "
            "prepare the statement with these columns"
        )
    # Named placeholders would not need `positiontup`. But `sqlite3` looks each of them up in a
    # dict, which made an upsert up to twice as slow, and `executemany` with tuples needs positions.
    ordered = _ordered_names(compiled)
    constants = {}
    converters = []
    for name in dict.fromkeys(ordered):
        bound = compiled.binds[name]
        convert = bound.type.dialect_impl(dialect).bind_processor(dialect)
        if not bound.required:
            constants[name] = convert(bound.value) if convert else bound.value
        elif convert:
            converters.append((name, convert))
    return _Compiled(str(compiled), ordered, _tuple_getter(ordered), constants, tuple(converters))


def _ordered_names(compiled: Any) -> tuple[str, ...]:
    """Return the names of the parameters in the order of their placeholders."""
    # psycopg has named placeholders, and keeps the text that it makes of them.
    names = compiled.positiontup
    return tuple(dict.fromkeys(compiled.bind_names.values()) if names is None else names)


def schema_options(schema: str) -> dict[str, Any]:
    """Return the options to compile a statement for the tables of a schema."""
    return {"schema_translate_map": {None: schema}, "render_schema_translate": True}


def _tuple_getter(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Return a function that returns the values of these names as a tuple, in this order."""
    if len(names) > 1:
        return itemgetter(*names)
    # An itemgetter of one name returns the value itself instead of a tuple.
    return lambda values: tuple(values[name] for name in names)
