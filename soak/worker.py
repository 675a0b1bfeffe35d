"""
`python -m soak.worker URL LOG PAUSE_S`: write to a catalog, and log every call.

The worker stops at the end of its standard input. A soak that is killed closes it too.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import random
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from model_catalog import CatalogError, CatalogUnavailableError, Model, open_catalog
from soak import CALL_TIMEOUT_S, MODELS_OF_A_BULK_CALL

if TYPE_CHECKING:
    from model_catalog import ModelCatalog

TASKS = 4
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""

PROVIDER = "soak"


class Worker:
    """Tasks that register and remove models of one catalog, each under a reference of its own."""

    def __init__(self, catalog: ModelCatalog, log: TextIO, name: str, pause_s: float) -> None:
        self._catalog = catalog
        self._log = log
        self._name = name
        self._pause_s = pause_s
        self._calls = 0
        self._registered: deque[str] = deque(maxlen=1000)
        self.is_stopped = False

    async def run(self) -> None:
        """Make calls until `is_stopped` is set."""
        while not self.is_stopped:
            self._calls += 1
            count = MODELS_OF_A_BULK_CALL if random.random() < 0.1 else 1
            references = [f"{self._name}-{self._calls}-{index}" for index in range(count)]
            is_removal = bool(self._registered) and random.random() < 0.2
            if is_removal:
                references = [self._registered.popleft()]
            outcome = await self._call(self._calls, "remove" if is_removal else "add", references)
            if outcome == "kept" and not is_removal:
                self._registered.append(references[0])
            await asyncio.sleep(random.uniform(0, 2 * self._pause_s))

    async def _call(self, number: int, kind: str, references: list[str]) -> str:
        """Make a call, cancel a few of them, and log what the caller was told."""
        start_s = time.monotonic()
        self._write([number, "started", kind, references])
        call = asyncio.create_task(
            self._remove(references[0]) if kind == "remove" else self._add(references)
        )
        if random.random() < 0.03:
            asyncio.get_running_loop().call_later(random.uniform(0, 0.03), call.cancel)
        try:
            await call
            outcome = "kept"
        except asyncio.CancelledError:
            outcome = "cancelled"
        except CatalogError as error:
            is_unknown = isinstance(error, CatalogUnavailableError) and error.outcome_unknown
            outcome = "unknown" if is_unknown else "failed"
        self._write([number, outcome, start_s, time.monotonic()])
        return outcome

    async def _add(self, references: list[str]) -> None:
        models = [
            Model(reference=each, provider=PROVIDER, local_path=f"/{each}", size_bytes=1)
            for each in references
        ]
        if len(models) == 1:
            await self._catalog.register_model(models[0])
        else:
            await self._catalog.register_models(models)

    async def _remove(self, reference: str) -> None:
        await self._catalog.remove_model(reference, PROVIDER)

    def _write(self, line: list[object]) -> None:
        # The line reaches the kernel before the next call, so SIGKILL does not lose it.
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def end_with_parent() -> None:
    """Let Linux kill this process when its parent ends, also while it is suspended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def main(url: str, path: Path, pause_s: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop_at_end_of_input() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    loop.add_reader(sys.stdin, stop_at_end_of_input)
    with path.open("w") as log:
        while not stop.is_set():
            try:
                async with open_catalog(url, timeout_s=CALL_TIMEOUT_S) as catalog:
                    worker = Worker(catalog, log, path.stem, pause_s)
                    async with asyncio.TaskGroup() as tasks:
                        for _ in range(TASKS):
                            tasks.create_task(worker.run())
                        await stop.wait()
                        worker.is_stopped = True
            except CatalogError:
                # A fault struck while the catalog was opened. No call of a worker has begun.
                await asyncio.sleep(0.2)


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
