"""What finding a model that is there costs with `get_or_download`, and what leases cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from benchmarks.contenders import CATALOG
from benchmarks.harness.benchmark import ALLOWED, Benchmark, Environment
from benchmarks.harness.rounds import Result, Sample, run_rounds
from model_catalog import Model, open_catalog
from model_catalog.downloads import Claim, get_or_download, use_model
from model_catalog.downloads.leases import DEFAULT_LEASE_S, RENEWALS, keeper_of

PRESENT: Final = "get_or_download of a present model"
LEASES: Final = "CPU of 1,000 leases in a second"
FIND: Final = "find_model"
_CALLS: Final = 300
_LEASES: Final = 1000
_ALLOWED_SHARE: Final = 0.01


async def present_model(environment: Environment) -> Mapping[str, Result]:
    """Ask for a model that is recorded, and whose file is there."""
    path = environment.folder / "present.gguf"
    path.write_bytes(b"GGUF")

    async with open_catalog(environment.folder / "present.db") as catalog:
        await catalog.register_model(Model(reference="m", provider="hf", local_path=str(path)))

        async def find() -> Sample:
            began_at = time.perf_counter()
            for _ in range(_CALLS):
                await catalog.find_model("hf:m")
            return Sample((time.perf_counter() - began_at) / _CALLS)

        async def get() -> Sample:
            began_at = time.perf_counter()
            for _ in range(_CALLS):
                await get_or_download(catalog, "hf:m", _never)
            return Sample((time.perf_counter() - began_at) / _CALLS)

        result = await run_rounds({FIND: find, CATALOG: get}, 20, warm_up=True)
    return {PRESENT: result}


async def _never(_claim: Claim) -> str:
    raise AssertionError("the model is there")


async def leases(environment: Environment) -> Mapping[str, Result]:
    """Renew the leases of models in use, as often as this happens in a second on average."""
    renewals_per_s = RENEWALS / DEFAULT_LEASE_S
    async with (
        open_catalog(environment.folder / "leases.db") as catalog,
        AsyncExitStack() as uses,
    ):
        models = (
            {"reference": f"m{number}", "provider": "hf", "local_path": "/m"}
            for number in range(_LEASES)
        )
        await catalog.register_models(models)
        for number in range(_LEASES):
            await uses.enter_async_context(use_model(catalog, f"hf:m{number}"))
        keeper = keeper_of(catalog)

        async def renew() -> Sample:
            began_s = time.process_time()
            await keeper.renew()
            return Sample((time.process_time() - began_s) * renewals_per_s)

        contenders = {ALLOWED: lambda: Sample(_ALLOWED_SHARE), CATALOG: renew}
        result = await run_rounds(contenders, 20, warm_up=True)
    return {LEASES: result}


BENCHMARKS: Final = (
    Benchmark("get_or_download of a present model", present_model, has_target=True),
    Benchmark("CPU of 1,000 leases", leases, has_target=True),
)
