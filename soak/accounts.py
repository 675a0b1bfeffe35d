"""Compare the logs of the workers with the rows of the databases."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from soak import CALL_TIMEOUT_S


@dataclass
class Account:
    """What the callers were told, and what of it is not true."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """The calls by outcome; those of a killed worker are `interrupted`."""
    lost: int = 0
    """Acknowledged calls whose change is not in the database."""
    kept_failures: int = 0
    """Calls told as failures whose change is in the database."""
    halves: int = 0
    """Bulk calls of which only a part is in the database."""
    worst_overrun_s: float = 0.0
    """How much longer than its timeout a call took, without the time of a suspension."""

    def add_log(
        self, log: Path, stored: set[str], suspensions: Iterable[tuple[float, float]]
    ) -> None:
        started: dict[int, tuple[str, list[str]]] = {}
        outcomes: dict[int, str] = {}
        for line in log.read_text().splitlines():
            number, event, *values = json.loads(line)
            if event == "started":
                started[number] = (values[0], values[1])
                continue
            outcomes[number] = event
            start_s, end_s = values
            suspended_s = sum(
                max(0.0, min(end_s, until) - max(start_s, since)) for since, until in suspensions
            )
            overrun_s = end_s - start_s - suspended_s - CALL_TIMEOUT_S
            self.worst_overrun_s = max(self.worst_overrun_s, overrun_s)

        # A reference is removed at most once. A removal that was acknowledged or whose outcome is
        # open says nothing about the registration any more.
        removed = {
            references[0]
            for number, (kind, references) in started.items()
            if kind == "remove" and outcomes.get(number) != "failed"
        }
        for number, (kind, references) in started.items():
            outcome = outcomes.get(number, "interrupted")
            self.outcomes[outcome] += 1
            self._check(
                kind,
                outcome,
                [each in stored for each in references if kind == "remove" or each not in removed],
            )

    def _check(self, kind: str, outcome: str, are_stored: list[bool]) -> None:
        are_changed = [is_stored == (kind == "add") for is_stored in are_stored]
        self.lost += outcome == "kept" and not all(are_changed)
        self.kept_failures += kind == "add" and outcome == "failed" and any(are_changed)
        self.kept_failures += kind == "remove" and outcome == "failed" and all(are_changed)
        self.halves += any(are_changed) and not all(are_changed)
