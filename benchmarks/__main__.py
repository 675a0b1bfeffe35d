"""Measure the catalog beside what else there is: all in turns, the same table, the same safety."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.contenders import ENTRANTS, Entrant, installed
from benchmarks.match import Terms, play
from benchmarks.rounds import Result
from benchmarks.server import Server, servers
from benchmarks.stock import Stock
from benchmarks.table import DURABILITIES
from benchmarks.targets import judge
from benchmarks.works import WORKS, Work


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 5 minutes: fewer rounds and rows")
    parser.add_argument(
        "--only",
        metavar="WORK",
        help="works whose name has one of these words in it, comma separated; `table` is those"
        " that have a target",
    )
    parser.add_argument("--who", metavar="NAME", help="contenders, as --only; the base is always there")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many of each work")
    parser.add_argument(
        "--durability",
        choices=DURABILITIES,
        default="full",
        help="SQLite's synchronous, on all sides (full)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw a chart there")
    return parser


def chosen(only: str | None, quick: bool) -> list[Work]:  # noqa: FBT001
    """The works that are wanted; in a hurry none has a million rows."""
    words = (only or "").split(",")
    return [
        work
        for work in WORKS
        if (not quick or work.rows < 1_000_000)
        and any(work.in_table if word == "table" else word in work.name for word in words)
    ]


def title_of(work: Work, database: str) -> str:
    return work.name if database == "sqlite" else f"PostgreSQL: {work.name}"


async def run(options: argparse.Namespace, folder: Path, server: Server | None) -> int:
    terms = Terms(
        rounds=options.rounds or (10 if options.quick else 40),
        budget_s=0.35 if options.quick else 2.0,
        durability=options.durability,
    )
    stock = Stock(folder, server)
    there: dict[str, list[Entrant]] = {}
    absent: list[str] = []
    for database in ("sqlite", "postgresql"):
        there[database], lacking = installed(database)
        absent += lacking
        if options.who:
            there[database] = [
                each
                for number, each in enumerate(there[database])
                if number == 0 or any(word in each.name for word in options.who.split(","))
            ]
    if server is None:
        absent.append("PostgreSQL is left out: there is no server")
        there["postgresql"] = []
    print(report.heading(terms.durability))
    print("\n".join(absent))
    results: dict[str, Result] = {}
    for work in chosen(options.only, options.quick):
        for database in work.databases:
            if there[database]:
                title = title_of(work, database)
                results[title] = await play(work, there[database], stock, terms)
                print(f"\n{report.section(title, results[title])}", flush=True)
    judged = judge(results)
    if judged:
        print(f"\n{report.verdicts(judged)}")
    if options.json:
        text = report.as_json(results, judged, vars(terms), absent)
        options.json.write_text(json.dumps(text, indent=1))
    return 1 if any(result.broken for result in results.values()) else 0


def main() -> int:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="model-catalog-benchmark-") as name, servers() as server:
        return asyncio.run(run(options, Path(name), server))


if __name__ == "__main__":
    sys.exit(main())
