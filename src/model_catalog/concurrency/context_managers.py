"""Async context managers that survive the end of an event loop in the middle of their block."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, _AsyncGeneratorContextManager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def inner_contextmanager(
    function: Callable[P, AsyncIterator[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """
    Make a context manager as `contextlib.asynccontextmanager` does, which the loop does not close.

    At its end, `asyncio.run` closes all asynchronous generators of the loop at once. One that is
    used in the block of another would then be closed by both, and each prints an error. The block
    around it, or the end of its catalog, closes this one.
    """

    @wraps(function)
    def make(*args: P.args, **options: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _InnerBlock(function, args, options)  # type: ignore[arg-type]

    return make


def outer_contextmanager(
    function: Callable[P, AsyncIterator[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """
    Make a context manager as `contextlib.asynccontextmanager` does, which the loop closes once.

    At the end of the loop a generator around it may leave the block at the same time. Then the
    block ends once, and both wait for that.
    """

    @wraps(function)
    def make(*args: P.args, **options: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _OuterBlock(function, args, options)  # type: ignore[arg-type]

    return make


class _InnerBlock(_AsyncGeneratorContextManager[Any]):
    async def __aenter__(self) -> Any:
        # As contextlib does: the arguments are not kept until the end of the block.
        del self.args, self.kwds, self.func
        hooks = sys.get_asyncgen_hooks()
        # Python calls this hook when the first step of a generator is made. A generator that is
        # destroyed before its end is still given to the loop.
        sys.set_asyncgen_hooks(firstiter=None)
        try:
            step = self.gen.__anext__()
        finally:
            sys.set_asyncgen_hooks(firstiter=hooks.firstiter)
        try:
            return await step
        except StopAsyncIteration:
            raise RuntimeError("generator didn't yield") from None


class _OuterBlock(_InnerBlock):
    _loop_end: AsyncGenerator[None, None]
    _ended: asyncio.Event | None = None

    async def __aenter__(self) -> Any:
        value = await super().__aenter__()
        self._loop_end = self._wait_for_loop_end()
        await anext(self._loop_end)
        return value

    async def __aexit__(self, *exc_info: object) -> bool | None:
        if self._ended is not None:
            await self._ended.wait()
            return None
        try:
            return await self._exit(*exc_info)
        finally:
            await self._loop_end.aclose()

    async def _exit(self, *exc_info: Any) -> bool | None:
        self._ended = asyncio.Event()
        try:
            return await super().__aexit__(*exc_info)
        finally:
            self._ended.set()

    async def _wait_for_loop_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._ended is None:
                error = GeneratorExit()
                await self._exit(type(error), error, None)
