"""Runs the operations of another executor, and sees what they wait for and what they change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Connection

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.connection.database_info import DatabaseInfo
from model_catalog.execution.executor import Executor, Operation
from model_catalog.execution.observation.calls import (
    CallInProgress,
    current_call,
    observed_class,
)
from model_catalog.execution.observation.changed_rows import (
    ChangedRows,
    Declaration,
    comparing,
    declaration_of,
    keeping,
)
from model_catalog.execution.observation.hooks import Hooks, Journal

if TYPE_CHECKING:
    from model_catalog.execution.observation.records import CallHook, ChangeHook

T = TypeVar("T")

# The packages whose functions run operations themselves. All others are run by public methods.
_OUTER_PACKAGES: Final = frozenset({"downloads", "upkeep"})


class ObservedExecutor:
    """
    Runs the operations of another executor for a catalog with hooks.

    It exists so that a catalog without hooks has nothing to do for them. The wrapped functions of
    an operation note when they begin. If there is a hook for changes, they also read the changed
    models before and after, in the transaction of the operation.
    """

    def __init__(self, executor: Executor, hooks: Hooks) -> None:
        self.wrapped: Final = executor
        self.hooks: Final = hooks
        self.timeout_s = executor.timeout_s
        # The same function each time: operations with the same `run_many` share a batch.
        self._run_many: dict[object, Callable[[Connection, Sequence[_Item]], Sequence[Any]]] = {}

    @property
    def database(self) -> DatabaseInfo:
        """The facts that the other executor knows now."""
        return self.wrapped.database

    @property
    def is_in_transaction(self) -> bool:
        """Whether the operations of the other executor are part of an open transaction."""
        return self.wrapped.is_in_transaction

    def forbid_nested_write(self) -> None:
        """Raise TransactionError if a write would wait for the caller's own open transaction."""
        self.wrapped.forbid_nested_write()

    async def run(self, operation: Operation[Any, T]) -> T:
        """Run an operation, and return its result."""
        function = operation.run_one
        call = current_call(self.hooks)
        name = _operation_name(function) if call is None and self.hooks.sees_calls else None
        if name is None:
            return await self._run(operation, call)
        call = CallInProgress(self.hooks, name)
        with call.telling(), call.working():
            return await self._run(operation, call)

    async def _run(self, operation: Operation[Any, T], call: CallInProgress | None) -> T:
        declared = None
        if operation.writes and self.hooks.sees_changes:
            declared = declaration_of(operation.run_one)
        journal = None if declared is None else Journal(self.hooks)
        item = _Item(operation.value, journal)
        submitted_s = perf_counter()
        try:
            result = await self.wrapped.run(self._observed(operation, item, declared))
        finally:
            if call is not None:
                call.add_wait((item.began_s or perf_counter()) - submitted_s)
            if journal is not None and not self.is_in_transaction:
                journal.drop()
        if journal is not None and not self.is_in_transaction:
            await self.hooks.wait_for(item.told_by)
        return result

    def _observed(
        self, operation: Operation[Any, T], item: _Item, declared: Declaration | None
    ) -> Operation[Any, T]:
        run_one, statement = operation.run_one, operation.run_as_statement

        def observed(connection: Connection, item: _Item) -> T:
            item.begin()
            result = _run_recorded(connection, run_one, item.value, declared, [item])
            self._prepare(item)
            return result

        def observed_statement(connection: Connection, item: _Item) -> T:
            item.begin()
            return (statement or run_one)(connection, item.value)

        # Before and after one statement, other statements read the changed rows.
        is_statement = statement is not None and declared is None
        return replace(
            operation,
            run_one=observed,
            value=item,
            run_many=self._observed_many(operation, declared),
            run_as_statement=observed_statement if is_statement else None,
            on_commit=operation.on_commit if item.journal is None else item.journal,
        )

    def _prepare(self, item: _Item) -> None:
        # In an open transaction TransactionExecutor does that when it commits.
        if item.journal is not None and not self.is_in_transaction:
            item.journal.prepare()

    def _observed_many(
        self, operation: Operation[Any, Any], declared: Declaration | None
    ) -> Callable[[Connection, Sequence[_Item]], Sequence[Any]] | None:
        run_many = operation.run_many
        if run_many is None:
            return None
        observed = self._run_many.get(run_many)
        if observed is None:

            def observed(connection: Connection, items: Sequence[_Item]) -> Sequence[Any]:
                for item in items:
                    item.begin()
                    item.told_by = items[0].journal
                values = [item.value for item in items]
                results = _run_recorded(connection, run_many, values, declared, items)
                self._prepare(items[0])
                return results

            self._run_many[run_many] = observed
        return observed

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Executor]:
        """Open one transaction for all operations that are run in the executor it yields."""
        async with self.wrapped.transaction() as executor:
            yield ObservedExecutor(executor, self.hooks)
        if not self.is_in_transaction:
            await self.hooks.wait_for(self.hooks.last_prepared)


class _Item:
    """The value of an operation, when it began, and what it changes."""

    __slots__ = ("began_s", "journal", "told_by", "value")

    def __init__(self, value: Any, journal: Journal | None) -> None:
        self.value = value
        self.journal = journal
        self.told_by = journal
        """The journal with its changes, which is the first one of a batch."""
        self.began_s: float | None = None

    def begin(self) -> None:
        """Note that the operation runs now, perhaps again."""
        if self.began_s is None:
            self.began_s = perf_counter()
        self.told_by = self.journal
        if self.journal is not None:
            self.journal.clear()


def _run_recorded(
    connection: Connection,
    function: Callable[[Connection, Any], T],
    value: Any,
    declared: Declaration | None,
    items: Sequence[_Item],
) -> T:
    """Run a function; the first of the operations that it runs keeps what it changes."""
    journal = items[0].journal
    if declared is None or journal is None:
        return function(connection, value)
    with ExitStack() as stack:
        stack.enter_context(keeping(journal))
        if declared.select is not None:
            selected = [declared.select(connection, item.value) for item in items]
            rows = ChangedRows(
                [each for rows in selected for each in rows.where],
                [each for rows in selected for each in rows.keys],
                [each for rows in selected for each in rows.ids],
            )
            stack.enter_context(comparing(connection, rows, declared.children, journal))
        return function(connection, value)


def _operation_name(function: Callable[..., Any]) -> str | None:
    """Return the name of an operation that no public method runs; None for all others."""
    package = function.__module__.split(".")[1]
    return f"{package}.{function.__name__}" if package in _OUTER_PACKAGES else None


def observe(
    executor: Executor, on_call: CallHook | None, on_change: ChangeHook | None
) -> ObservedExecutor:
    """Return an executor that tells hooks of calls and changes. Raises InvalidModelError."""
    return ObservedExecutor(executor, Hooks(on_call, on_change, executor.database.name))


def observe_calls(target: object, executor: Executor, prefix: str = "") -> None:
    """Have the methods of an object tell the hook of their calls, if its executor has one."""
    if isinstance(executor, ObservedExecutor) and executor.hooks.sees_calls:
        kind: Any = type(target)
        if not getattr(kind, "_is_observed", False):
            target.__class__ = observed_class(kind, prefix)


def unobserved(executor: Executor) -> Executor:
    """Return the executor that runs the operations of another."""
    return executor.wrapped if isinstance(executor, ObservedExecutor) else executor
