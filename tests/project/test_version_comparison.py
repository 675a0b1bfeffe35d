"""`python -m benchmarks --against` compares two versions of the package and fails on a slow row."""

import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as command
from benchmarks.harness import models_table
from benchmarks.harness.rounds import Result, Sample
from benchmarks.versions.comparison import CURRENT, PREVIOUS, Row, format_row, merge_results
from benchmarks.versions.installations import (
    InstallationError,
    describe_installation,
    install_version,
)

pytestmark = pytest.mark.slow

ROW = "find, nothing there [model-catalog, inline reads]"


@pytest.fixture
def slow_version(tmp_path):
    """A folder with a version of the package in which `find_model` takes 5 ms longer."""
    folder = tmp_path / "slow"
    shutil.copytree(ROOT / "src" / "model_catalog", folder / "model_catalog")
    with (folder / "model_catalog" / "__init__.py").open("a") as module:
        module.write(
            "\n\ndef _slow_down():\n"
            "    import time\n"
            "    from model_catalog.repository.model_catalog import ModelCatalog as facade\n"
            "    find = facade.find_model\n"
            "    def find_slowly(*arguments, **options):\n"
            "        time.sleep(0.005)\n"
            "        return find(*arguments, **options)\n"
            "    facade.find_model = find_slowly\n"
            "_slow_down()\n"
        )
    return folder


@pytest.fixture
def folder(tmp_path, sqlite_migrated):
    """The folder of a run, with the databases that it would otherwise migrate and fill."""
    folder = tmp_path / "run"
    folder.mkdir()
    for label in (PREVIOUS, CURRENT):
        path = folder / f"1000-rows-{label}.db"
        shutil.copy(sqlite_migrated, path)
        with closing(sqlite3.connect(path)) as raw, raw:
            raw.executemany(models_table.UPSERT, models_table.initial_rows(1000))
    return folder


def options(against, *words):
    only = ("--only", "find, nothing there", "--who", "inline reads", "--rounds", "2")
    return command.parse_options(["--quick", "--against", str(against), *only, *words])


async def test_a_version_that_is_faster_than_the_previous_one_passes(folder, slow_version, capsys):
    """The report has one row, with the times of both versions."""
    code = await command.run(options(slow_version), folder, None)

    printed = capsys.readouterr().out
    assert code == 0
    assert f"previous: {slow_version}" in printed
    (row,) = [
        line for line in printed.splitlines() if "there [model-catalog, inline reads] " in line
    ]
    assert "previous" in row
    assert "current" in row
    assert "at most 1.05x" in printed


async def test_a_row_above_the_limit_makes_the_command_fail(folder, tmp_path, slow_version, capsys):
    """A row above the limit is measured again before it counts."""
    same = tmp_path / "same"
    shutil.copytree(ROOT / "src" / "model_catalog", same / "model_catalog")
    limit = ("--limit", "0.0001", "--json", str(tmp_path / "rows.json"))

    code = await command.run(options(same, *limit), folder, None)

    printed = capsys.readouterr().out
    assert code == 1
    assert "ABOVE 0.0001x" in printed
    assert "6 rounds" in printed
    assert (
        "find, nothing there [model-catalog, inline reads]" in (tmp_path / "rows.json").read_text()
    )


async def test_a_version_that_fails_is_reported(folder, tmp_path, capsys):
    """Its exception is printed, and its row counts neither as slow nor as fast enough."""
    broken = tmp_path / "broken"
    shutil.copytree(ROOT / "src" / "model_catalog", broken / "model_catalog")
    with (broken / "model_catalog" / "__init__.py").open("a") as module:
        module.write("\n\ndef open_catalog(*arguments, **options):\n    raise OSError('broken')\n")

    code = await command.run(options(broken, "--limit", "100"), folder, None)

    printed = capsys.readouterr().out
    assert code == 0
    assert "previous failed: open: RemoteContenderError: OSError: broken" in printed
    assert "0 of 0 compared rows" in printed
    assert "rows not compared, because a version failed: 1" in printed


async def test_each_version_gets_a_database_of_its_own_revision(tmp_path, capsys):
    """A version that does not know the newest revision would refuse the newest database."""
    older = tmp_path / "older"
    shutil.copytree(ROOT / "src" / "model_catalog", older / "model_catalog")
    newest = max((older / "model_catalog" / "migrations" / "versions").glob("0*.py"))
    newest.unlink()
    folder = tmp_path / "run"
    folder.mkdir()

    code = await command.run(options(older, "--limit", "100"), folder, None)

    printed = capsys.readouterr().out
    assert code == 0
    assert "1 of 1 compared rows" in printed
    found = {}
    for label in (PREVIOUS, CURRENT):
        with closing(sqlite3.connect(folder / f"1000-rows-{label}.db")) as raw:
            (found[label],) = raw.execute(
                "SELECT version_num FROM model_catalog_version"
            ).fetchone()
    assert found[CURRENT] == f"model_catalog_{newest.name[:4]}"
    assert found[PREVIOUS] < found[CURRENT]


def test_rounds_of_several_sessions_are_merged():
    """The ratio is the median of all rounds, of time and of CPU time."""
    first = Result({PREVIOUS: {0: Sample.of(1.0, 1.0)}, CURRENT: {0: Sample.of(9.0, 2.0)}})
    second = Result(
        {PREVIOUS: {0: 1.0, 1: 1.0, 2: 1.0}, CURRENT: {0: 1.1, 1: 1.0, 2: 1.2}},
    )

    row = Row("find", merge_results([first, second]))

    assert row.result.samples[CURRENT] == {0: 9.0, 1: 1.1, 2: 1.0, 3: 1.2}
    assert row.ratio == pytest.approx(1.15)
    assert row.result.cpu_ratio(CURRENT, PREVIOUS) == 2.0
    assert row.exceeds(1.1)
    assert not row.exceeds(1.15)
    assert "4 rounds  ABOVE 1.1x" in format_row(row, 1.1)


def test_a_git_revision_is_installed_beside_the_working_tree(tmp_path):
    """Both are importable by child processes, each from its own folder."""
    previous = install_version("HEAD", PREVIOUS, tmp_path)
    current = install_version(str(ROOT), CURRENT, tmp_path)

    for installation in (previous, current):
        described = describe_installation(installation)
        assert str(tmp_path / installation.label / "model_catalog") in described
    assert (tmp_path / "current" / "model_catalog" / "migrations" / "env.py").exists()


def test_a_virtual_environment_is_used_as_it_is(tmp_path):
    """Its interpreter runs the child process, with the package that it has installed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)

    installation = install_version(str(tmp_path), PREVIOUS, tmp_path / "unused")

    assert installation.python == str(tmp_path / "bin" / "python")
    assert installation.package_folder is None


def test_an_unknown_version_is_refused(tmp_path):
    """The message says which kinds of versions there are."""
    with pytest.raises(InstallationError, match="'no-such' is not a virtual environment, a wheel"):
        install_version("no-such", PREVIOUS, tmp_path)
