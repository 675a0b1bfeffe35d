"""Units of work on a server, by an engine of our own: those that come together are done as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from model_catalog.concurrency.batching import Coalescer
from model_catalog.concurrency.completion import MIN_TIMEOUT_S, Backoff, run_to_completion
from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.connection.timeouts import LOCK_WAIT_S
from model_catalog.errors import CatalogBusyError, CatalogError, CatalogUnavailableError
from model_catalog.execution.executor import Joint, Unit
from model_catalog.execution.interruption import InterruptibleRun
from model_catalog.execution.prepared_statement import Find, PreparedStatement, Row
from model_catalog.execution.session_executor import SessionExecutor

T = TypeVar("T")

# Of finds and of writes each: one that is stuck is not to hold up all that come after it, and more
# of them would leave less to be shared.
_MAX_CONCURRENT_BATCHES: Final = 4

# With less there would be none left for whoever has to do it again by himself.
_LEAST_SHARED_S: Final = 2 * LOCK_WAIT_S

# No statement of several callers runs for longer, nor for more than half of the time there is.
_BATCH_TIMEOUT_S: Final = 2.0


class PostgresExecutor(SessionExecutor):
    """
    Every unit is a transaction of its own, or of those who call at the same time.

    Not for a host's sessions or engine: they may be another database, or have another user, for
    each of its tasks.
    """

    def __init__(self, engine: AsyncEngine, timeout_s: float, home: LoopOwner) -> None:
        super().__init__(async_sessionmaker(engine), timeout_s, home)
        # A statement is its own snapshot, and what only looks into an index is over before a server
        # would stop it: around that BEGIN, limits and COMMIT would be three round trips more. Where
        # it has to wait for a lock it is the driver that ends it.
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._finds: dict[
            Find, Coalescer[tuple[PreparedStatement, Mapping[str, Any]], Sequence[Row]]
        ] = {}
        self._writes: dict[object, Coalescer[Joint[Any, Any], Any]] = {}

    async def find(self, statement: PreparedStatement, values: Mapping[str, Any]) -> Sequence[Row]:
        find = statement.of_several
        if find is None:
            return await super().find(statement, values)
        together = self._finds.get(find)
        if together is None:
            together = self._finds[find] = Coalescer(
                partial(self._find, find), most=_MAX_CONCURRENT_BATCHES, reads=True, late=self._late
            )
        with self._call():
            return await together.submit((statement, values), max(self.timeout_s, MIN_TIMEOUT_S))

    async def _find(
        self,
        find: Find,
        wanted: Sequence[tuple[PreparedStatement, Mapping[str, Any]]],
        timeout_s: float,
    ) -> Sequence[Sequence[Row]]:
        if len(wanted) > 1:
            keys = [values for _, values in wanted]
            return await self._look(lambda connection: find(connection, keys), timeout_s)
        ((statement, values),) = wanted
        return [await self._look(lambda connection: statement.rows(connection, values), timeout_s)]

    async def _look(self, unit: Unit[T], timeout_s: float) -> T:
        """Run a unit that is one statement, and only reads."""
        patience = Backoff(timeout_s)
        while True:
            attempt = InterruptibleRun(self._target)
            try:
                return await run_to_completion(
                    attempt.run(partial(self._look_once, unit, attempt)),
                    attempt.stop_reading,
                    late_after_s=max(patience.left_s, MIN_TIMEOUT_S),
                    on_late=attempt.stop,
                )
            except CatalogBusyError as error:
                await patience.after(error)

    async def _look_once(self, unit: Unit[T], attempt: InterruptibleRun) -> T:
        async def look() -> T:
            async with self._reading.connect() as connection:
                attempt.works_on(connection)
                result = await connection.run_sync(unit)
                attempt.has_read()
                return result

        try:
            return await look()
        except DBAPIError as error:
            # As where a transaction begins.
            if not error.connection_invalidated:
                raise
        attempt.works_on(None)
        return await look()

    async def write(self, unit: Unit[T], timeout_s: float | None = None) -> T:
        if not isinstance(unit, Joint) or self.timeout_s < _LEAST_SHARED_S:
            return await super().write(unit, timeout_s)
        patience = Backoff(self.timeout_s)
        together = self._writes.get(unit.many)
        if together is None:
            together = self._writes[unit.many] = Coalescer(
                self._write, most=_MAX_CONCURRENT_BATCHES, late=self._late
            )
        with self._call():
            self.forbid_nested_write()
            try:
                return cast("T", await together.submit(unit, self.timeout_s))
            except _RetryAloneError as apart:
                if isinstance(apart.error, CatalogBusyError):
                    await patience.after(apart.error)
            return await self._run(unit, patience, writes=True)

    async def _write(self, units: Sequence[Joint[Any, T]], timeout_s: float) -> Sequence[T]:
        """
        Do them in one transaction, or have each done by itself; waits for no lock for long.

        What is wrong with one of them is nothing to the others, and which one it is the database
        does not say. Only where a COMMIT was not answered they share the error as well: nobody
        knows then whether they were kept.
        """
        attempt = InterruptibleRun(self._target)
        first, *others = units
        items = [unit.item for unit in units]
        try:
            if not others:
                return [await self._try(first, Backoff(timeout_s), attempt, writes=True)]
            return await self._try(
                lambda connection: first.many(connection, items),
                Backoff(timeout_s),
                attempt,
                most_s=min(timeout_s / 2, _BATCH_TIMEOUT_S),
                writes=True,
            )
        except CatalogUnavailableError as error:
            if others and not attempt.is_committing:
                raise _RetryAloneError(error) from error
            raise
        except CatalogError as error:
            if others or isinstance(error, CatalogBusyError):
                raise _RetryAloneError(error) from error
            raise

    def _late(self) -> CatalogBusyError:
        return CatalogBusyError(self._target, InterruptibleRun.SLOW)


class _RetryAloneError(Exception):
    """A call is to be made by itself: with others it came to an error that need not be its own."""

    def __init__(self, error: CatalogError) -> None:
        super().__init__(error)
        self.error = error
