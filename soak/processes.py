"""The worker processes of a soak: started, suspended, killed, measured and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

STOP_S = 30.0
"""How long a worker gets to finish its calls and to close its catalog."""


@dataclass
class WorkerProcess:
    """A worker of one database, which starts anew under another log when it was killed."""

    name: str
    url: str
    folder: Path
    pause_s: float
    starts: int = 0
    unexpected_ends: list[str] = field(default_factory=list)
    """One line for each end that was not asked for: the worker, its exit status, and when."""
    suspensions: list[tuple[float, float]] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    """The resources since the last start, one sample a second."""

    async def start(self) -> None:
        log = self.folder / f"{self.name}-{self.starts}.log"
        self.starts += 1
        self.samples.clear()
        with self.messages.open("ab") as file:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "soak.worker", self.url, log, str(self.pause_s)),
                stdin=asyncio.subprocess.PIPE,
                stderr=file,
            )

    @property
    def messages(self) -> Path:
        return self.folder / f"{self.name}.stderr"

    async def kill(self) -> None:
        if self._has_ended():
            self._add_unexpected_end("before it was stopped")
        else:
            self._process.kill()
            await self._process.wait()
        await self.start()

    async def suspend(self, seconds: float) -> None:
        if not self._has_ended():
            start_s = time.monotonic()
            self._process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self._process.send_signal(signal.SIGCONT)
            self.suspensions.append((start_s, time.monotonic()))

    async def stop(self) -> None:
        """
        Let the worker finish its calls and close its catalog.

        The end of its standard input asks it to. A signal would end a worker that is still
        starting, because it has no handler yet.
        """
        if self._has_ended():
            self._add_unexpected_end("before it was stopped")
            return
        try:
            # Also closes its standard input.
            await asyncio.wait_for(self._process.communicate(b""), STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            self._add_unexpected_end(f"killed, {STOP_S:.0f} s after it was asked to stop")
            return
        if self._process.returncode != 0:
            self._add_unexpected_end("while it stopped")

    def _add_unexpected_end(self, when: str) -> None:
        status = self._process.returncode
        self.unexpected_ends.append(f"{self.name}-{self.starts - 1}: exit status {status}, {when}")

    def sample(self) -> None:
        """Add a sample of the memory in MiB, and of the numbers of threads and descriptors."""
        process = Path(f"/proc/{self._process.pid}")
        # The process may end at any time.
        with suppress(FileNotFoundError, ProcessLookupError):
            pages = int((process / "statm").read_text().split()[1])
            self.samples.append(
                {
                    "memory_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                    "threads": len(list((process / "task").iterdir())),
                    "descriptors": len(list((process / "fd").iterdir())),
                }
            )

    def growth(self, resource: str) -> float:
        """The highest value of the last third of the time, less that of the middle third."""
        third = len(self.samples) // 3
        if not third:
            return 0.0
        values = [sample[resource] for sample in self.samples]
        return max(values[-third:]) - max(values[third : 2 * third])

    def _has_ended(self) -> bool:
        return self._process.returncode is not None
