"""An input that should not have failed: written down, and tried again."""

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
    """What came of trying inputs on a target."""

    target: str
    engine: str
    outcomes: Counter[str] = field(default_factory=Counter)
    finding: Path | None = None
    error: str = ""

    def __str__(self) -> str:
        parts = ", ".join(f"{count:,} {what}" for what, count in self.outcomes.most_common())
        total = f"{self.target} by {self.engine}: {self.outcomes.total():,} executions ({parts})"
        if self.finding is None:
            return f"{total}, no finding"
        return f"{total}, 1 FINDING\n{self.error}repeat it: {command(self.target, self.finding)}"


class Trial:
    """The check of a target, with a count, and a memory of the input that failed last."""

    def __init__(self, report: Report, check: Callable[[bytes], str]) -> None:
        self._report = report
        self._check = check
        self.failed: bytes | None = None

    def __call__(self, raw: bytes) -> None:
        try:
            self._report.outcomes[self._check(raw)] += 1
        except Exception:
            self._report.outcomes["failed"] += 1
            self.failed = raw
            self._report.error = traceback.format_exc()
            raise

    def write(self) -> None:
        """Keep the input that failed last where it can be tried again."""
        if self.failed is None:
            return
        FOLDER.mkdir(exist_ok=True)
        name = hashlib.sha256(self.failed).hexdigest()[:12]
        self._report.finding = FOLDER / f"{self._report.target}-{name}"
        self._report.finding.write_bytes(self.failed)


def module(target: str) -> ModuleType:
    """The module of a target."""
    return importlib.import_module(f"fuzz.{target}")


def command(target: str, finding: Path) -> str:
    """What to type to see it fail again."""
    return f"python -m fuzz {target} --repeat {finding}"


def repeat(target: str, path: Path) -> str:
    """Try one input again; say what became of it, or raise what it raises."""
    with module(target).checking() as check:
        outcome: str = check(path.read_bytes())
    return outcome
