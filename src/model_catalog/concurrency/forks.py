"""Keeps a forked child from continuing its parent's calls, and from touching its event loop."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
from collections.abc import Coroutine, Generator, Iterator
from contextvars import Context
from typing import Any, Final, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class _Process:
    """How often the process was forked on the way to this one."""

    fork_count = 0


def fork_count() -> int:
    """Return a number that is another one in each forked child than in its parent."""
    return _Process.fork_count


def start_task(
    coroutine: Coroutine[Any, Any, T], context: Context | None = None
) -> asyncio.Task[T]:
    """
    Start a task that works with a driver, in the running loop.

    In a child that is forked meanwhile the task is cancelled at its next step, and its coroutine
    runs no further. Otherwise the driver would send statements, or ask the server to cancel one, in
    the parent's session. On SQLite it would wait for a thread that the child does not have.
    """
    return asyncio.get_running_loop().create_task(_Guarded(coroutine), context=context)


class _Guarded(Coroutine[Any, Any, T]):
    """
    A coroutine that runs only in the process that made it.

    There the methods of the instance are those of the coroutine, which are faster than methods
    here. A forked child has the methods of the class, which do not touch the coroutine.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        vars(self).update(send=coroutine.send, throw=coroutine.throw, close=coroutine.close)
        _guarded.add(self)

    def abandon(self) -> None:
        """Let the coroutine be, for ever; called in a forked child."""
        keep_forever(self._coroutine)
        for name in ("send", "throw", "close"):
            del vars(self)[name]

    def send(self, _value: Any) -> Any:
        raise asyncio.CancelledError

    def throw(self, error: Any, *_: Any) -> Any:
        raise error

    def close(self) -> None:
        pass

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        # asyncio shows the name and the frames of a task's coroutine.
        return getattr(self._coroutine, name)


_guarded: Final[WeakSet[_Guarded[Any]]] = WeakSet()


def keep_forever(value: object) -> None:
    """
    Keep a value until the process ends, and do not destroy it at the exit of the interpreter.

    In a forked child, the end of a coroutine would run the clean-up of its driver, and the end of a
    SQLite connection would roll back the parent's transaction.
    """
    import ctypes  # noqa: PLC0415 - see _import_before_fork

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


_loops: Final[WeakSet[asyncio.AbstractEventLoop]] = WeakSet()
_watched_files: Final[set[int]] = set()


def files_of_parent() -> frozenset[int]:
    """Return the descriptors that the parent's loops watched when this process was forked."""
    return frozenset(_watched_files)


def separate_in_child(loop: asyncio.AbstractEventLoop) -> None:
    """
    Give an event loop files of its own in each forked child. Safe to call twice.

    A child shares the epoll instance of the parent's loop, and the sockets that wake the loop. A
    child that closes the loop, as `asyncio.run` does, would remove these sockets from the epoll
    instance. The parent's loop would then not notice that a thread has ended its work.
    """
    _loops.add(loop)


def _separate(loop: asyncio.AbstractEventLoop) -> None:
    # asyncio has no public way to do this. Loops of other packages have other attributes.
    selector = getattr(loop, "_selector", None)
    own, waking = getattr(loop, "_ssock", None), getattr(loop, "_csock", None)
    if loop.is_closed() or own is None or waking is None:
        return
    if not isinstance(selector, selectors.EpollSelector):
        return
    for old, new in zip((own, waking), socket.socketpair(), strict=True):
        with new:
            new.setblocking(False)
            os.dup2(new.fileno(), old.fileno(), inheritable=False)
    with selectors.EpollSelector() as fresh:
        os.dup2(fresh.fileno(), selector.fileno(), inheritable=False)
    _watched_files.update(_connecting_files(loop))
    # A child must not read from a connection of its parent: it would take the parent's answers. Of
    # the old files only the socket that wakes the loop stays.
    for key in list(selector.get_map().values()):
        selector.unregister(key.fd)
        if key.fd == own.fileno():
            selector.register(key.fd, key.events, key.data)
        else:
            _watched_files.add(key.fd)
    # `asyncio.run` closes the asynchronous generators of its loop. It reports each one that a task
    # is running, such as a driver's. These generators end with their tasks.
    generators: WeakSet[Any] = getattr(loop, "_asyncgens", WeakSet())
    for each in list(generators):
        if each.ag_running:
            generators.discard(each)


def _connecting_files(loop: asyncio.AbstractEventLoop) -> Iterator[int]:
    """
    Yield the descriptors of sockets that a loop has connected, and does not watch yet.

    A task of a driver, or a callback, would go on with them in the next iteration of the loop.
    """
    # `call_soon(loop._add_reader, descriptor, ...)` of a new transport.
    for handle in list(getattr(loop, "_ready", ())):
        arguments = getattr(handle, "_args", None) or ()
        if arguments and isinstance(arguments[0], int):
            yield arguments[0]
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        while (frame := getattr(coroutine, "cr_frame", None)) is not None:
            if frame.f_code.co_name in (
                "create_connection",
                "create_unix_connection",
                "_connect_sock",
            ):
                found = frame.f_locals.get("sock")
                if isinstance(found, socket.socket) and found.fileno() >= 0:
                    yield found.fileno()
            coroutine = coroutine.cr_await


def _import_before_fork() -> None:
    # Few processes fork, and the import takes a millisecond. In a child it could wait for ever, for
    # a thread of the parent that was importing it.
    import ctypes  # noqa: F401, PLC0415


def _after_fork_in_child() -> None:
    _Process.fork_count += 1
    _watched_files.clear()
    for coroutine in list(_guarded):
        coroutine.abandon()
    _guarded.clear()
    for loop in list(_loops):
        _separate(loop)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_import_before_fork, after_in_child=_after_fork_in_child)
