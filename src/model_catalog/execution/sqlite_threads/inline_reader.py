"""Rows found by their keys in the event loop's own thread, where a host has chosen so."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import Connection, Engine

from model_catalog.connection.engines import watch_of
from model_catalog.connection.error_mapping import translated
from model_catalog.errors import CatalogBusyError, InvalidModelError
from model_catalog.execution.prepared_statement import Prepared, Row

Reads: TypeAlias = Literal["threads", "inline"]
"""Where single models are read from a SQLite file: in threads, or in the event loop's own."""


def require_reads(value: str) -> None:
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
        self._require_same_file = watch_of(engine).require_same
        self._connection: Connection | None = None

    def rows(self, statement: Prepared, values: Mapping[str, Any]) -> Sequence[Row] | None:
        """The rows that a statement finds; None where that would have to wait for a lock."""
        try:
            with translated(self._name):
                connection = self._connection or self._connect()
                self._require_same_file()
                return statement.rows(connection, values)
        except CatalogBusyError:
            return None

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA busy_timeout = 0")
        self._connection = connection
        return connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
