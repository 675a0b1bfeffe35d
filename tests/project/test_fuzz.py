"""The fuzzers find a failing input, save it, and can repeat it."""

import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from fuzz import findings, hypothesis_engine


@pytest.fixture
def tried_inputs(monkeypatch):
    """Install the fuzz target `example`, which fails on two capitals; list the inputs it gets."""
    inputs = []

    def check(raw):
        inputs.append(raw)
        assert sum(byte in b"ABC" for byte in raw) < 2, "two capitals"
        return "fine"

    @contextmanager
    def open_check():
        yield check

    example = ModuleType("fuzz.example")
    example.INPUTS = st.text("abcABC").map(str.encode)
    example.open_check = open_check
    monkeypatch.setitem(sys.modules, "fuzz.example", example)
    return inputs


def test_failing_input_is_shrunk_saved_and_repeatable(tried_inputs, tmp_path, monkeypatch):
    """
    The smallest failing input is saved to a file, and the report has the command that repeats it.
    """
    monkeypatch.setattr(findings, "FOLDER", tmp_path)

    report = hypothesis_engine.run("example", 30, seed=1)

    assert report.finding.read_bytes() == b"AA"
    assert f"python -m fuzz example --repeat {report.finding}" in str(report)
    with pytest.raises(AssertionError, match="two capitals"):
        findings.repeat("example", report.finding)


def test_same_seed_gives_same_inputs(tried_inputs, tmp_path, monkeypatch):
    """
    A seed determines the inputs; another seed gives other inputs.
    """
    monkeypatch.setattr(findings, "FOLDER", tmp_path)
    runs = []

    for seed in (1, 1, 2):
        tried_inputs.clear()
        hypothesis_engine.run("example", 30, seed)
        runs.append(list(tried_inputs))

    assert runs[0] == runs[1] != runs[2]
