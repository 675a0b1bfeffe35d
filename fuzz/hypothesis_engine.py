"""Fuzz with Hypothesis: well-formed inputs that are shrunk on failure, without coverage."""

from __future__ import annotations

import random
import time
from typing import Final

import hypothesis
from hypothesis import HealthCheck, Phase

from fuzz.findings import CheckRunner, Report, target_module

_BATCH_SIZE: Final = 2000
SETTINGS: Final = hypothesis.settings(
    max_examples=_BATCH_SIZE,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=tuple(HealthCheck),
)


class _TimeUpError(BaseException):
    """The time is up. Hypothesis shrinks only an Exception, so it passes this through."""


def run(target: str, seconds: float, seed: int) -> Report:
    """Try inputs for `seconds`, or until one fails; the same seed gives the same inputs."""
    report = Report(target, "hypothesis")
    seeds = random.Random(seed)
    module = target_module(target)
    with module.open_check() as check:
        deadline = time.monotonic() + seconds
        runner = CheckRunner(report, check)

        def try_input(raw: bytes) -> None:
            # A failing input is shrunk without a time limit.
            if runner.failed_input is None and time.monotonic() >= deadline:
                raise _TimeUpError
            runner(raw)

        while runner.failed_input is None:
            test = hypothesis.given(module.INPUTS)(try_input)
            test = hypothesis.seed(seeds.getrandbits(64))(SETTINGS(test))
            try:
                test()
            except _TimeUpError:
                break
            except Exception:
                # The runner has recorded a failed input. Otherwise the strategy itself failed.
                if runner.failed_input is None:
                    raise
        runner.save_failed_input()
    return report
