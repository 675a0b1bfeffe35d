"""`python -m fuzz`: try inputs for a time, and write down the first that each target fails on."""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from pathlib import Path

from fuzz import TARGETS, blind, guided
from fuzz.findings import repeat


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=600, help="for each target (600)")
    parser.add_argument("--seed", type=int, help="the same inputs again; else others each time")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="try this one input")
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"there is no target {min(unknown)!r}: there are {', '.join(TARGETS)}")
    if options.repeat is not None:
        if len(targets) != 1:
            parser.error("an input is of one target: name it")
        print(repeat(targets[0], options.repeat))
        return 0

    seed = random.getrandbits(31) if options.seed is None else options.seed
    is_guided = importlib.util.find_spec("atheris") is not None
    print(f"seed {seed}; {'half of the time by' if is_guided else 'without'} atheris", flush=True)
    found = []
    for target in targets:
        seconds = options.seconds / 2 if is_guided else options.seconds
        reports = [blind.run(target, seconds, seed)]
        if is_guided and not reports[0].finding:
            reports.append(guided.run(target, seconds, seed))
        for report in reports:
            print(report, flush=True)
        found += [report.finding for report in reports if report.finding]
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
