"""Save a failing input to a file, report it, and repeat it."""

from __future__ import annotations

import hashlib
import importlib
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Final

FOLDER: Final = Path(__file__).parent / "findings"


@dataclass
class Report:
    """The result of a run on one target: the number of executions by outcome, and a finding."""

    target: str
    engine: str
    outcomes: Counter[str] = field(default_factory=Counter)
    finding: Path | None = None
    error: str = ""

    def __str__(self) -> str:
        parts = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.most_common())
        total = f"{self.target} by {self.engine}: {self.outcomes.total():,} executions ({parts})"
        if self.finding is None:
            return f"{total}, no finding"
        command = repeat_command(self.target, self.finding)
        return f"{total}, 1 FINDING\n{self.error}repeat it: {command}"


class CheckRunner:
    """Calls the check of a target, counts the outcomes, and keeps the last input that failed."""

    def __init__(self, report: Report, check: Callable[[bytes], str]) -> None:
        self._report = report
        self._check = check
        self.failed_input: bytes | None = None

    def __call__(self, raw: bytes) -> None:
        try:
            self._report.outcomes[self._check(raw)] += 1
        except Exception:
            self._report.outcomes["failed"] += 1
            self.failed_input = raw
            self._report.error = traceback.format_exc()
            raise

    def save_failed_input(self) -> None:
        """Save the last input that failed, if there is one, to a file that can be repeated."""
        if self.failed_input is None:
            return
        FOLDER.mkdir(exist_ok=True)
        name = hashlib.sha256(self.failed_input).hexdigest()[:12]
        self._report.finding = FOLDER / f"{self._report.target}-{name}"
        self._report.finding.write_bytes(self.failed_input)


def target_module(target: str) -> ModuleType:
    """Import the module of a target."""
    return importlib.import_module(f"fuzz.{target}")


def repeat_command(target: str, finding: Path) -> str:
    """Return the shell command that repeats a finding."""
    return f"python -m fuzz {target} --repeat {finding}"


def repeat(target: str, path: Path) -> str:
    """Try the input in a file; return its outcome, or raise the error of the check."""
    with target_module(target).open_check() as check:
        outcome: str = check(path.read_bytes())
    return outcome
