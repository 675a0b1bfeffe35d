"""
The child process of a comparison: `python -m benchmarks.versions.turn_server CONTENDER`.

It reads one JSON object a line from standard input and replies with one a line: open the contender,
run one turn of a workload, or close it. Between two requests the event loop is blocked in a read,
so that the child computes nothing while the other version is measured.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from typing import Any

from benchmarks.contenders import Contender, contender_spec
from benchmarks.harness.workloads import WORKLOADS, Turn, run_turn


async def serve(name: str) -> None:
    """Answer requests until standard input is closed."""
    contender = contender_spec(name).make()
    while line := sys.stdin.readline():
        try:
            reply = await answer(contender, json.loads(line))
        except Exception as error:  # noqa: BLE001 - a contender may raise anything
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


async def answer(contender: Contender, request: dict[str, Any]) -> dict[str, Any]:
    """Do what one request asks for; returns the reply."""
    match request.pop("action"):
        case "open":
            await contender.open(request["target"], request["durability"])
            # As in the parent: objects that exist in all rounds are not collected between turns.
            gc.collect()
            gc.freeze()
        case "turn":
            name = request.pop("workload")
            workload = next(each for each in WORKLOADS if each.name == name)
            turn = Turn(contender, workload.rows, **request)
            gc.collect()
            sample = await run_turn(workload, turn)
            return {"value": sample, "cpu_s": sample.cpu_s}
        case "close":
            await contender.close()
    return {}


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
