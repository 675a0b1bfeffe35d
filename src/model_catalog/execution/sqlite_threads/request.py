"""A unit of work on its way between the task that waits for it and the thread that does it."""

from __future__ import annotations

import asyncio
import threading
from typing import Generic, TypeVar

from model_catalog.execution.executor import Unit

T = TypeVar("T")


class Request(Generic[T]):
    """A unit, and what becomes of it."""

    __slots__ = (
        "_beginning",
        "_has_begun",
        "alone",
        "error",
        "has_ended",
        "holds",
        "is_done",
        "is_late",
        "is_one_statement",
        "is_unwanted",
        "is_withdrawn",
        "releases",
        "result",
        "start",
        "told",
        "unit",
    )

    def __init__(self, unit: Unit[T], start: float) -> None:
        self.unit = unit
        self.start = start
        """When it was made, by the loop's clock."""
        self.alone = False
        """Whether it is to have a transaction of its own."""
        self.is_one_statement = False
        """Whether it is a Prepared statement that reads, and nothing else."""
        self.holds = False
        """Whether the transaction it begins is to stay open."""
        self.releases = False
        """Whether it ends the transaction that is open."""
        self.result: T | None = None
        self.error: BaseException | None = None
        self.told: asyncio.Future[None]
        self.has_ended = False
        """Whether the task that waits has been told; only the loop says so."""
        self.is_done = False
        """Whether that is certain, whatever becomes of its batch; only the thread says so."""
        self.is_late = False
        """Whether it is to be stopped, for its time is up."""
        self.is_unwanted = False
        """Whether its task was cancelled after it had begun."""
        self.is_withdrawn = False
        # Between "may I begin?" in a thread, and "do not begin" in the loop. Not one for all calls:
        # in a child that is forked while it is taken nobody gives it back.
        self._beginning = threading.Lock()
        self._has_begun = False

    def begin(self) -> bool:
        """Whether it is to be done; from here on it cannot be withdrawn."""
        with self._beginning:
            self._has_begun = not self.is_withdrawn
            return self._has_begun

    def step_back(self, error: BaseException) -> bool:
        """
        Whether it is to be begun again later, having done nothing so far.

        One that was late or unwanted is withdrawn, with an error.
        """
        with self._beginning:
            self._has_begun = False
            if self.is_unwanted or self.is_late:
                self.is_withdrawn = True
                self.error = error
            return not self.is_withdrawn

    def withdraw(self) -> bool:
        """Whether it will never be begun, and has not been."""
        with self._beginning:
            if self._has_begun or self.has_ended:
                return False
            self.is_withdrawn = True
            return True
