"""`python -m benchmarks`: measure, and print what holds and what does not."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import disk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    options = parser.parse_args()
    sizes = disk.Sizes()
    if options.quick:
        sizes = disk.Sizes(hashed_bytes=2**28, files=10_000, rounds=3)
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores"
    )
    rows = asyncio.run(disk.run(sizes))
    width = max(len(row.name) for row in rows)
    for row in rows:
        limit = "" if row.limit == float("inf") else f"at most {row.limit:g}"
        verdict = "" if not limit else "holds" if row.holds else "DOES NOT HOLD"
        print(f"{row.name:<{width}}  {row.value:8.3f}{row.unit:<3} {limit:<14} {verdict}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
