"""Inputs by Hypothesis: of the right shape, shrunk where they fail, blind to what they reach."""

from __future__ import annotations

import random
import time
from typing import Final

import hypothesis
from hypothesis import HealthCheck, Phase

from fuzz.findings import Report, Trial, module

_BATCH: Final = 2000
SETTINGS: Final = hypothesis.settings(
    max_examples=_BATCH,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=tuple(HealthCheck),
)


class _OverError(BaseException):
    """The time is over: no failure, which Hypothesis would try to shrink."""


def run(target: str, seconds: float, seed: int) -> Report:
    """Try inputs for so long, or until one fails; of one seed they are the same each time."""
    report = Report(target, "hypothesis")
    seeds = random.Random(seed)
    found = module(target)
    with found.checking() as check:
        ends = time.monotonic() + seconds
        trial = Trial(report, check)

        def one(raw: bytes) -> None:
            # What failed is shrunk for as long as that takes.
            if trial.failed is None and time.monotonic() >= ends:
                raise _OverError
            trial(raw)

        while trial.failed is None:
            test = hypothesis.given(found.INPUTS)(one)
            test = hypothesis.seed(seeds.getrandbits(64))(SETTINGS(test))
            try:
                test()
            except _OverError:
                break
            except Exception:
                # Whatever it is, the trial has noted it; else the inputs are not even made.
                if trial.failed is None:
                    raise
        trial.write()
    return report
