"""Runs work to completion even if the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, Final, TypeVar

from model_catalog.concurrency.forks import fork_count, start_task

T = TypeVar("T")

INTERRUPT_RETRY_S: Final = 0.01
"""
The seconds between two interrupts of the same work.

An interrupt that arrives between two statements stops neither of them, so it is repeated.
"""

log = logging.getLogger("model_catalog.concurrency")


async def run_to_completion(
    work: Coroutine[Any, Any, T],
    on_cancel: Callable[[], object] | None = None,
    *,
    timeout_s: float | None = None,
    on_timeout: Callable[[], object] | None = None,
) -> T:
    """
    Run `work` in a task of its own; deliver a cancellation of the caller after the work has ended.

    A write that is cancelled halfway may or may not have been committed, and its connection is
    lost. A write that is waited for has a known outcome.

    `on_cancel` is called once, when the caller is first cancelled, and may make the work end
    sooner. After a cancellation the result of the work is dropped, and its error is logged at the
    level DEBUG. `on_timeout` is called after `timeout_s` seconds to stop the work, and then every
    0.01 s until the work has ended.
    """
    forks = fork_count()
    task = start_task(work)
    if timeout_s is not None and on_timeout is not None:
        stop_timeout = start_timeout(timeout_s, on_timeout)
        task.add_done_callback(lambda _: stop_timeout())
    try:
        # Not shield(): if the work fails after the cancellation, Python 3.14 logs that its error
        # was never retrieved.
        await asyncio.wait([task])
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        await wait_until_done(task, forks)
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.debug("failed after its caller was cancelled", exc_info=error)
        raise
    return task.result()


async def wait_until_done(future: asyncio.Future[Any], forks: int) -> None:
    """
    Wait for a future or task to be done, and ignore every cancellation until then.

    The result of the future is not returned, and its error is not raised.

    `forks` is the `fork_count()` when the work began. A child that was forked since then does not
    wait: the work goes on in the parent only.
    """
    while not future.done() and fork_count() == forks:
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            # anyio cancels again in every iteration of the loop until its scope is left.
            continue


async def hold_cancellation(
    work: Coroutine[Any, Any, T], undo: Callable[[T], Coroutine[Any, Any, object]] | None = None
) -> T:
    """
    Run `work` in the caller's task; deliver no cancellation while it only yields to the loop.

    A cancellation is delivered at the next wait for something, or after the end of `work`. Then
    `undo` is called with its result. Use it around a checkout from a pool of SQLAlchemy, and around
    the return to it. psycopg may call `asyncio.sleep(0)` there, when it changes the mode of a
    connection. A cancellation at that moment would lose the connection and its place in the pool.
    """
    result, held = await _run_holding(work)
    if held is None:
        return result
    if undo is not None:
        await _run_holding(undo(result))
    raise held


@coroutine
def _run_holding(
    work: Coroutine[Any, Any, T],
) -> Generator[Any, Any, tuple[T, asyncio.CancelledError | None]]:
    """Run `work`; return its result, and the cancellation that was not delivered."""
    held: asyncio.CancelledError | None = None
    step: Callable[[], Any] = partial(work.send, None)
    while True:
        try:
            future = step()
        except StopIteration as ended:
            return ended.value, held
        except Exception as error:
            if held is not None:
                raise held from error
            raise
        if held is not None and future is not None and future.cancel():
            # As asyncio does for a task that is cancelled before it waits.
            held = None
        try:
            step = partial(work.send, (yield future))
        except GeneratorExit:
            work.close()
            raise
        except asyncio.CancelledError as error:
            if future is None:
                held = error
                step = partial(work.send, None)
            else:
                step = partial(work.throw, error)
        except BaseException as error:  # noqa: BLE001 - `work` gets it, as from `await`
            step = partial(work.throw, error)


def start_timeout(timeout_s: float, on_timeout: Callable[[], object]) -> Callable[[], None]:
    """
    Call `on_timeout` after `timeout_s` seconds, and again every `INTERRUPT_RETRY_S`.

    Returns the function that stops it.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def expire() -> None:
        nonlocal timer
        on_timeout()
        timer = loop.call_later(INTERRUPT_RETRY_S, expire)

    def stop() -> None:
        # `timer` is another one after each call.
        timer.cancel()

    timer = loop.call_later(max(0.0, timeout_s), expire)
    return stop
