"""Inputs by atheris, which keeps those that reach lines that none has reached before."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis

from fuzz.blind import SETTINGS
from fuzz.findings import Report, Trial


def run(target: str, seconds: float, seed: int) -> Report:
    """
    As `blind.run`, in a process of its own: libFuzzer ends the one that it runs in.

    Of the executions those after the last hundred are not counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "report.json")
        command = [sys.executable, "-m", "fuzz.guided", target, str(seconds), str(seed), str(told)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        if not told.is_file():
            # It was killed, or never began: what it said is all there is to see.
            raise SystemExit(f"atheris ended with {done.returncode} on {target}:\n{done.stderr}")
        said = json.loads(told.read_text())
    finding = said["finding"] and Path(said["finding"])
    return Report(target, "atheris", Counter(said["outcomes"]), finding, said["error"])


def main() -> None:
    import atheris  # noqa: PLC0415 - it is not everywhere, and the other half does without

    target, seconds, seed, told = sys.argv[1:]
    with atheris.instrument_imports(include=["model_catalog"]):
        found = importlib.import_module(f"fuzz.{target}")
    report = Report(target, "atheris")

    with tempfile.TemporaryDirectory() as folder, found.checking() as check:
        trial = Trial(report, check)
        by_strategy = SETTINGS(hypothesis.given(found.INPUTS)(_named(trial)))
        try_one = trial if found.IS_RAW else by_strategy.hypothesis.fuzz_one_input

        def one(raw: bytes) -> None:
            try:
                try_one(raw)
            finally:
                if trial.failed is not None or report.outcomes.total() % 100 == 1:
                    trial.write()
                    tell(report, Path(told))

        for number, raw in enumerate(found.SEEDS if found.IS_RAW else ()):
            Path(folder, str(number)).write_bytes(raw)
        options = [f"-max_total_time={float(seconds):.0f}", f"-seed={seed}", "-max_len=65536"]
        atheris.Setup([sys.argv[0], *options, "-artifact_prefix=" + folder + "/", folder], one)
        atheris.Fuzz()


def _named(trial: Trial) -> Callable[[bytes], None]:
    """The same as a function, whose argument Hypothesis can see."""

    def one(raw: bytes) -> None:
        trial(raw)

    return one


def tell(report: Report, path: Path) -> None:
    """Write a report for the process that waits for it; the last that was written is whole."""
    said = {"outcomes": report.outcomes, "error": report.error, "finding": None}
    if report.finding is not None:
        said["finding"] = str(report.finding)
    path.with_suffix(".new").write_text(json.dumps(said))
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main()
