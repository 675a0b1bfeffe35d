"""The fuzzers find what is there to be found, and write it down so that it can be seen again."""

import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from fuzz import blind, findings


@pytest.fixture
def target(monkeypatch):
    """A target of a few lines, which fails on whatever has two capitals; and what it was asked."""
    asked = []

    def check(raw):
        asked.append(raw)
        assert sum(byte in b"ABC" for byte in raw) < 2, "two capitals"
        return "fine"

    @contextmanager
    def checking():
        yield check

    made_up = ModuleType("fuzz.made_up")
    made_up.INPUTS = st.text("abcABC").map(str.encode)
    made_up.checking = checking
    monkeypatch.setitem(sys.modules, "fuzz.made_up", made_up)
    return asked


def test_a_finding_is_shrunk_and_written_and_repeated(target, tmp_path, monkeypatch):
    """
    The smallest input that fails lies in a file, and the report says how to try it again.
    """
    monkeypatch.setattr(findings, "FOLDER", tmp_path)

    report = blind.run("made_up", 30, seed=1)

    assert report.finding.read_bytes() == b"AA"
    assert f"python -m fuzz made_up --repeat {report.finding}" in str(report)
    with pytest.raises(AssertionError, match="two capitals"):
        findings.repeat("made_up", report.finding)


def test_one_seed_gives_the_same_inputs(target, tmp_path, monkeypatch):
    """
    What was found is found again; with another seed other inputs are tried.
    """
    monkeypatch.setattr(findings, "FOLDER", tmp_path)
    tried = []

    for seed in (1, 1, 2):
        target.clear()
        blind.run("made_up", 30, seed)
        tried.append(list(target))

    assert tried[0] == tried[1] != tried[2]
