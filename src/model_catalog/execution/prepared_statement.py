"""A statement that is made once, and afterwards only given its values."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Dialect,
    Insert,
    Select,
    Update,
    type_coerce,
)
from sqlalchemy.types import NullType

Row = Sequence[Any]
"""The values of a row as they are stored."""


Find: TypeAlias = Callable[[Connection, Sequence[Mapping[str, Any]]], Sequence[Sequence[Row]]]
"""What finds, in one query, the rows of each of several values."""


def raw_column(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column whose values come as they are stored, from whatever driver."""
    return type_coerce(column, NullType())


class PreparedStatement:
    """
    A statement, and its text and its parameters as SQLite's driver takes them.

    In a thread of our own that driver is given them as they are: what SQLAlchemy does with a
    statement it knows already takes it ten times as long as SQLite takes to answer. Elsewhere, and
    on another database, SQLAlchemy runs it. What it returns is `stored` either way.
    """

    def __init__(
        self,
        statement: Select[Any] | Insert | Update | Delete,
        names: Iterable[str] | None = None,
        of_several: Find | None = None,
        sooner: PreparedStatement | None = None,
    ) -> None:
        """
        `names` are an INSERT's columns; `of_several` finds what several values find.

        `sooner` takes less time, and where it finds one row that is the one: in a thread of our own
        it is asked first.
        """
        self.of_several: Final = of_several
        self._sooner: Final = sooner
        self._statement: Final = statement
        self._names: Final = None if names is None else list(names)
        self._direct: _Compiled | None = None

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Row]:
        """The rows that it finds, or returns."""
        driver = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            if self._sooner is not None:
                rows = self._sooner.of_driver(driver, connection.dialect, values)
                if len(rows) == 1:
                    return rows
            return self.of_driver(driver, connection.dialect, values)
        return connection.execute(self._statement, values).all()

    def of_driver(
        self, driver: sqlite3.Connection, dialect: Dialect, values: Mapping[str, Any]
    ) -> list[Row]:
        """The rows that it finds in SQLite, asked of the driver."""
        direct = self._for(dialect)
        return driver.execute(direct.text, direct.parameters(values)).fetchall()

    def each(self, connection: Connection, values: Mapping[str, Any]) -> Iterable[Row]:
        """The same one after the other, for as long as nothing else is done with the connection."""
        driver = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            direct = self._for(connection.dialect)
            found: Iterable[Row] = driver.execute(direct.text, direct.parameters(values))
            return found
        return connection.execute(self._statement, values)

    def inserted_id(self, connection: Connection, values: Mapping[str, Any]) -> int | None:
        """
        The number of the row that it inserts; None where it inserts none.

        It is tried where SQLite's driver can be asked directly, and nowhere else: to have it from
        RETURNING takes as long again as to insert the row.
        """
        driver = connection.connection.driver_connection
        if not isinstance(driver, sqlite3.Connection):
            return None
        direct = self._for(connection.dialect)
        cursor = driver.execute(direct.text, direct.parameters(values))
        return cursor.lastrowid if cursor.rowcount else None

    def run(self, connection: Connection, columns: Mapping[str, Sequence[Any]]) -> None:
        """Once for each row of these columns."""
        driver = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            direct = self._for(connection.dialect)
            driver.executemany(direct.text, direct.of_each(columns))
        else:
            rows = zip(*columns.values(), strict=True)
            connection.execute(
                self._statement, [dict(zip(columns, row, strict=True)) for row in rows]
            )

    def _for(self, dialect: Dialect) -> _Compiled:
        if self._direct is None:
            self._direct = _compile(self._statement, self._names, dialect)
        return self._direct


@dataclass(frozen=True, slots=True)
class _Compiled:
    text: str
    names: tuple[str, ...]
    pick: Callable[[dict[str, Any]], tuple[Any, ...]]
    constants: dict[str, Any]
    writers: tuple[tuple[str, Callable[[Any], Any]], ...]

    def parameters(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        found = {**self.constants, **values}
        for name, write in self.writers:
            found[name] = write(found[name])
        return self.pick(found)

    def of_each(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
        """The parameters of each row."""
        found: dict[str, Iterable[Any]] = {
            **{name: repeat(value) for name, value in self.constants.items()},
            **columns,
        }
        for name, write in self.writers:
            found[name] = _convert_column(write, columns[name])
        return zip(*(found[name] for name in self.names), strict=False)


def _convert_column(write: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    different = set(values)
    if 2 * len(different) > len(values):
        return [write(value) for value in values]
    written = {value: write(value) for value in different}
    return [written[value] for value in values]


def _compile(
    statement: Select[Any] | Insert | Update | Delete, names: list[str] | None, dialect: Dialect
) -> _Compiled:
    compiled = statement.compile(dialect=dialect, column_keys=names)
    if left := [column.key for column in getattr(compiled, "insert_prefetch", ())]:
        raise TypeError(f"SQLAlchemy would make values of {', '.join(left)}: prepare it with them")
    order = tuple(compiled.positiontup or ())
    constants = {}
    writers = []
    for name in dict.fromkeys(order):
        bound = compiled.binds[name]
        write = bound.type.dialect_impl(dialect).bind_processor(dialect)
        if not bound.required:
            constants[name] = write(bound.value) if write else bound.value
        elif write:
            writers.append((name, write))
    return _Compiled(str(compiled), order, _tuple_getter(order), constants, tuple(writers))


def _tuple_getter(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """What takes the values of these names, in their order."""
    if len(names) > 1:
        return itemgetter(*names)
    # Of one name itemgetter makes no tuple.
    return lambda values: tuple(values[name] for name in names)
