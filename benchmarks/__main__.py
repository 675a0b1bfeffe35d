"""Measure the catalog beside what else there is: all in turns, the same table, the same safety."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.cases import growth
from benchmarks.contenders import CONTENDERS, ContenderSpec, available_contenders, contender_spec
from benchmarks.harness.benchmark import Environment, Settings
from benchmarks.harness.database_files import DatabaseFiles
from benchmarks.harness.models_table import DURABILITIES
from benchmarks.harness.postgres_server import PostgresServer, postgres_server
from benchmarks.harness.rounds import Result
from benchmarks.reports import charts as chart
from benchmarks.reports import markdown
from benchmarks.reports import text as report
from benchmarks.suite import select_benchmarks
from benchmarks.targets import TARGETS, evaluate

_OURS = [each.name for each in CONTENDERS if each.kind == "ours"]


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="in under 5 minutes: fewer rows and rounds, and no busy loop",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORK",
        help="what has one of these in its name; `table` is all that a target is set for",
    )
    parser.add_argument(
        "--who",
        nargs="+",
        default=[],
        metavar="NAME",
        help="contenders that have one of these in their names, and the base",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many")
    parser.add_argument(
        "--durability",
        choices=DURABILITIES,
        default="full",
        help="SQLite's synchronous, on all sides (full)",
    )
    parser.add_argument(
        "--growth", action="store_true", help="instead: how cost grows from 10^2 to 10^6 rows"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the chart there")
    return parser.parse_args(arguments)


def terms_of(options: argparse.Namespace) -> Settings:
    return Settings(
        rounds=options.rounds or (6 if options.quick else 40),
        budget_s=0.15 if options.quick else 2.0,
        durability=options.durability,
        quick=options.quick,
    )


def gathered(
    who: list[str], server: PostgresServer | None
) -> tuple[dict[str, list[ContenderSpec]], list[str]]:
    """The contenders on each database, and in words who is left out."""
    there: dict[str, list[ContenderSpec]] = {}
    absent: list[str] = []
    for database in ("sqlite", "postgresql"):
        present, lacking = available_contenders(database)
        absent += lacking
        # The first is the base, without which there are no ratios.
        there[database] = present[:1] + [
            each for each in present[1:] if any(word in each.name for word in who or [""])
        ]
    if server is None:
        absent.append("PostgreSQL is left out: there is no server")
        there["postgresql"] = []
    return there, absent


async def measure(bench: Environment, options: argparse.Namespace, absent: list[str]) -> int:
    results: dict[str, Result] = {}
    for part in select_benchmarks(options.only, quick=options.quick):
        for title, result in (await part.play(bench)).items():
            results[title] = result
            print(f"\n{report.format_result(title, result)}", flush=True)
    judged = evaluate(results)
    if judged:
        print(f"\n{report.format_verdicts(judged)}")
    if options.json:
        found = report.to_json(results, judged, vars(bench.terms), absent)
        options.json.write_text(json.dumps(found, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown.to_markdown(results, judged, bench.terms, absent))
    if options.svg:
        titles = list(dict.fromkeys(target.work for target in TARGETS if target.by in _OURS))
        drawn = [title for title in titles if title in results and not _is_a_limit(results[title])]
        heading = f"model-catalog beside the others, synchronous = {bench.terms.durability.upper()}"
        options.svg.write_text(chart.ratios(results, drawn, _OURS, heading))
    return 1 if any(result.broken for result in results.values()) else 0


def _is_a_limit(result: Result) -> bool:
    """Whether it is held against a number: that is no race."""
    return len(result.samples) < 3


async def measure_growth(bench: Environment, options: argparse.Namespace) -> int:
    found = {}
    for each in bench.entrants["sqlite"]:
        if each.name in ("ours", "aiosqlite"):
            largest = 10**5 if options.quick else 10**6
            found[each.name] = await growth.measure_growth(
                bench, contender_spec(each.name).name, largest
            )
            print(f"\n{growth.format_growth(each.name, found[each.name])}", flush=True)
    if options.json:
        text = {
            name: {
                each.call: {**each.seconds, "ratio": each.ratio, "flat": each.flat} for each in of
            }
            for name, of in found.items()
        }
        options.json.write_text(json.dumps({"machine": report.machine_info(), **text}, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown.growth_to_markdown(found))
    if options.svg:
        heading = "What a call costs as the catalog grows"
        options.svg.write_text(chart.growths(found["ours"], heading))
    return 0


async def run(options: argparse.Namespace, folder: Path, server: PostgresServer | None) -> int:
    there, absent = gathered(options.who, server)
    bench = Environment(there, DatabaseFiles(folder, server), folder, terms_of(options))
    safety = [] if server is None else [server.safety]
    print(report.heading(bench.terms.durability), *safety, *absent, sep="\n")
    if options.growth:
        return await measure_growth(bench, options)
    return await measure(bench, options, absent)


def main() -> int:
    options = options_of()
    with (
        tempfile.TemporaryDirectory(prefix="model-catalog-benchmark-") as folder,
        postgres_server() as server,
    ):
        return asyncio.run(run(options, Path(folder), server))


if __name__ == "__main__":
    sys.exit(main())
