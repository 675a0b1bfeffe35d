"""Send heartbeats of a host in the background."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from threading import Thread
from typing import Final

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.concurrency.forks import start_task
from model_catalog.errors import CatalogClosedError, CatalogError, HostNotFoundError
from model_catalog.execution.executor import Executor
from model_catalog.repository.operations.fleet import hosts

log = logging.getLogger("model_catalog.repository")


class HeartbeatSender:
    """
    Sends a heartbeat of one host at regular intervals, until it is cancelled.

    A heartbeat that fails is logged once, and the next one is sent at its time. The free space is
    measured in a thread. A disk that does not answer delays no heartbeat: the recorded number then
    stays until it answers.
    """

    def __init__(
        self,
        executor: Executor,
        name: str,
        interval_s: float,
        path: str | os.PathLike[str] | None,
    ) -> None:
        self._executor: Final = executor
        self._name: Final = name
        self._interval_s: Final = interval_s
        self._timeout_s: Final = min(interval_s, executor.timeout_s)
        self._path: Final = path
        self._measurement: asyncio.Future[int | None] | None = None
        self._is_failing = False

    async def send(self) -> None:
        """Send one heartbeat now. Raises CatalogError."""
        free_bytes = None if self._path is None else await self._free_bytes(self._path)
        await self._executor.run(hosts.beat(self._name, free_bytes, self._timeout_s))

    async def run(self) -> None:
        """Send heartbeats until the catalog is closed. The first one is sent after an interval."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            # A heartbeat that took long, or a machine that slept, is not made up for.
            due = max(due + self._interval_s, loop.time())
            await asyncio.sleep(due - loop.time())
            try:
                await self.send()
            except CatalogClosedError:
                return
            except (CatalogError, OSError) as error:
                self.report(error)
            else:
                self._report_success()

    def report(self, error: Exception) -> None:
        """Log a heartbeat that failed: the first one in a row as a warning."""
        log.log(
            logging.DEBUG if self._is_failing else logging.WARNING,
            "a heartbeat of the host %r failed, and the next one follows in %g s: %s",
            self._name,
            self._interval_s,
            error,
            extra={"model_catalog_host": self._name},
        )
        self._is_failing = True

    def _report_success(self) -> None:
        if self._is_failing:
            log.info(
                "the heartbeats of the host %r are recorded again",
                self._name,
                extra={"model_catalog_host": self._name},
            )
        self._is_failing = False

    async def _free_bytes(self, path: str | os.PathLike[str]) -> int | None:
        """Return the free space of a disk, or None if it cannot be told in time."""
        if self._measurement is None:
            self._measurement = _measure_in_thread(path)
        done, _ = await asyncio.wait([self._measurement], timeout=self._timeout_s / 2)
        if not done:
            return None
        measurement, self._measurement = self._measurement, None
        return measurement.result()


def _measure_in_thread(path: str | os.PathLike[str]) -> asyncio.Future[int | None]:
    """Return the future of the free space of a disk; its result is None if it is not known."""
    loop = asyncio.get_running_loop()
    measurement: asyncio.Future[int | None] = loop.create_future()

    def finish(free_bytes: int | None) -> None:
        if not measurement.done():
            measurement.set_result(free_bytes)

    def measure() -> None:
        free_bytes = None
        try:
            free_bytes = shutil.disk_usage(path).free
        except (OSError, ValueError) as error:
            log.debug("the free space of %r is not known: %s", os.fspath(path), error)
        # The loop may have been closed meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, free_bytes)

    # A thread of a pool would keep the process from ending while a network disk does not answer.
    try:
        Thread(target=measure, name="model-catalog-free-space", daemon=True).start()
    except RuntimeError:
        finish(None)
    return measurement


@inner_contextmanager
async def send_heartbeats(sender: HeartbeatSender) -> AsyncIterator[None]:
    """
    Send a heartbeat now, and then at intervals until the end of the block.

    Raises HostNotFoundError at the start. No other failure of a heartbeat ends the block.
    """
    try:
        await sender.send()
    except HostNotFoundError:
        raise
    except (CatalogError, OSError) as error:
        sender.report(error)
    task = start_task(sender.run())
    try:
        yield
    finally:
        task.cancel()
        # `await task` could not tell a cancellation of this task from that of the sender.
        await asyncio.wait([task])
