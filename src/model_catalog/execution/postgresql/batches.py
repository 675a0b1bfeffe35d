"""Runs the operations of a batch on PostgreSQL: lookups as one query, writes as one transaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Connection

from model_catalog.concurrency.batching import run_in_batch_task
from model_catalog.concurrency.retry import MIN_TIMEOUT_S, Backoff
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.interruption.running import SERVER_GRACE_S
from model_catalog.errors import CatalogBusyError, CatalogError, CatalogUnavailableError
from model_catalog.execution.executor import Operation, tell_of_commit

if TYPE_CHECKING:
    from model_catalog.execution.postgres_executor import PostgresExecutor

T = TypeVar("T")

# A statement of a batch runs at most this long, and at most half of the batch's time.
_BATCH_TIMEOUT_S: Final = 2.0


async def run_lookups(
    executor: PostgresExecutor, operations: Sequence[Operation[Any, T]], timeout_s: float
) -> Sequence[T]:
    """Run the lookups of a batch as one query; repeat it while the database is busy."""
    function, value = _function_of(operations)
    backoff = Backoff(timeout_s)
    in_transaction = False
    while True:
        run = InterruptibleRun(
            executor.database.name, backoff.remaining_s, limits_statements=in_transaction
        )
        try:
            return await run_in_batch_task(
                executor.run_once(function, value, run, backoff, writes=False)
                if in_transaction
                else executor.look_up_once(function, value, run),
                run.cancel_read,
                timeout_s=max(backoff.remaining_s, MIN_TIMEOUT_S),
                on_timeout=run.interrupt,
            )
        except CatalogBusyError as error:
            busy = error
            # A statement timeout of the server or the role, or a lock, for which the catalog's own
            # sessions do not wait. A transaction can set its own limits.
            in_transaction = in_transaction or error.is_interrupted or executor.has_own_sessions
        except CatalogUnavailableError:
            raise
        except CatalogError as error:
            # For example a character that the encoding of the database does not have.
            if len(operations) > 1:
                raise RetryAloneError(error) from error
            raise
        try:
            # As in run_with_retries.
            await backoff.wait_or_raise(busy)
        finally:
            del busy


async def run_writes(
    executor: PostgresExecutor, operations: Sequence[Operation[Any, T]], timeout_s: float
) -> Sequence[T]:
    """
    Run the writes of a batch in one transaction, which waits at most 0.1 s for a lock.

    A write that is alone and one statement runs without a transaction, and waits for no lock.

    The database does not say which of them caused an error, so each is then repeated alone. Only if
    COMMIT was not answered do all get the same error: it is unknown whether they were committed.
    """
    is_shared = len(operations) > 1
    backoff = Backoff(timeout_s)
    try:
        if not is_shared:
            run = InterruptibleRun(executor.database.name, timeout_s)
            run.on_commit = partial(tell_of_commit, operations)
            step = executor.run_statement_once(operations[0], run, backoff)
            if results := await _complete_write(step, run, backoff):
                return results
        function, value = _function_of(operations)
        run = InterruptibleRun(executor.database.name, backoff.remaining_s)
        run.on_commit = partial(tell_of_commit, operations)
        longest_s = min(timeout_s / 2, _BATCH_TIMEOUT_S) if is_shared else math.inf
        return await _complete_write(
            executor.run_once(
                function, value, run, backoff, writes=True, max_statement_s=longest_s
            ),
            run,
            backoff,
        )
    except CatalogUnavailableError as error:
        if is_shared and not error.outcome_unknown:
            raise RetryAloneError(error) from error
        raise
    except CatalogError as error:
        if is_shared or isinstance(error, CatalogBusyError):
            raise RetryAloneError(error) from error
        raise


async def _complete_write(
    step: Coroutine[Any, Any, T], run: InterruptibleRun, backoff: Backoff
) -> T:
    return await run_in_batch_task(
        step,
        run.cancel_write,
        timeout_s=max(backoff.remaining_s, MIN_TIMEOUT_S) + SERVER_GRACE_S,
        on_timeout=run.interrupt,
    )


def _function_of(
    operations: Sequence[Operation[Any, T]],
) -> tuple[Callable[[Connection, Any], Sequence[T]], Any]:
    """Return a function and its argument that return the results of all operations."""
    first = operations[0]
    if len(operations) > 1 and first.run_many is not None:
        return first.run_many, [operation.value for operation in operations]
    return lambda connection, value: [first.run_one(connection, value)], first.value


class RetryAloneError(Exception):
    """The batch of a call failed, and the error need not be its own: it is to be run alone."""

    def __init__(self, error: CatalogError) -> None:
        super().__init__(error)
        self.error = error
