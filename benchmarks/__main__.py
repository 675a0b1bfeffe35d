"""Measure the catalog side by side with other libraries: same table, same durability, in rounds."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import suite
from benchmarks.cases import growth
from benchmarks.contenders import CATALOG, CONTENDERS, ContenderSpec, available_contenders
from benchmarks.harness.benchmark import Environment, Settings
from benchmarks.harness.database_files import DatabaseFiles
from benchmarks.harness.models_table import DURABILITIES
from benchmarks.harness.postgres_server import PostgresServer, postgres_server
from benchmarks.harness.rounds import Result
from benchmarks.reports import charts, markdown, text
from benchmarks.targets import TARGETS, evaluate
from benchmarks.versions import comparison
from benchmarks.versions.installations import ROOT, describe_installation, install_version

_OWN_NAMES = [spec.name for spec in CONTENDERS if spec.kind == "model-catalog"]


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="finish in under 5 minutes: fewer rows and rounds, and no busy event loop",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="benchmarks with one of these words in their names; `table`: those with a target;"
        " `hosts`: those with a target over a host's sessions",
    )
    parser.add_argument(
        "--who",
        nargs="+",
        default=[],
        metavar="WORD",
        help="contenders with one of these words in their names, and the baseline",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="run at most N rounds")
    parser.add_argument(
        "--durability",
        choices=DURABILITIES,
        default="full",
        help="SQLite's `synchronous` for all contenders (default: full)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the chart in FILE")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--growth",
        action="store_true",
        help="measure how the cost of a call grows from 10^2 to 10^6 models",
    )
    modes.add_argument(
        "--against",
        metavar="VERSION",
        help="compare the working tree with another version of model-catalog: a virtual"
        " environment, a wheel, a checkout, or a git revision",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=1.05,
        metavar="RATIO",
        help="with --against: exit with 1 if a row takes more than RATIO times (default: 1.05)",
    )
    options = parser.parse_args(arguments)
    if options.svg and importlib.util.find_spec("matplotlib") is None:
        parser.error("--svg needs matplotlib: install it with pip install -e '.[bench]'")
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    settings = Settings(durability=options.durability, quick=options.quick)
    if options.quick:
        settings = replace(settings, rounds=6, budget_s=0.15)
    elif options.against:
        # A difference of 5 % needs more rounds than a factor.
        settings = replace(settings, rounds=100, budget_s=6.0)
    return replace(settings, rounds=options.rounds or settings.rounds)


def find_contenders(
    words: list[str], server: PostgresServer | None
) -> tuple[dict[str, list[ContenderSpec]], list[str]]:
    """The contenders on each database, and the reasons why others are left out."""
    contenders: dict[str, list[ContenderSpec]] = {}
    reasons: list[str] = []
    for database in ("sqlite", "postgresql"):
        available, missing = available_contenders(database)
        reasons += missing
        # The first contender is the baseline: without it there are no ratios.
        contenders[database] = available[:1] + [
            spec for spec in available[1:] if any(word in spec.name for word in words or [""])
        ]
    if server is None:
        reasons.append("PostgreSQL is left out: no server was found")
        contenders["postgresql"] = []
    return contenders, reasons


async def run_benchmarks(
    environment: Environment, options: argparse.Namespace, reasons: list[str]
) -> int:
    results: dict[str, Result] = {}
    for benchmark in suite.select_benchmarks(options.only, quick=options.quick):
        for title, result in (await benchmark.run(environment)).items():
            results[title] = result
            print(f"\n{text.format_result(title, result)}", flush=True)
    verdicts = evaluate(results)
    if verdicts:
        print(f"\n{text.format_verdicts(verdicts)}")
    settings = environment.settings
    if options.json:
        report = text.to_json(results, verdicts, vars(settings), reasons)
        options.json.write_text(json.dumps(report, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown.to_markdown(results, verdicts, settings, reasons))
    if options.svg:
        titles = list(
            dict.fromkeys(target.benchmark for target in TARGETS if target.contender in _OWN_NAMES)
        )
        shown = [title for title in titles if title in results and _is_race(results[title])]
        heading = f"model-catalog and other libraries, synchronous={settings.durability.upper()}"
        ratios = {title: results[title].ratios for title in shown}
        options.svg.write_text(charts.draw_ratios(ratios, _OWN_NAMES, heading))
    return 1 if any(result.broken for result in results.values()) else 0


def _is_race(result: Result) -> bool:
    """Whether it compares the time or memory of contenders, and not a value with a limit."""
    return len(result.samples) > 2 and result.unit != "times"


async def run_growth(environment: Environment, options: argparse.Namespace) -> int:
    found = {}
    largest = 10**5 if options.quick else 10**6
    for spec in environment.contenders["sqlite"]:
        if spec.name in (CATALOG, "aiosqlite"):
            found[spec.name] = await growth.measure_growth(environment, spec.name, largest)
            print(f"\n{growth.format_growth(spec.name, found[spec.name])}", flush=True)
    paging = await growth.measure_paging(environment, CATALOG, largest)
    print(f"\n{growth.format_paging(paging)}", flush=True)
    if options.json:
        report = {
            name: {
                each.call: {**each.seconds, "ratio": each.ratio, "constant": each.is_constant}
                for each in calls
            }
            for name, calls in found.items()
        }
        options.json.write_text(json.dumps({"machine": text.machine_info(), **report}, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown.growth_to_markdown(found, paging))
    if options.svg:
        heading = "Cost of a call as the catalog grows"
        # One line for each order: there are more filters than a chart has colours.
        drawn = [each for each in found[CATALOG] if growth.is_drawn(each.call)]
        calls = {each.call: each.seconds for each in drawn}
        options.svg.write_text(charts.draw_growth(calls, heading))
    return 0


async def run_comparison(environment: Environment, options: argparse.Namespace) -> int:
    folder = environment.folder / "versions"
    folder.mkdir()
    installations = (
        install_version(options.against, comparison.PREVIOUS, folder),
        install_version(str(ROOT), comparison.CURRENT, folder),
    )
    for installation in installations:
        print(describe_installation(installation), flush=True)
    contenders = {
        database: [
            spec
            for spec in specs
            if spec.kind == "model-catalog"
            and any(word in spec.name for word in options.who or [""])
        ]
        for database, specs in environment.contenders.items()
    }
    rows = await comparison.compare_versions(
        replace(environment, contenders=contenders),
        suite.select_benchmarks(
            options.only, quick=options.quick, benchmarks=suite.CONTENDER_BENCHMARKS
        ),
        installations,
        options.limit,
        lambda line: print(line, flush=True),
    )
    print(comparison.format_summary(rows, options.limit))
    if options.json:
        report = comparison.to_json(rows, options.limit)
        options.json.write_text(json.dumps({"machine": text.machine_info(), **report}, indent=1))
    return 1 if any(row.exceeds(options.limit) for row in rows) else 0


async def run(options: argparse.Namespace, folder: Path, server: PostgresServer | None) -> int:
    """Run what the options ask for; returns the exit code."""
    contenders, reasons = find_contenders(options.who, server)
    settings = settings_of(options)
    environment = Environment(contenders, DatabaseFiles(folder, server), folder, settings)
    postgres = [] if server is None else [server.durability]
    print(text.heading(settings.durability), *postgres, *reasons, sep="\n", flush=True)
    if options.growth:
        return await run_growth(environment, options)
    if options.against:
        return await run_comparison(environment, options)
    return await run_benchmarks(environment, options, reasons)


def main() -> int:
    options = parse_options()
    with (
        tempfile.TemporaryDirectory(prefix="model-catalog-benchmark-") as folder,
        postgres_server() as server,
    ):
        return asyncio.run(run(options, Path(folder), server))


if __name__ == "__main__":
    sys.exit(main())
