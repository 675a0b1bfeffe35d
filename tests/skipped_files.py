"""
Print the test files in which a run has skipped tests, because a library was not installed.

    python tests/skipped_files.py JUNIT_XML
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]


def skipped_files(report: Path) -> Iterator[Path]:
    """Yield the files that call `importorskip` and have a skipped test in the report of a run."""
    modules = {
        # If a whole file was skipped, its name is that of the test.
        case.get("classname") or case.get("name")
        for case in ET.parse(report).iter("testcase")
        if case.find("skipped") is not None
    }
    for module in sorted(modules):
        path = ROOT / f"{module.replace('.', '/')}.py"
        if path.is_file() and "importorskip" in path.read_text():
            yield path.relative_to(ROOT)


if __name__ == "__main__":
    for each in skipped_files(Path(sys.argv[1])):
        print(each)
