"""
The versions of the run-time dependencies: the lowest ones as pins, and the installed ones.

    python tests/tested_versions.py lowest    # constraints for pip, one a line
    python tests/tested_versions.py show      # what this interpreter and the tests' server are
"""

import platform
import sqlite3
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement  # pytest requires it
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
RUN_TIME_EXTRAS = ("postgresql", "signing", "cli", "hub")


def read_project() -> dict:
    """Return the table [project] of pyproject.toml."""
    return tomllib.loads(PROJECT.read_text())["project"]


def run_time_requirements() -> list[Requirement]:
    """Return the dependencies of the package, and then those of its extras for users."""
    project = read_project()
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in RUN_TIME_EXTRAS for line in extras[name])]
    return [Requirement(line) for line in lines]


def lowest_version(requirement: Requirement) -> Version:
    """Return the version after `>=`. Without exactly one the requirement cannot be tested."""
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement} needs exactly one lower bound, as in name>=1.2")
    return Version(bounds[0])


def show() -> None:
    """Print the versions of a run, as the rows of a table of two columns."""
    versions = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    for requirement in run_time_requirements():
        try:
            versions[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            versions[requirement.name] = "not installed"
    versions["PostgreSQL"] = server_version()
    for name, version in versions.items():
        print(f"  {canonicalize_name(name):16} {version}")


def server_version() -> str:
    """Return the version of the server that the tests use, without what its packager appends."""
    import postgres

    with postgres.server() as url:
        if url is None:
            return "no server"
        with postgres.connection(url) as admin:
            return admin.execute("SHOW server_version").fetchone()[0].split()[0]


if __name__ == "__main__":
    if sys.argv[1:] == ["lowest"]:
        for each in run_time_requirements():
            print(f"{each.name}=={lowest_version(each)}")
    elif sys.argv[1:] == ["show"]:
        show()
    else:
        sys.exit(__doc__)
