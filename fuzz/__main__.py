"""`python -m fuzz`: try random inputs for a time, and save the first failing input of a target."""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from pathlib import Path

from fuzz import TARGETS, atheris_engine, hypothesis_engine
from fuzz.findings import repeat


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=600, help="for each target (default: 600)")
    parser.add_argument("--seed", type=int, help="repeat the inputs of this seed (default: random)")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="try only the input in FILE")
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"unknown target {min(unknown)!r}: the targets are {', '.join(TARGETS)}")
    if options.repeat is not None:
        if len(targets) != 1:
            parser.error("--repeat needs exactly one target")
        print(repeat(targets[0], options.repeat))
        return 0

    seed = random.getrandbits(31) if options.seed is None else options.seed
    has_atheris = importlib.util.find_spec("atheris") is not None
    engines = "half of the time with atheris" if has_atheris else "without atheris"
    print(f"seed {seed}; {engines}", flush=True)
    findings = []
    for target in targets:
        seconds = options.seconds / 2 if has_atheris else options.seconds
        reports = [hypothesis_engine.run(target, seconds, seed)]
        if has_atheris and not reports[0].finding:
            reports.append(atheris_engine.run(target, seconds, seed))
        for report in reports:
            print(report, flush=True)
        findings += [report.finding for report in reports if report.finding]
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
