"""Rows found by their keys in the event loop's own thread, where a host has chosen so."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine

from model_catalog.connection.database_info import driver_connection
from model_catalog.connection.engines import file_guard_of
from model_catalog.connection.error_mapping import map_errors
from model_catalog.errors import CatalogBusyError, InvalidModelError
from model_catalog.execution.executor import Operation
from model_catalog.execution.prepared_statement import PreparedStatement, Row

T = TypeVar("T")

ReadMode: TypeAlias = Literal["threads", "inline"]
"""Where single models are read from a SQLite file: in threads, or in the event loop's own."""


def validate_read_mode(value: str) -> None:
    """Raise InvalidModelError for what is no Reads."""
    if value not in ("threads", "inline"):
        raise InvalidModelError("reads", value, "is none of threads, inline")


class InlineReader:
    """
    A connection of the loop's thread, which waits for nobody.

    Made by the first call. Every statement is a snapshot of its own and is read to its end: what is
    found is what was committed before, by whomever.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine: Final = engine
        self._name: Final = name
        self._check_file_unchanged = file_guard_of(engine).check_unchanged
        self._connection: Connection | None = None

    def rows(self, statement: PreparedStatement, values: Mapping[str, Any]) -> Sequence[Row] | None:
        """The rows that a statement finds; None where that would have to wait for a lock."""
        try:
            with map_errors(self._name):
                connection = self._connection or self._connect()
                self._check_file_unchanged()
                return statement.rows(connection, values)
        except CatalogBusyError:
            return None

    def try_run(self, operation: Operation[Any, T]) -> tuple[T] | None:
        """Return the result of a lookup in a tuple, or None if it would have to wait for a lock."""
        try:
            with map_errors(self._name):
                connection = self._connection or self._connect()
                self._check_file_unchanged()
                return (operation.run_one(connection, operation.value),)
        except CatalogBusyError:
            return None

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        driver_connection(connection).execute("PRAGMA busy_timeout = 0")
        self._connection = connection
        return connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
