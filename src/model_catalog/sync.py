"""
The catalog for code without an event loop: scripts, notebooks and Celery workers.

    with sync.open_catalog("catalog.db") as catalog:
        catalog.register_model(Model(reference="TinyLlama", provider="hf", local_path="/m"))

The types of this module are in sync.pyi.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import wraps
from inspect import iscoroutine
from typing import Any, NoReturn, Self

from model_catalog import opening
from model_catalog.concurrency.loop_thread import LoopThread
from model_catalog.connection.target import Target
from model_catalog.errors import WrongLoopError
from model_catalog.repository.fleet.fleet import Fleet
from model_catalog.repository.fleet.host_registry import HostRegistry
from model_catalog.repository.model_catalog import ModelCatalog, executor_of

__all__ = ["SyncCatalog", "SyncFleet", "SyncHostRegistry", "open_catalog"]


class SyncCatalog:
    """
    A catalog whose methods block. They have the names and arguments of those of ModelCatalog.

    The catalog works in an event loop in a thread of its own. So it can be used in a thread whose
    event loop is running, as in a notebook, and in several threads at once. Async iterators are
    plain iterators here, and `transaction()` is a plain context manager.

    Ctrl-C in a call cancels the call, and raises KeyboardInterrupt when the call has ended. In a
    forked child a call raises WrongLoopError: open the catalog again there. An iterable argument is
    read in the catalog's thread, and must not call the catalog.
    """

    def __init__(
        self, catalog: ModelCatalog, loop_thread: LoopThread, stack: ExitStack | None = None
    ) -> None:
        self._catalog = catalog
        self._loop_thread = loop_thread
        self._stack = stack or ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.__exit__(*exc_info)

    def __reduce__(self) -> NoReturn:
        # As in ModelCatalog.
        raise WrongLoopError.in_pickle(self._loop_thread.name)

    def close(self) -> None:
        """Close the catalog, as the end of a `with` block does. Calls in progress are completed."""
        self._stack.close()

    def run(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """
        Call an async function with the catalog as its first argument, and return its result.

        An async iterator becomes an iterator, and an async context manager a context manager. This
        is how the functions of `model_catalog.upkeep` are called: `catalog.run(check_models)`.
        """
        return self._call(function, self._catalog, *args, **options)

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function of the asynchronous API, and return what it means without a loop."""
        value = function(*args, **options)
        if iscoroutine(value):
            return self._loop_thread.run(value)
        if isinstance(value, AbstractAsyncContextManager):
            return self._loop_thread.enter(value, self._wrap)
        if isinstance(value, AsyncIterator):
            return self._loop_thread.iterate(value)
        return SyncFleet(value, self) if isinstance(value, Fleet) else value

    def _wrap(self, value: Any) -> Any:
        return SyncCatalog(value, self._loop_thread) if isinstance(value, ModelCatalog) else value


class SyncFleet:
    """A fleet whose methods block. `SyncCatalog.fleet()` makes one."""

    def __init__(self, fleet: Fleet, catalog: SyncCatalog) -> None:
        self._original = fleet
        self._catalog = catalog

    def _run(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self._catalog._call(method, self._original, *args, **options)  # noqa: SLF001


class SyncHostRegistry:
    """A registry of hosts whose methods block; `beat` is a plain context manager."""

    def __init__(self, catalog: SyncCatalog, **options: Any) -> None:
        self._original = catalog.run(HostRegistry, **options)
        self._catalog = catalog

    def _run(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self._catalog._call(method, self._original, *args, **options)  # noqa: SLF001


def _blocking(function: Any, run: str) -> Any:
    @wraps(function)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(self, run)(function, *args, **options)

    return call


def _method(name: str, function: Any) -> Any:
    """Return a function that calls the method of an object, which a subclass may have replaced."""

    @wraps(function)
    def call(original: Any, *args: Any, **options: Any) -> Any:
        return getattr(original, name)(*args, **options)

    return call


for _original, _class, _run in (
    (ModelCatalog, SyncCatalog, "run"),
    (Fleet, SyncFleet, "_run"),
    (HostRegistry, SyncHostRegistry, "_run"),
):
    for _name, _value in vars(_original).items():
        if isinstance(_value, property):
            setattr(_class, _name, property(_blocking(_value.fget, _run)))
        elif not _name.startswith("_"):
            setattr(_class, _name, _blocking(_method(_name, _value), _run))


def open_catalog(target: Target | None = None, **options: Any) -> SyncCatalog:
    """
    Open a catalog with the arguments of `model_catalog.open_catalog`, and return it.

    Close it with `close()`, or use it as a context manager.
    """
    with ExitStack() as stack:
        loop_thread = stack.enter_context(LoopThread())
        opened = loop_thread.enter(opening.open_catalog(target, **options), lambda catalog: catalog)
        catalog = stack.enter_context(opened)
        loop_thread.name = executor_of(catalog).database.name
        return SyncCatalog(catalog, loop_thread, stack.pop_all())
