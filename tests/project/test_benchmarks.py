"""The benchmark runs, and counts as it says."""

import asyncio
import gc
import json
import math
import shutil
import sqlite3
import sys
import threading
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as command
from benchmarks.cases import growth
from benchmarks.cases import hive_upgrade as hive
from benchmarks.cases import model_files as disk
from benchmarks.cases.adoption import create_cache
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import models_table as table
from benchmarks.harness import rounds
from benchmarks.harness.benchmark import ALLOWED, Environment, Settings
from benchmarks.harness.call_benchmarks import call_benchmark
from benchmarks.harness.database_files import DatabaseFiles
from benchmarks.harness.rounds import Result, Sample
from benchmarks.harness.workloads import WORKLOADS, Workload, require_correct
from benchmarks.reports import charts as chart
from benchmarks.reports import text as report
from benchmarks.suite import BENCHMARKS, select_benchmarks
from benchmarks.targets import TARGETS, Target, Verdict, evaluate, group_members

from model_catalog.schema.migrate import upgrade
from model_catalog.stores.scanners.huggingface import scan

pytestmark = pytest.mark.slow

HURRY = Settings(rounds=1, budget_s=0.0, quick=True)


@pytest.fixture(autouse=True)
def little_to_collect():
    """Before each turn all garbage is collected: what pytest holds is not to be gone through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def result(**seconds):
    return Result({name: {0: value} for name, value in seconds.items()})


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

    found = await rounds.run_rounds({"base": taking(1.0), "twice": taking(2.0)}, 3)

    assert found.ratios == {"base": 1.0, "twice": 2.0}
    assert found.medians == {"base": 1.0, "twice": 2.0}


async def test_a_slow_contender_has_fewer_rounds_and_the_base_has_all():
    """
    Whoever has used up its time stops after the third round; it is held against the base's same
    rounds.
    """
    ran = dict.fromkeys(("base", "slow", "fast"), 0)

    def contender(name, wait_s):
        async def one():
            ran[name] += 1
            await asyncio.sleep(wait_s)
            return Sample(1.0 + ran[name])

        return one

    found = await rounds.run_rounds(
        {"base": contender("base", 0.02), "slow": contender("slow", 0.02), "fast": lambda: None},
        8,
        budget_s=0.03,
    )

    assert ran["slow"] == 3
    assert ran["base"] == 8
    assert found.ratios["slow"] == 1.0


async def test_the_first_round_only_warms_up():
    """
    What is imported, opened or compiled at the first call is not what a call takes.
    """
    takes = iter([100.0, 1.0, 1.0])

    found = await rounds.run_rounds({"base": lambda: Sample(next(takes))}, 2, warm_up=True)

    assert found.medians == {"base": 1.0}


async def test_one_that_breaks_is_named_and_the_others_go_on():
    """
    It has no ratio, and what it raised is told.
    """

    def breaks():
        raise LookupError("no such row")

    found = await rounds.run_rounds({"base": lambda: None, "breaks": breaks, "holds": int}, 2)

    assert found.broken == {"breaks": "LookupError: no such row"}
    assert set(found.ratios) == {"base", "holds"}
    assert math.isnan(found.ratio("breaks", "base"))
    assert "breaks" in report.format_result("x", found)


async def test_each_contender_runs_in_each_round_in_another_order():
    """
    A B C A B C, and not always C after B: who comes after whom is a matter of luck.
    """
    ran = []
    names = "abcdef"

    await rounds.run_rounds({name: lambda name=name: ran.append(name) for name in names}, 10)

    orders = [tuple(ran[first : first + 6]) for first in range(0, 60, 6)]
    assert all(sorted(order) == list(names) for order in orders)
    # That it is the same one twice happens once in 720 times.
    assert len(set(orders)) > 5


def test_a_target_is_met_up_to_its_limit():
    """
    At the limit it still is; what did not run is neither met nor missed.
    """
    target = Target("find", "ours", "aiosqlite", 0.8)

    assert Verdict(target, 0.8, "aiosqlite").met
    assert not Verdict(target, 0.81, "aiosqlite").met
    assert not Verdict(target, math.nan, "aiosqlite").judged
    assert "not measured" in report.format_verdicts([Verdict(target, math.nan, "aiosqlite")])


def test_to_be_ahead_of_all_is_to_be_ahead_of_the_fastest():
    """
    Of a group it is the one that ours is least ahead of that is told; who blocks is no async peer.
    """
    found = result(aiosqlite=1.0, ours=2.0, Tortoise=3.0, Piccolo=8.0, peewee=1.0)

    (behind,) = evaluate({"x": found}, [Target("x", "ours", "peers", 1.0)])
    (ahead,) = evaluate({"x": found}, [Target("x", "ours", "async peers", 1.0)])

    assert (behind.rival, behind.ratio, behind.met) == ("peewee", 2.0, False)
    assert (ahead.rival, ahead.ratio, ahead.met) == ("Tortoise", 2 / 3, True)


def test_what_is_to_be_nothing_is_met_by_nothing_alone():
    """
    As with the imports of Alembic, of which none is allowed.
    """
    none = Target("x", "ours", ALLOWED, 1.0)

    def met(count):
        return evaluate({"x": result(**{ALLOWED: 0.0, "ours": count})}, [none])[0].met

    assert met(0.0)
    assert not met(1.0)


def test_every_target_is_of_something_that_is_measured():
    """
    A work or a contender that is called otherwise would be judged by nobody.
    """
    names = {each.name for each in CONTENDERS} | {ALLOWED, "gguf", "hashlib", "scan_cache_dir"}
    beginnings = tuple(part.name for part in BENCHMARKS)

    for target in TARGETS:
        assert target.by in names
        assert set(group_members(target.against)) <= names
        assert target.work.removeprefix("PostgreSQL: ").startswith((*beginnings, "adoption"))
    of_calls = {target.work for target in TARGETS} & {work.name for work in WORKLOADS}
    assert of_calls == {work.name for work in WORKLOADS if work.in_table}


def test_a_run_is_narrowed_by_words_and_by_hurry():
    """
    `--only table` is what a target is set for; in a hurry nothing has a million rows.
    """
    assert [part.name for part in select_benchmarks(["list 1k", "remove"], quick=True)] == [
        "list 1k",
        "remove",
    ]
    assert all(part.in_table for part in select_benchmarks(["table"], quick=False))
    assert len(select_benchmarks([], quick=False)) == len(BENCHMARKS)
    assert not [part.name for part in select_benchmarks([], quick=True) if "1M" in part.name]


@pytest.fixture
def bench(tmp_path):
    base = [each for each in CONTENDERS if each.name in ("aiosqlite", "sqlite3", "ours")]
    return Environment({"sqlite": base, "postgresql": []}, DatabaseFiles(tmp_path), tmp_path, HURRY)


def thousand(folder, migrated):
    """What the stock would make by all migrations, which takes longer."""
    shutil.copy(migrated, folder / "1000-rows.db")
    with closing(sqlite3.connect(folder / "1000-rows.db")) as raw, raw:
        raw.executemany(table.UPSERT, table.initial_rows(1000))


SMALL = [
    work
    for work in WORKLOADS
    if work.rows == 1000 and work.name not in ("10k in bulk", "find beside a busy loop, p90")
]


@pytest.mark.parametrize("work", SMALL, ids=[work.name for work in SMALL])
async def test_every_work_can_be_done(work, bench, sqlite_migrated):
    """
    All who have its verb get to its end with right answers, and are timed.
    """
    thousand(bench.folder, sqlite_migrated)

    (found,) = (await call_benchmark(work).play(bench)).values()

    assert found.broken == {}
    assert {"aiosqlite", "ours"} <= set(found.medians)
    assert all(seconds > 0 for seconds in found.medians.values())
    assert not any(bench.folder.glob("*-1000-rows.db"))


async def test_one_that_answers_wrongly_breaks(bench):
    """
    To be fast is not enough.
    """

    async def wrong(turn):
        require_correct(turn.who is None)

    (found,) = (await call_benchmark(Workload("wrong", wrong, rows=1)).play(bench)).values()

    assert found.broken["ours"].startswith("WrongAnswerError")
    assert found.medians == {}


async def test_a_run_is_printed_written_and_drawn(tmp_path, capsys, sqlite_migrated):
    """
    The JSON has every sample, each target its verdict, and the chart a dot for each contender.
    """
    words = ["--quick", "--rounds", "1", "--only", "find, 64 tasks", "--who", "ours", "sqlite3"]
    options = command.options_of(
        [*words, "--json", f"{tmp_path}/found.json", "--svg", f"{tmp_path}/found.svg"]
    )
    thousand(tmp_path, sqlite_migrated)

    code = await command.run(options, tmp_path, None)

    printed = capsys.readouterr().out
    assert code == 0
    assert "PostgreSQL is left out" in printed
    assert "find, 64 tasks: ours against aiosqlite" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["works"]["find, 64 tasks"]["samples"]["ours"]) == 1
    assert found["terms"]["durability"] == "full"
    assert ET.parse(tmp_path / "found.svg").getroot().tag.endswith("svg")


async def test_a_run_in_which_somebody_broke_says_so(tmp_path, capsys):
    """
    By its exit code, and by what was raised; and no thread is left that would keep it from ending.
    """
    tmp_path.joinpath("1000-rows.db").write_bytes(b"no database " * 100)
    options = command.options_of(["--quick", "--only", "list 1k", "--who", "ours", "sqlite3"])

    code = await command.run(options, tmp_path, None)

    assert code == 1
    assert "BROKE: open: DatabaseError: file is not a database" in capsys.readouterr().out
    for thread in threading.enumerate():
        if "_connection_worker" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


def circles(svg):
    return [each for each in ET.fromstring(svg).iter() if each.tag.endswith("circle")]


def test_a_chart_has_a_dot_for_each_ratio_and_is_read_in_the_dark():
    """
    Whatever the names have in them, it is well-formed; and what has no ratio is not drawn.
    """
    results = {"<find> & more": result(base=1.0, ours=0.1, peer=20.0, none=math.inf)}

    drawn = chart.ratios(results, ["<find> & more", "not done"], ["ours"], 'a "heading"')

    # A dot in the line, and one in the legend.
    assert len(circles(drawn)) == 2 * 3
    assert "prefers-color-scheme:dark" in drawn
    labels = [circle[0].text for circle in circles(drawn)]
    assert "<find> & more: peer, 20x" in labels
    across = {circle[0].text: float(circle.get("cx")) for circle in circles(drawn)}
    assert across["<find> & more: ours, 0.1x"] < across["<find> & more: base, 1x"]


def test_growth_is_flat_where_it_is_no_faster_than_an_index():
    """
    Ten thousand times the rows may cost three times as much: that is an index, and no scan.
    """
    index = growth.growth_of("find", result(**{"100": 1.0, "1000000": 2.0}))
    scanned = growth.growth_of("remove", result(**{"100": 1.0, "1000000": 10.0**4}))
    filtered = growth.growth_of("page, filtered and sorted", result(**{"100": 1.0, "1000": 9.0}))

    assert (index.flat, scanned.flat, filtered.flat) == (True, False, None)
    assert scanned.per_tenfold == pytest.approx(10.0)
    drawn = chart.growths([index, scanned], "growth")
    assert len(circles(drawn)) == 2 * 2 + 2
    assert "NOT FLAT" in growth.format_growth("ours", [scanned])


@pytest.mark.slow
async def test_growth_is_measured_at_each_size(tmp_path):
    """
    From a hundred rows, tenfold each time.
    """
    bench = Environment({"sqlite": [], "postgresql": []}, DatabaseFiles(tmp_path), tmp_path, HURRY)

    found = await growth.measure_growth(bench, "ours", 1000)

    assert [each.call for each in found] == [*growth.CONSTANT_CALLS, "page, filtered and sorted"]
    assert all(list(each.seconds) == [100, 1000] for each in found)


async def test_the_hive_database_is_one_that_is_adopted(tmp_path):
    """
    What is upgraded, and what is copied by hand to compare with, hold the same rows.
    """
    hive.create_hive_database(tmp_path / "hive.db", 50)
    await upgrade(tmp_path / "head.db")
    await hive.copy_rows(tmp_path / "hive.db", tmp_path / "head.db", "full")

    await upgrade(tmp_path / "hive.db")

    def rows(name):
        with closing(sqlite3.connect(tmp_path / name)) as raw:
            return raw.execute("SELECT reference, size_bytes FROM models ORDER BY 1").fetchall()

    assert (
        rows("hive.db") == rows("head.db") == sorted((e[1], e[4]) for e in table.initial_rows(50))
    )


def test_the_cache_is_one_that_is_scanned_whole(tmp_path):
    """
    Ten files a repository, three of them weights, and nothing missing.
    """
    scanned = scan(create_cache(tmp_path, 3))

    assert [len(model.files) for model in scanned.found] == [10, 10, 10]
    assert all(model.is_complete for model in scanned.found)


async def test_what_is_read_from_the_disk_is_measured(tmp_path):
    """
    Every line has a number; whether it holds is for a quiet machine and the real sizes to say.
    """
    tiny = disk.Sizes(tokens=100, hashed_bytes=2**20, files=1000, rounds=1)

    found = {}
    for measure in (disk.headers, disk.digests, disk.all_checks):
        found |= await measure(tmp_path, tiny)

    assert set(disk.row_titles(tiny).values()) - set(found) <= {disk.row_titles(tiny)["header"]}
    assert all(each.medians["ours"] > 0 for each in found.values())
    check = found["check of 1,000 files, 1 a model"].medians
    assert check[ALLOWED] == pytest.approx(3 * check["stat"] + check["writes"])


@pytest.mark.parametrize("tokens", [1, 1000])
def test_its_tokenizer_is_one_that_both_read(tmp_path, tokens):
    """
    What the readers are held against one another with is a real header.
    """
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    path.write_bytes(disk.make_gguf(tokens))

    fields = gguf.GGUFReader(path).fields

    assert len(fields["tokenizer.ggml.tokens"].data) == tokens
    assert disk.read_header(path).context_length == 4096
