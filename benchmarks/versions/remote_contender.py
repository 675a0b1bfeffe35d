"""A contender in a child process, which imports another version of model-catalog."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from typing import Any

from benchmarks.contenders import Installation
from benchmarks.harness.rounds import Sample
from benchmarks.harness.workloads import TIMEOUT_S, Turn
from benchmarks.versions.installations import ROOT, child_environment


class RemoteContenderError(Exception):
    """The contender in the child process raised an exception, or the child has ended."""


class RemoteContender:
    """
    The parent's end of `benchmarks.versions.turn_server`; the child starts with the first request.

    Only `open`, `run_turn`, `close` and `stop` reach the child: the calls of a turn are made and
    timed there, by the same code that times the contenders of this process.
    """

    def __init__(self, name: str, installation: Installation) -> None:
        self._name = name
        self._installation = installation
        self._process: Process | None = None

    async def open(self, target: str, durability: str) -> None:
        await self._request("open", target=target, durability=durability)

    async def close(self) -> None:
        await self._request("close")

    async def run_turn(self, workload: str, turn: Turn) -> Sample:
        reply = await self._request(
            "turn",
            workload=workload,
            number=turn.number,
            target=turn.target,
            durability=turn.durability,
        )
        sample = Sample(reply["value"])
        sample.cpu_s = reply["cpu_s"]
        return sample

    async def stop(self) -> None:
        """End the child process."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name!r} is called in the child process: use run_turn()")

    async def _request(self, action: str, **values: object) -> dict[str, Any]:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                self._installation.python,
                "-P",  # the folder it is started in is not a source of modules
                "-m",
                "benchmarks.versions.turn_server",
                self._name,
                stdin=PIPE,
                stdout=PIPE,
                cwd=ROOT,
                env=child_environment(self._installation),
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RemoteContenderError("the child process has no pipes")
        stdin.write(json.dumps({"action": action, **values}).encode() + b"\n")
        await stdin.drain()
        line = await asyncio.wait_for(stdout.readline(), 2 * TIMEOUT_S)
        if not line:
            code = await self._process.wait()
            raise RemoteContenderError(f"the child process ended with exit code {code}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise RemoteContenderError(reply["error"])
        return reply
