"""Runs the operations of another executor on the tables of one PostgreSQL schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.connection.database_info import use_schema
from model_catalog.connection.target import name_with_schema, validate_schema
from model_catalog.execution.executor import Executor, Operation

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")


class SchemaExecutor:
    """
    Runs operations of a host's sessions on the tables of one schema.

    It exists because the connection of a host may belong to a session whose own tables are in
    another schema. So the schema is an option of the connection only while an operation runs.
    `open_catalog` sets it on its engine instead, which costs nothing in a call.
    """

    def __init__(self, executor: Executor, schema: str) -> None:
        self._executor = executor
        self._schema = schema
        database = executor.database
        validate_schema(schema, database.dialect, database.name)
        self.database = replace(database, name=name_with_schema(database.name, schema))
        self.timeout_s = executor.timeout_s

    @property
    def is_in_transaction(self) -> bool:
        """Whether the operations of the other executor are part of an open transaction."""
        return self._executor.is_in_transaction

    def forbid_nested_write(self) -> None:
        """Raise TransactionError if a write would wait for the caller's own open transaction."""
        self._executor.forbid_nested_write()

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation, and return its result."""

        def run_in_schema(connection: Connection, value: Any) -> T:
            with use_schema(connection, self._schema):
                return operation.run_one(connection, value)

        in_schema = replace(operation, run_one=run_in_schema, run_many=None, schema=self._schema)
        return await self._executor.run(in_schema)

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open one transaction for all operations that are run in the executor it yields."""
        async with self._executor.transaction() as executor:
            yield SchemaExecutor(executor, self._schema)
