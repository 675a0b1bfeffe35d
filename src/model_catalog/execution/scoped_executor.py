"""Runs the operations of another executor on the tables of one schema and the rows of one host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.connection.database_info import DatabaseInfo, use_scope
from model_catalog.connection.target import name_with_schema, validate_schema
from model_catalog.execution.executor import Executor, Operation

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")


class ScopedExecutor:
    """
    Runs operations of a program's sessions on the tables of one schema, for one host, or both.

    It exists because a connection of the program may belong to a session whose own tables are in
    another schema, or to catalogs of several hosts. So both are options of the connection only
    while an operation runs. `open_catalog` sets them on its engine instead, which costs nothing in
    a call.
    """

    def __init__(
        self, executor: Executor, schema: str | None = None, host: str | None = None
    ) -> None:
        """Make one; None keeps the schema or the host of `executor`."""
        self._executor = executor
        self._schema = schema
        self._host = host
        # The same function each time: operations with the same `run_many` share a batch.
        self._run_many: dict[object, Callable[[Connection, Sequence[Any]], Sequence[Any]]] = {}
        validate_schema(schema, executor.database.dialect, executor.database.name)
        self.timeout_s = executor.timeout_s

    @property
    def database(self) -> DatabaseInfo:
        """The facts that the other executor knows now, with the schema and the host of this one."""
        info = self._executor.database
        return replace(
            info,
            name=name_with_schema(info.name, self._schema),
            host=info.host if self._host is None else self._host,
        )

    @property
    def is_in_transaction(self) -> bool:
        """Whether the operations of the other executor are part of an open transaction."""
        return self._executor.is_in_transaction

    def forbid_nested_write(self) -> None:
        """Raise TransactionError if a write would wait for the caller's own open transaction."""
        self._executor.forbid_nested_write()

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation, and return its result."""
        run_many = operation.run_many
        if run_many is not None:
            scoped = self._run_many.get(run_many)
            if scoped is None:
                scoped = self._run_many[run_many] = self._in_scope(run_many)
            run_many = scoped
        return await self._executor.run(
            replace(
                operation,
                run_one=self._in_scope(operation.run_one),
                run_many=run_many,
                schema=self._schema if operation.schema is None else operation.schema,
            )
        )

    def _in_scope(self, run: Callable[[Connection, I], T]) -> Callable[[Connection, I], T]:
        """Return a function that runs another with the options of this scope."""

        def run_in_scope(connection: Connection, value: I) -> T:
            with use_scope(connection, self._schema, self._host):
                return run(connection, value)

        return run_in_scope

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open one transaction for all operations that are run in the executor it yields."""
        async with self._executor.transaction() as executor:
            yield ScopedExecutor(executor, self._schema, self._host)
