"""The versions that docs/contributing.md states are those of pyproject.toml and `.ci/run`."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tested_versions import lowest_version, read_project, run_time_requirements

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/contributing.md").read_text()
CI = (ROOT / ".ci/run").read_text()
# The rows of a table of three columns: a name, the lowest version, the newest version.
ROWS = {
    canonicalize_name(name): (Version(lowest), Version(newest))
    for name, lowest, newest in re.findall(
        r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE
    )
}
NOT_FROM_PYPI = {"python", "postgresql", "sqlite", "pgbouncer"}
REQUIREMENTS = {canonicalize_name(each.name): each for each in run_time_requirements()}


def test_the_table_of_versions_has_every_run_time_dependency():
    """A new dependency gets a row, and a removed one loses it."""
    assert set(ROWS) == set(REQUIREMENTS) | NOT_FROM_PYPI


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_the_table_states_the_bounds_of_a_dependency(name):
    """The lowest version is the lower bound, and the newest one is allowed."""
    lowest, newest = ROWS[name]

    assert lowest == lowest_version(REQUIREMENTS[name])
    assert newest >= lowest
    assert newest in REQUIREMENTS[name].specifier


def test_the_table_is_about_this_release():
    """pyproject.toml, the changelog and the sentence above the table name the same release."""
    release = read_project()["version"]
    headings = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == release
    assert f"Release {release} was tested with these versions" in PAGE


def test_the_classifiers_name_the_versions_of_python_that_are_tested():
    """`.ci/run` takes the first one from .venv and searches for the others."""
    project = read_project()
    named = [
        line.rpartition(" ")[2]
        for line in project["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
    ]
    lowest, newest = ROWS["python"]

    assert project["requires-python"] == f">={named[0]}"
    assert sorted(named[1:]) == sorted(re.findall(r"\(find_python ([\d.]+)\)", CI))
    assert [f"{each.major}.{each.minor}" for each in (lowest, newest)] == [named[0], named[-1]]


def test_the_lowest_version_is_the_lower_bound():
    """An upper bound, an extra and a marker do not change it."""
    assert lowest_version(Requirement('a[b]>=1.2,<2; python_version > "3"')) == Version("1.2")


@pytest.mark.parametrize("line", ["a", "a<2", "a==1.2"])
def test_a_dependency_without_a_lower_bound_is_refused(line):
    """The message says how to write it."""
    with pytest.raises(ValueError, match=r"needs exactly one lower bound"):
        lowest_version(Requirement(line))
