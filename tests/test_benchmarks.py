"""The benchmark runs, and counts as it says."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import disk, rounds


async def test_the_ratio_is_of_the_same_round(monkeypatch):
    """
    A machine that is slow for a while is slow for all: the median of the rounds' ratios stays.
    """
    now = 0.0
    pace = iter([1.0, 1.0, 9.0, 9.0, 1.0, 1.0])
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now)
    monkeypatch.setattr(rounds.random, "sample", lambda names, _: names)

    def taking(seconds):
        def contender():
            nonlocal now
            now += seconds * next(pace)

        return contender

    result = await rounds.in_turns({"base": taking(1.0), "twice": taking(2.0)}, 3)

    assert result.ratios == {"base": 1.0, "twice": 2.0}
    assert result.seconds == {"base": 1.0, "twice": 2.0}


async def test_what_is_read_from_the_disk_is_measured():
    """
    Every line has a number; whether it holds is for a quiet machine and the real sizes to say.
    """
    tiny = disk.Sizes(tokens=100, hashed_bytes=2**20, files=1000, rounds=1)

    rows = await disk.run(tiny)

    names = [row.name for row in rows]
    assert sum("check of 1,000 files" in name for name in names) == 6
    assert any("SHA-256" in name for name in names)
    assert all(row.value > 0 for row in rows)


def test_a_line_holds_up_to_its_limit():
    """
    At the limit it still does.
    """
    assert disk.Row("x", 1.0, 1.0).holds
    assert not disk.Row("x", 1.01, 1.0).holds


@pytest.mark.parametrize("tokens", [1, 1000])
def test_its_tokenizer_is_one_that_both_read(tmp_path, tokens):
    """
    What the readers are held against one another with is a real header.
    """
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    path.write_bytes(disk.gguf_of(tokens))

    fields = gguf.GGUFReader(path).fields

    assert len(fields["tokenizer.ggml.tokens"].data) == tokens
    assert disk.read_header(path).context_length == 4096
