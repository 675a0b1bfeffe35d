"""Cancellations that arrive while a coroutine only yields to the event loop."""

import asyncio

import pytest

from model_catalog.concurrency.completion import hold_cancellation


async def yield_to_loop():
    await asyncio.sleep(0)
    return "result"


async def cancelled_at_once(coroutine):
    """Start a task, and cancel it at its first wait."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task


async def test_a_result_is_undone_before_the_cancellation_is_delivered():
    """
    The work is done although its task was cancelled, so its result must be given back.
    """
    undone = []

    async def undo(result):
        await asyncio.sleep(0)
        undone.append(result)

    task = await cancelled_at_once(hold_cancellation(yield_to_loop(), undo))

    assert task.cancelled()
    assert undone == ["result"]


async def test_a_cancellation_is_delivered_at_the_next_wait():
    """
    A wait for a server may take long, and must end.
    """
    seen = []

    async def work():
        await asyncio.sleep(0)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("wait")
            raise

    task = await cancelled_at_once(hold_cancellation(work()))

    assert task.cancelled()
    assert seen == ["wait"]


async def test_a_cancellation_of_a_wait_is_delivered_at_once():
    """
    Nothing is held back while the work waits for something.
    """
    task = await cancelled_at_once(hold_cancellation(asyncio.Event().wait()))

    assert task.cancelled()


async def test_an_error_of_the_work_is_the_cause_of_the_cancellation():
    """
    The task was cancelled before, and the error is not lost.
    """

    async def work():
        await asyncio.sleep(0)
        raise ValueError("broken")

    task = asyncio.create_task(hold_cancellation(work()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task

    assert isinstance(caught.value.__cause__, ValueError)


async def test_results_and_errors_of_work_that_is_not_cancelled_are_its_own():
    """
    The work runs as with a plain await.
    """

    async def fail():
        await asyncio.sleep(0)
        raise ValueError("broken")

    assert await hold_cancellation(yield_to_loop()) == "result"
    with pytest.raises(ValueError, match="broken"):
        await hold_cancellation(fail())
