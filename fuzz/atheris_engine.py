"""Fuzz with atheris, which keeps the inputs that reach new lines of code."""

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

from fuzz.findings import CheckRunner, Report
from fuzz.hypothesis_engine import SETTINGS


def run(target: str, seconds: float, seed: int) -> Report:
    """
    Fuzz like `hypothesis_engine.run`, in a separate process: libFuzzer ends its process.

    The report leaves out up to a hundred executions at the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        report_path = Path(folder, "report.json")
        command = [sys.executable, "-m", "fuzz.atheris_engine", target, str(seconds), str(seed)]
        process = subprocess.run(
            [*command, str(report_path)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if not report_path.is_file():
            # The process was killed or did not start; its standard error is all there is.
            raise SystemExit(
                f"atheris ended with exit code {process.returncode} on {target}:\n{process.stderr}"
            )
        values = json.loads(report_path.read_text())
    finding = values["finding"] and Path(values["finding"])
    return Report(target, "atheris", Counter(values["outcomes"]), finding, values["error"])


def main() -> None:
    import atheris  # noqa: PLC0415 - only some machines have it; Hypothesis works without it

    target, seconds, seed, report_path = sys.argv[1:]
    with atheris.instrument_imports(include=["model_catalog"]):
        module = importlib.import_module(f"fuzz.{target}")
    report = Report(target, "atheris")

    with tempfile.TemporaryDirectory() as folder, module.open_check() as check:
        runner = CheckRunner(report, check)
        by_strategy = SETTINGS(hypothesis.given(module.INPUTS)(_with_named_argument(runner)))
        execute = runner if module.IS_RAW else by_strategy.hypothesis.fuzz_one_input

        def try_input(raw: bytes) -> None:
            try:
                execute(raw)
            finally:
                if runner.failed_input is not None or report.outcomes.total() % 100 == 1:
                    runner.save_failed_input()
                    write_report(report, Path(report_path))

        for number, raw in enumerate(module.SEEDS if module.IS_RAW else ()):
            Path(folder, str(number)).write_bytes(raw)
        options = [f"-max_total_time={float(seconds):.0f}", f"-seed={seed}", "-max_len=65536"]
        atheris.Setup(
            [sys.argv[0], *options, "-artifact_prefix=" + folder + "/", folder], try_input
        )
        atheris.Fuzz()


def _with_named_argument(runner: CheckRunner) -> Callable[[bytes], None]:
    """Wrap a runner in a function, because Hypothesis inspects the name of the argument."""

    def try_input(raw: bytes) -> None:
        runner(raw)

    return try_input


def write_report(report: Report, path: Path) -> None:
    """Replace the report file atomically; the process that started this one reads it."""
    values = {"outcomes": report.outcomes, "error": report.error, "finding": None}
    if report.finding is not None:
        values["finding"] = str(report.finding)
    path.with_suffix(".new").write_text(json.dumps(values))
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main()
