"""Calls the hooks of a catalog, and keeps the changes of an operation until it is committed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from inspect import iscoroutinefunction
from typing import IO, TYPE_CHECKING, Any, Final

from model_catalog.domain.file_record import FileState
from model_catalog.errors import InvalidModelError

if TYPE_CHECKING:
    from model_catalog.execution.observation.records import (
        CallHook,
        CatalogCall,
        ChangeHook,
        ModelChange,
    )

log = logging.getLogger("model_catalog.execution")

_MAX_AT_ONCE: Final = 1_000
"""Changes in one call of a hook."""

_MAX_IN_MEMORY: Final = 10_000
"""Changes of one operation, of about 300 bytes each. More are written to a temporary file."""


class Hooks:
    """The hooks of one catalog. Their errors are logged and not raised."""

    def __init__(self, on_call: CallHook | None, on_change: ChangeHook | None, name: str) -> None:
        """Make them for the database that messages call `name`. Raises InvalidModelError."""
        validate_hooks(on_call, on_change)
        # Imported now: a call may end when the process can open no more files.
        from model_catalog.execution.observation import records  # noqa: F401, PLC0415

        self._on_call = on_call
        self._on_change = on_change
        self._name = name
        self._logged: set[tuple[str, type[BaseException]]] = set()
        self._commits: dict[Journal, bool] = {}
        """The journals that are being committed, in order, and whether each is committed."""

    @property
    def sees_calls(self) -> bool:
        """Whether there is a hook for calls."""
        return self._on_call is not None

    @property
    def sees_changes(self) -> bool:
        """Whether there is a hook for changes."""
        return self._on_change is not None

    def tell_call(self, call: CatalogCall) -> None:
        """Call `on_call`."""
        if self._on_call is not None:
            self._tell("on_call", self._on_call, call)

    def prepare(self, journal: Journal) -> None:
        """Note that a journal is about to be committed. Its transaction still holds its locks."""
        # PostgreSQL releases the locks of a transaction before it answers COMMIT. So another one
        # that waited for them may be answered first.
        self._commits[journal] = False

    def on_committed(self, journal: Journal) -> None:
        """Tell the changes of a journal, after those of all that were prepared before it."""
        if journal in self._commits:
            self._commits[journal] = True
            self._tell_next()
        else:
            self._tell_changes(journal)

    def drop(self, journal: Journal) -> None:
        """Note that a journal was not committed; do nothing if it was."""
        if self._commits.get(journal) is False:
            del self._commits[journal]
            self._tell_next()

    @property
    def last_prepared(self) -> Journal | None:
        """The journal that was prepared last, if its changes are not told yet."""
        return next(reversed(self._commits), None)

    async def wait_for(self, journal: Journal | None) -> None:
        """Wait until the changes of a journal have been told, if it was prepared."""
        if journal is not None and journal in self._commits:
            # The commits before it are about to be answered, or fail.
            journal.told = journal.told or asyncio.get_running_loop().create_future()
            await asyncio.shield(journal.told)

    def _tell_next(self) -> None:
        while self._commits:
            first = next(iter(self._commits))
            if not self._commits[first]:
                return
            del self._commits[first]
            self._tell_changes(first)
            if first.told is not None:
                first.told.set_result(None)

    def _tell_changes(self, journal: Journal) -> None:
        """Call `on_change` with the changes in a journal, and empty it."""
        if self._on_change is not None:
            for changes in journal.parts():
                # This may be the commit of another call. And a task that the hook starts is not
                # in the transaction of this one. So no context variables are set.
                Context().run(self._tell, "on_change", self._on_change, changes)
        journal.clear()

    def _tell(self, option: str, hook: Callable[[Any], object], value: object) -> None:
        try:
            hook(value)
        # The hook may ask a task for its result that was cancelled. No call was cancelled.
        except (Exception, asyncio.CancelledError) as error:
            kind = (option, type(error))
            if kind not in self._logged:
                self._logged.add(kind)
                log.exception(
                    "the hook %s of the catalog at %s failed. Further errors of the class %s are "
                    "not logged",
                    option,
                    self._name,
                    type(error).__name__,
                    extra={"model_catalog_url": self._name, "model_catalog_hook": option},
                )


def validate_hooks(on_call: object, on_change: object) -> None:
    """Raise InvalidModelError for a hook that is neither None nor a plain function."""
    for option, hook in (("on_call", on_call), ("on_change", on_change)):
        if hook is not None and (not callable(hook) or iscoroutinefunction(hook)):
            problem = "is not a plain function: pass one, and start a task in it to await something"
            raise InvalidModelError(option, hook, problem)


class Journal:
    """The changes of one operation, in their order, until its transaction is committed."""

    def __init__(self, hooks: Hooks) -> None:
        """Make one in the event loop of the catalog, in whose thread the hook is called."""
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._changes: list[ModelChange] = []
        self._file: IO[bytes] | None = None
        self.told: asyncio.Future[None] | None = None
        """What waits until the hook was called."""

    def add(self, changes: Sequence[ModelChange]) -> None:
        """Add changes."""
        self._changes += changes
        if len(self._changes) > _MAX_IN_MEMORY:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `clear` closes it
            for part in _parts_of(self._changes):
                pickle.dump(part, self._file, pickle.HIGHEST_PROTOCOL)
            self._changes = []

    def set_old_states(self, states: Mapping[int, FileState]) -> None:
        """Set the states before the operation of models that it has removed, by id."""
        self._changes = [
            replace(each, old_state=states.get(each.model_id, each.old_state))
            if each.kind == "removed"
            else each
            for each in self._changes
        ]

    def clear(self) -> None:
        """Delete all changes, as before the operation is run again."""
        if self._is_in_loop:
            self.drop()
        self._changes = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def parts(self) -> Iterator[Sequence[ModelChange]]:
        """Yield the changes, at most 1,000 at a time."""
        if self._file is not None:
            self._file.seek(0)
            with contextlib.suppress(EOFError):
                while True:
                    # The process has written the file itself.
                    yield pickle.load(self._file)  # noqa: S301
        yield from _parts_of(self._changes)

    @property
    def _is_in_loop(self) -> bool:
        return threading.get_ident() == self._thread_id

    def prepare(self) -> None:
        """Note that the changes are about to be committed. May be called from any thread."""
        # A thread of SQLite commits in order itself.
        if self._is_in_loop and (self._changes or self._file is not None):
            self._hooks.prepare(self)

    def drop(self) -> None:
        """Note that the changes were not committed; do nothing if they were."""
        self._hooks.drop(self)

    def __call__(self) -> None:
        """Call the hook in the thread of the event loop. May be called from any thread."""
        if not self._changes and self._file is None:
            return
        if self._is_in_loop:
            self._hooks.on_committed(self)
        else:
            # Before the call returns: the loop is told of its result after this.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hooks.on_committed, self)

    def __del__(self) -> None:
        # A transaction that is rolled back drops its journals.
        if self._file is not None:
            self._file.close()


def _parts_of(changes: Sequence[ModelChange]) -> Iterator[Sequence[ModelChange]]:
    for start in range(0, len(changes), _MAX_AT_ONCE):
        yield tuple(changes[start : start + _MAX_AT_ONCE])
