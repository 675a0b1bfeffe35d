"""Measures the calls of public methods, and tells the hook `on_call` of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from inspect import getattr_static, isasyncgenfunction, iscoroutinefunction
from time import perf_counter
from typing import Any, Final

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.execution.observation.hooks import Hooks


class CallInProgress:
    """A call of a public method, while it runs."""

    __slots__ = ("_began_s", "duration_s", "hooks", "is_finished", "name", "rows", "waited_s")

    def __init__(self, hooks: Hooks, name: str) -> None:
        self.hooks = hooks
        self.name = name
        self.rows: int | None = None
        self.duration_s = 0.0
        self.waited_s: float | None = None
        self.is_finished = False
        self._began_s = perf_counter()

    def add_wait(self, seconds: float) -> None:
        """Add the time that an operation of the call has waited."""
        self.waited_s = (self.waited_s or 0.0) + seconds

    @property
    def elapsed_s(self) -> float:
        """The seconds since it began."""
        return perf_counter() - self._began_s

    @contextmanager
    def working(self) -> Iterator[None]:
        """Measure a block as a part of the call, and make this the current call in it."""
        token = _current_call.set(self)
        began_s = perf_counter()
        try:
            yield
        finally:
            self.duration_s += perf_counter() - began_s
            _current_call.reset(token)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the hook of the call when a block has ended."""
        error: str | None = None
        try:
            yield
        except GeneratorExit:
            # The caller needs no more of an iteration.
            raise
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            self.is_finished = True
            # A catalog without hooks does not need it.
            from model_catalog.execution.observation.records import CatalogCall  # noqa: PLC0415

            rows = self.rows if error is None else None
            self.hooks.tell_call(
                CatalogCall(self.name, self.duration_s, self.waited_s, rows, error)
            )


_current_call: Final[ContextVar[CallInProgress | None]] = ContextVar(
    "model_catalog_current_call", default=None
)


def current_call(hooks: Hooks) -> CallInProgress | None:
    """Return the call of a catalog with these hooks that this task is in."""
    call = _current_call.get()
    # A task that a call has started may outlive it.
    if call is None or call.is_finished or call.hooks is not hooks:
        return None
    return call


@lru_cache(maxsize=64)
def observed_class(kind: type, prefix: str) -> type:
    """
    Return a subclass whose public async methods tell the hook of their calls.

    `prefix` begins their names. A method that another one calls is a part of that call. Objects of
    the class have an `_executor` with `hooks`.
    """
    methods: dict[str, Any] = {}
    for name in dir(kind):
        method = getattr_static(kind, name)
        if name.startswith("_"):
            continue
        if name == "transaction":
            methods[name] = _observed_block(method, prefix + name)
        elif iscoroutinefunction(method):
            methods[name] = _observed_call(method, prefix + name)
        elif isasyncgenfunction(method):
            methods[name] = _observed_iteration(method, prefix + name)
    methods["_is_observed"] = True
    for name in ("__module__", "__qualname__", "__doc__"):
        methods[name] = getattr(kind, name)
    return type(kind.__name__, (kind,), methods)


def _observed_call(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(method)
    async def observed(self: Any, *args: Any, **options: Any) -> Any:
        hooks: Hooks = self._executor.hooks
        if current_call(hooks) is not None:
            return await method(self, *args, **options)
        call = CallInProgress(hooks, name)
        with call.telling(), call.working():
            result = await method(self, *args, **options)
            call.rows = _row_count(method.__name__, result)
        return result

    return observed


def _observed_iteration(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(method)
    async def observed(self: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        hooks: Hooks = self._executor.hooks
        # A loop that ends early ends this generator, and then the method's own before it returns.
        async with aclosing(method(self, *args, **options)) as items:
            if current_call(hooks) is not None:
                async for item in items:
                    yield item
                return
            call = CallInProgress(hooks, name)
            call.rows = 0
            with call.telling():
                while True:
                    with call.working():
                        try:
                            item = await anext(items)
                        except StopAsyncIteration:
                            return
                    call.rows += 1
                    yield item

    return observed


def _observed_block(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @inner_contextmanager
    async def observed(self: Any) -> AsyncIterator[Any]:
        hooks: Hooks = self._executor.hooks
        if current_call(hooks) is not None:
            async with method(self) as inner:
                yield inner
            return
        call = CallInProgress(hooks, name)
        with call.telling():
            try:
                async with method(self) as inner:
                    call.add_wait(call.elapsed_s)
                    yield inner
            finally:
                call.duration_s = call.elapsed_s

    return wraps(method)(observed)


# The other numbers that methods return are totals, and no rows.
_NUMBERS: Final = frozenset({"export_catalog", "register_models", "remove_alias", "remove_host"})


def _row_count(name: str, result: Any) -> int | None:
    """Return how many rows a call has returned or written, if its result tells."""
    if isinstance(result, list):
        return len(result)
    # A method of a subclass may return something else.
    if isinstance(result, int):
        return int(result) if name in _NUMBERS else None
    if name in {"import_catalog", "list_page"}:
        models = getattr(result, "models", None)
        return getattr(result, "written", None) if models is None else len(models)
    if result is None:
        return 0 if name.startswith("find_") else None
    # A model, an alias or a host. All other objects are totals.
    return 1 if hasattr(result, "ref") or name.endswith("_host") else None
