"""The benchmark command runs, and its numbers mean what its report says."""

import asyncio
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
from benchmarks.cases import (
    fleet,
    growth,
    hive_upgrade,
    hub_download,
    long_calls,
    model_files,
    processes,
    search,
)
from benchmarks.contenders import CATALOG, CONTENDERS
from benchmarks.harness import models_table, rounds
from benchmarks.harness.benchmark import ALLOWED, Environment, Settings
from benchmarks.harness.call_benchmarks import call_benchmark
from benchmarks.harness.database_files import DatabaseFiles
from benchmarks.harness.hub_cache import create_hub_cache
from benchmarks.harness.rounds import Result, Sample
from benchmarks.harness.workloads import WORKLOADS, Workload, require_correct
from benchmarks.reports import charts, text
from benchmarks.suite import BENCHMARKS, select_benchmarks
from benchmarks.targets import TARGETS, Target, Verdict, evaluate, group_members

from model_catalog import open_catalog
from model_catalog.schema.migrate import upgrade
from model_catalog.stores.scanners.huggingface import scan
from model_catalog.upkeep import adopt

# Every turn starts with a garbage collection.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_garbage_collections")]

ONE_ROUND = Settings(rounds=1, budget_s=0.0, quick=True)


def result(**seconds):
    """A result with one round."""
    return Result({name: {0: value} for name, value in seconds.items()})


async def test_ratios_are_taken_within_a_round(monkeypatch):
    """A machine that is slow in one round is slow for all contenders: the ratio stays the same."""
    now = 0.0
    slowness = iter([1.0, 1.0, 9.0, 9.0, 1.0, 1.0])
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now)
    monkeypatch.setattr(rounds.random, "sample", lambda names, _: names)

    def contender_of(seconds):
        def contender():
            nonlocal now
            now += seconds * next(slowness)

        return contender

    contenders = {"baseline": contender_of(1.0), "double": contender_of(2.0)}
    found = await rounds.run_rounds(contenders, 3)

    assert found.ratios == {"baseline": 1.0, "double": 2.0}
    assert found.medians == {"baseline": 1.0, "double": 2.0}


async def test_a_slow_contender_runs_fewer_rounds_than_the_baseline():
    """It stops after the third round, and its ratio is to the baseline's same three rounds."""
    ran = dict.fromkeys(("baseline", "slow"), 0)

    def contender(name, wait_s):
        async def run_once():
            ran[name] += 1
            await asyncio.sleep(wait_s)
            return Sample(1.0 + ran[name])

        return run_once

    contenders = {
        "baseline": contender("baseline", 0.02),
        "slow": contender("slow", 0.02),
        "fast": lambda: None,
    }
    found = await rounds.run_rounds(contenders, 8, budget_s=0.03)

    assert ran["slow"] == 3
    assert ran["baseline"] == 8
    assert found.ratios["slow"] == 1.0


async def test_the_warm_up_round_is_not_counted():
    """Imports, connections and compiled statements of the first call are not measured."""
    samples = iter([100.0, 1.0, 1.0])

    found = await rounds.run_rounds({"baseline": lambda: Sample(next(samples))}, 2, warm_up=True)

    assert found.medians == {"baseline": 1.0}


async def test_a_contender_that_raises_is_reported_and_the_others_continue():
    """It has no ratio, and the report shows the exception."""

    def raises():
        raise LookupError("no such row")

    contenders = {"baseline": lambda: None, "raises": raises, "works": int}
    found = await rounds.run_rounds(contenders, 2)

    assert found.broken == {"raises": "LookupError: no such row"}
    assert set(found.ratios) == {"baseline", "works"}
    assert math.isnan(found.ratio("raises", "baseline"))
    assert "raises" in text.format_result("x", found)


async def test_every_round_runs_all_contenders_in_a_random_order():
    """No contender always runs after the same other one."""
    ran = []
    names = "abcdef"

    await rounds.run_rounds({name: lambda name=name: ran.append(name) for name in names}, 10)

    orders = [tuple(ran[first : first + 6]) for first in range(0, 60, 6)]
    assert all(sorted(order) == list(names) for order in orders)
    # Two given rounds have the same order with a probability of 1 in 720.
    assert len(set(orders)) > 5


def test_a_target_is_met_up_to_and_including_its_limit():
    """A target without a measurement is neither met nor missed."""
    target = Target("find", CATALOG, "aiosqlite", 0.8)

    assert Verdict(target, 0.8, "aiosqlite").is_met
    assert not Verdict(target, 0.81, "aiosqlite").is_met
    assert not Verdict(target, math.nan, "aiosqlite").is_measured
    assert "not measured" in text.format_verdicts([Verdict(target, math.nan, "aiosqlite")])


def test_a_target_for_a_group_is_compared_with_the_fastest_member():
    """A library that blocks the event loop is not in the group of async libraries."""
    names = {"aiosqlite": 1.0, CATALOG: 2.0, "Tortoise": 3.0, "Piccolo": 8.0, "peewee": 1.0}
    found = result(**names)

    (all_libraries,) = evaluate({"x": found}, [Target("x", CATALOG, "libraries", 1.0)])
    (async_ones,) = evaluate({"x": found}, [Target("x", CATALOG, "async libraries", 1.0)])

    assert (all_libraries.rival, all_libraries.ratio) == ("peewee", 2.0)
    assert not all_libraries.is_met
    assert (async_ones.rival, async_ones.ratio, async_ones.is_met) == ("Tortoise", 2 / 3, True)


def test_a_limit_of_zero_is_met_by_zero_only():
    """For example, Alembic must not be imported at all."""
    target = Target("x", CATALOG, ALLOWED, 1.0)

    def is_met(count):
        return evaluate({"x": result(**{ALLOWED: 0.0, CATALOG: count})}, [target])[0].is_met

    assert is_met(0.0)
    assert not is_met(1.0)


def test_every_target_names_an_existing_benchmark_and_contender():
    """A target with a misspelled name would never be evaluated."""
    names = {spec.name for spec in CONTENDERS} | {
        *(ALLOWED, "gguf", "hashlib", "scan_cache_dir", "snapshot_download", "find_model"),
        *(fleet.ONE_HOST, hub_download.NORMAL, processes.OF_1K, long_calls.ALL_REVISIONS),
        search.EVERY_MODEL,
    }
    prefixes = tuple(benchmark.name for benchmark in BENCHMARKS)

    for target in TARGETS:
        assert target.contender in names
        assert set(group_members(target.rival)) <= names
        assert target.benchmark.removeprefix("PostgreSQL: ").startswith((*prefixes, "adoption"))
    titles = {target.benchmark.removeprefix("PostgreSQL: ") for target in TARGETS}
    with_target = titles & {each.name for each in WORKLOADS}
    assert with_target == {workload.name for workload in WORKLOADS if workload.has_target}


def test_benchmarks_are_selected_by_words_and_by_quick():
    """`--only table` selects the benchmarks with a target; `--quick` skips a million models."""
    selected = select_benchmarks(["list 1k", "remove"], quick=True)

    assert [benchmark.name for benchmark in selected] == ["list 1k", "remove"]
    assert all(benchmark.has_target for benchmark in select_benchmarks(["table"], quick=False))
    assert len(select_benchmarks([], quick=False)) == len(BENCHMARKS)
    assert not [each.name for each in select_benchmarks([], quick=True) if "1M" in each.name]


@pytest.fixture
def environment(tmp_path):
    specs = [spec for spec in CONTENDERS if spec.name in ("aiosqlite", "sqlite3", CATALOG)]
    contenders = {"sqlite": specs, "postgresql": []}
    return Environment(contenders, DatabaseFiles(tmp_path), tmp_path, ONE_ROUND)


def create_thousand_models(folder, migrated):
    """Create the file that `DatabaseFiles` would create, without the time of all migrations."""
    shutil.copy(migrated, folder / "1000-rows.db")
    with closing(sqlite3.connect(folder / "1000-rows.db")) as raw, raw:
        raw.executemany(models_table.UPSERT, models_table.initial_rows(1000))


SLOW_WORKLOADS = ("10k in bulk", "find beside a busy loop, p90")
SMALL = [each for each in WORKLOADS if each.rows == 1000 and each.name not in SLOW_WORKLOADS]


@pytest.mark.parametrize("workload", SMALL, ids=[workload.name for workload in SMALL])
async def test_every_workload_runs(workload, environment, sqlite_migrated):
    """All contenders with its method return correct results and are timed."""
    create_thousand_models(environment.folder, sqlite_migrated)

    (found,) = (await call_benchmark(workload).run(environment)).values()

    assert found.broken == {}
    only_ours = workload.method == "scan_hub_cache"
    assert set(found.medians) >= ({CATALOG} if only_ours else {"aiosqlite", CATALOG})
    assert all(seconds > 0 for seconds in found.medians.values())
    assert not any(environment.folder.glob("*-1000-rows.db"))


async def test_a_contender_with_a_wrong_result_is_broken(environment):
    """A fast wrong answer is not a result."""

    async def check(turn):
        require_correct(turn.contender is None)

    (found,) = (await call_benchmark(Workload("wrong", check, rows=1)).run(environment)).values()

    assert found.broken[CATALOG].startswith("WrongAnswerError")
    assert found.medians == {}


async def test_a_run_prints_a_report_and_writes_json_and_svg(tmp_path, capsys, sqlite_migrated):
    """The JSON contains every sample, and the report a verdict for each target."""
    pytest.importorskip("matplotlib")
    words = ["--quick", "--rounds", "1", "--only", "find, 64 tasks", "--who", CATALOG, "sqlite3"]
    options = command.parse_options(
        [*words, "--json", f"{tmp_path}/found.json", "--svg", f"{tmp_path}/found.svg"]
    )
    create_thousand_models(tmp_path, sqlite_migrated)

    code = await command.run(options, tmp_path, None)

    printed = capsys.readouterr().out
    assert code == 0
    assert "PostgreSQL is left out" in printed
    assert "find, 64 tasks: model-catalog and aiosqlite" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["benchmarks"]["find, 64 tasks"]["samples"][CATALOG]) == 1
    assert found["settings"]["durability"] == "full"
    assert ET.parse(tmp_path / "found.svg").getroot().tag.endswith("svg")


async def test_a_run_with_a_broken_contender_exits_with_1(tmp_path, capsys):
    """The exception is printed, and no thread remains that would keep the process alive."""
    tmp_path.joinpath("1000-rows.db").write_bytes(b"no database " * 100)
    options = command.parse_options(["--quick", "--only", "list 1k", "--who", CATALOG, "sqlite3"])

    code = await command.run(options, tmp_path, None)

    assert code == 1
    assert "FAILED: open: DatabaseError: file is not a database" in capsys.readouterr().out
    for thread in threading.enumerate():
        if "_connection_worker" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


def svg_texts(svg):
    return [each.text for each in ET.fromstring(svg).iter() if each.tag.endswith("}text")]


def svg_markers(svg):
    return [each for each in ET.fromstring(svg).iter() if each.tag.endswith("}use")]


def test_the_chart_of_ratios_names_every_benchmark_and_contender():
    """Special characters are escaped. A contender without a ratio is not drawn."""
    pytest.importorskip("matplotlib")
    ratios = {"<find> & more": {"base": 1.0, CATALOG: 0.1, "library": 20.0, "none": math.inf}}

    chart = charts.draw_ratios(ratios, [CATALOG], 'a "heading"')

    assert {"<find> & more", "base", CATALOG, "library", 'a "heading"'} <= set(svg_texts(chart))
    assert "none" not in svg_texts(chart)
    fewer = {"<find> & more": {"base": 1.0, CATALOG: 0.1}}
    removed = len(svg_markers(chart)) - len(svg_markers(charts.draw_ratios(fewer, [CATALOG], "")))
    # One marker in the row and one in the legend.
    assert removed >= 2


def test_a_chart_is_the_same_file_for_the_same_numbers():
    """The file contains no date and no random identifiers."""
    pytest.importorskip("matplotlib")
    calls = {"find": {100: 1e-4, 1000: 2e-4}, "remove": {100: 1e-4, 1000: 2e-4}}

    first, second = (charts.draw_growth(calls, "growth") for _ in range(2))

    assert first == second
    assert {"find", "remove", "growth"} <= set(svg_texts(first))


def test_a_cost_that_grows_like_an_index_is_constant():
    """With ten thousand times as many models a call may cost three times as much."""
    indexed = growth.growth_of("find", result(**{"100": 1.0, "1000000": 2.0}))
    scanned = growth.growth_of("remove", result(**{"100": 1.0, "1000000": 10.0**4}))
    filtered = growth.growth_of("page, filtered and sorted", result(**{"100": 1.0, "1000": 9.0}))

    constant = (indexed.is_constant, scanned.is_constant, filtered.is_constant)
    assert constant == (True, False, None)
    assert scanned.per_tenfold == pytest.approx(10.0)
    assert "NOT CONSTANT" in growth.format_growth(CATALOG, [scanned])


def test_a_page_of_a_rare_value_is_compared_with_a_full_one():
    """A catalog of a hundred models has two models of a value that 2 % have."""
    costs = {"100": 1.0, "1000": 5.0, "10000": 6.0, "1000000": 9.0}

    rare = growth.growth_of("page by size, architecture of 2 %", result(**costs))
    common = growth.growth_of("page by size, architecture", result(**costs))

    assert (rare.smallest, rare.ratio, rare.is_constant) == (10_000, 1.5, True)
    assert (common.smallest, common.ratio, common.is_constant) == (100, 9.0, False)


async def test_growth_is_measured_at_each_size(tmp_path):
    """The sizes are 100 models, 1000, and so on."""
    contenders = {"sqlite": [], "postgresql": []}
    environment = Environment(contenders, DatabaseFiles(tmp_path), tmp_path, ONE_ROUND)

    found = await growth.measure_growth(environment, CATALOG, 1000)

    calls = [*growth.CONSTANT_CALLS, "page, filtered and sorted", *growth.SUM_CALLS]
    calls += growth.page_calls()
    assert [each.call for each in found] == calls
    assert all(list(each.seconds) == [100, 1000] for each in found)


async def test_paging_is_measured_in_each_order(tmp_path):
    """All models are read, and the last pages are compared with the first."""
    contenders = {"sqlite": [], "postgresql": []}
    environment = Environment(contenders, DatabaseFiles(tmp_path), tmp_path, ONE_ROUND)

    found = await growth.measure_paging(environment, CATALOG, 1000)

    assert [(each.order, each.pages) for each in found] == [
        (order, 2) for order in (*growth.PAGING_ORDERS, *growth.OTHER_ORDERS)
    ]
    assert "2 pages" in growth.format_paging(found)


async def test_the_hive_upgrade_and_its_baseline_produce_the_same_rows(tmp_path):
    """The catalog upgrades the hive database. The baseline copies it with SQL."""
    hive_upgrade.create_hive_database(tmp_path / "hive.db", 50)
    await upgrade(tmp_path / "head.db")
    await hive_upgrade.copy_rows(tmp_path / "hive.db", tmp_path / "head.db", "full")

    await upgrade(tmp_path / "hive.db")

    def read_rows(name):
        with closing(sqlite3.connect(tmp_path / name)) as raw:
            return raw.execute("SELECT reference, size_bytes FROM models ORDER BY 1").fetchall()

    expected = sorted((e.reference, e.size_bytes) for e in models_table.initial_rows(50))
    assert read_rows("hive.db") == read_rows("head.db") == expected


async def test_the_generated_cache_is_complete_with_readable_headers(tmp_path):
    """Each repository has ten files, three of them weights."""
    scanned = scan(create_hub_cache(tmp_path / "hub", 3))
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        await adopt(catalog, scanned)
        models = await catalog.list_models()

    found = {(model.format, model.architecture, model.incomplete_reason) for model in models}
    assert found == {("gguf", "llama", None), ("safetensors", "llama", None)}
    assert all(model.headers_read_at for model in models)

    assert [len(model.files) for model in scanned.found] == [10, 10, 10]
    assert all(model.is_complete for model in scanned.found)


async def test_every_file_benchmark_measures(tmp_path):
    """Every row has a value. Limits are evaluated in a real run only."""
    tiny = model_files.Sizes(tokens=100, hashed_bytes=2**20, files=1000, rounds=1)

    found = {}
    for measure in (model_files.headers, model_files.digests, model_files.all_checks):
        found |= await measure(tmp_path, tiny)

    titles = model_files.row_titles(tiny)
    assert set(titles.values()) - set(found) <= {titles["header"]}
    assert all(each.medians[CATALOG] > 0 for each in found.values())
    check = found["check of 1,000 files, 1 per model"].medians
    assert check[ALLOWED] == pytest.approx(3 * check["stat"] + check["writes"])


@pytest.mark.parametrize("tokens", [1, 1000])
def test_the_generated_gguf_file_is_read_by_both_readers(tmp_path, tokens):
    """Its header is valid for the gguf library and for the catalog."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    path.write_bytes(model_files.make_gguf(tokens))

    fields = gguf.GGUFReader(path).fields

    assert len(fields["tokenizer.ggml.tokens"].data) == tokens
    assert model_files.read_header(path).context_length == 4096
