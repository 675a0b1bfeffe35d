"""The commands that messages name work as typed, on the catalog that the user has named."""

import re
import shlex
import sqlite3
from argparse import Namespace
from contextlib import closing
from pathlib import Path

import pytest

from model_catalog.cli import main
from model_catalog.cli.output.named_commands import complete_commands
from model_catalog.cli.parser import make_parser
from model_catalog.errors import (
    MissingPrivilegeError,
    ModelNotFoundError,
    NotEnoughSpaceError,
    SchemaOutOfDateError,
)

COMMAND = re.compile(r"`model-catalog ((?:'[^']*'|\"[^\"]*\"|[^`'\"])*)`")
DATABASE = "my catalog's.db"
ADD = ("add", "m.bin", "--provider", "local", "--reference", "m")


def _add(database):
    assert main([*ADD, *database]) == 0


def _add_two_catalogs(database):
    _add(database)
    assert main([*ADD, "--db", "other.db"]) == 0


def _damage(database):
    _add(database)
    with closing(sqlite3.connect(database[1])) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'models'"
        ).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    with Path(database[1]).open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)


def _damage_with_backup(database):
    _add(database)
    assert main(["db", "backup", *database]) == 0
    _cut(database)


def _cut_catalog(database):
    _add(database)
    _cut(database)


def _cut(database):
    path = Path(database[1])
    path.write_bytes(path.read_bytes()[:10_000])


def _create_foreign_database(database):
    with closing(sqlite3.connect(database[1])) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")


def _create_old_catalog(database):
    assert main(["db", "upgrade", "model_catalog_0020", *database]) == 0


def _break_search_index(database):
    _add(database)
    with closing(sqlite3.connect(database[1])) as connection:
        (name,) = connection.execute(
            "SELECT name FROM sqlite_master WHERE sql LIKE '%USING fts5%'"
        ).fetchone()
        connection.execute(f"DROP TABLE {name}")


CASES = {
    "missing database": (None, ["ls"], ["scan", "db upgrade"]),
    "unknown model": (_add, ["show", "hf:x"], ["ls"]),
    "unknown model to remove": (_add, ["rm", "-y", "hf:x"], ["ls"]),
    "unknown host": (_add, ["hosts", "show", "gpu-07"], ["hosts register"]),
    "unknown host to remove": (_add, ["hosts", "rm", "-y", "gpu-07"], ["hosts register"]),
    "model of another host": (_add, ["show", "local:m", "--host", "gpu-07"], ["ls"]),
    "damaged database": (_damage, ["ls"], ["db repair"]),
    "damaged database with a backup": (_damage_with_backup, ["ls"], ["db restore"]),
    "database that cannot be repaired": (_cut_catalog, ["db", "repair"], []),
    "repaired database": (_add, ["db", "repair"], ["db restore"]),
    "moved folder": (_add, ["relocate", "OLD", "/new"], ["check"]),
    "database of another program": (_create_foreign_database, ["ls"], ["db upgrade"]),
    "old catalog": (_create_old_catalog, ["db", "check"], ["db upgrade"]),
    "broken search index": (_break_search_index, ["db", "check"], ["db upgrade"]),
}


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    """An empty home and working directory, except for a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("m.bin").write_bytes(b"model")
    return tmp_path


@pytest.mark.slow_with(
    *("broken search index", "damaged database with a backup", "moved folder", "old catalog"),
    *("missing database", "repaired database", "unknown model to remove"),
)
@pytest.mark.parametrize(("prepare", "arguments", "names"), CASES.values(), ids=CASES)
def test_a_named_command_works_as_typed(empty_home, capsys, prepare, arguments, names):
    """
    It has the option `--db` of the user, quoted for a shell, and succeeds.
    """
    database = ["--db", DATABASE]
    if prepare is not None:
        prepare(database)
    capsys.readouterr()

    main([str(empty_home) if each == "OLD" else each for each in arguments] + database)

    printed = capsys.readouterr()
    commands = [shlex.split(text) for text in COMMAND.findall(printed.out + printed.err)]
    assert [
        " ".join(each[: len(name.split())]) for each, name in zip(commands, names, strict=True)
    ] == names
    for command in commands:
        assert command[command.index("--db") + 1] == DATABASE
        assert ("--host" in command) == ("--host" in arguments)
        code = main(command)
        err = capsys.readouterr().err
        # 1: a repair has saved what can be read. 3: a check has found that a file is missing.
        allowed = {"db repair": {0, 1}, "check": {3}}.get(" ".join(command[:-2]), {0})
        assert code in allowed, err
        assert "error" not in err


@pytest.mark.parametrize("given", [[], ["MODEL_CATALOG_URL"]], ids=["default", "environment"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ls"], "`model-catalog scan`"),
        (["report", "--html", "r.html"], "`model-catalog scan`"),
    ],
    ids=["ls", "report"],
)
def test_a_database_that_was_not_given_is_not_named(
    empty_home, monkeypatch, capsys, given, arguments, expected
):
    """
    The default and MODEL_CATALOG_URL hold for the named command too.
    """
    for name in given:
        monkeypatch.setenv(name, "named.db")
        main(ADD)
        Path("named.db").unlink()
        capsys.readouterr()

    main(arguments)

    assert expected in capsys.readouterr().err


def test_a_command_for_another_database_stays_as_it_is(empty_home, capsys):
    """
    A damaged backup is not confused with the catalog that it should replace.
    """
    _cut_catalog(["--db", "copy.db"])
    _add(["--db", DATABASE])
    capsys.readouterr()

    main(["db", "restore", "copy.db", "--db", DATABASE])

    (command,) = COMMAND.findall(capsys.readouterr().err)
    assert shlex.split(command) == ["db", "repair", "--db", f"{empty_home}/copy.db"]


@pytest.mark.parametrize(
    "error",
    [
        MissingPrivilegeError("postgresql://ada:***@db/models", "permission denied"),
        NotEnoughSpaceError("/m", 5_000_000_000, 3, plan=object()),
        SchemaOutOfDateError("postgresql://ada:***@db/models", None, "model_catalog_0029"),
        ModelNotFoundError("x", "hf", None),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_command_for_a_server_parses(error):
    """
    It has the schema and the host that were given, and never the password.
    """
    given = {"db": "postgresql://ada:secret@db/models?sslmode=require", "host": "gpu-07"}
    message = complete_commands(str(error), Namespace(**given, schema="it's"))

    (command,) = COMMAND.findall(message)
    options = make_parser().parse_args(shlex.split(command))
    assert "secret" not in message
    assert options.db.endswith(":***@db/models?sslmode=require")
    assert options.schema == "it's"
    assert getattr(options, "host", None) in {None, "gpu-07"}


@pytest.mark.parametrize("url", ["postgresql://ada@db/m?sslmode=require", "~/models.db"])
def test_a_target_without_a_password_is_repeated(url):
    """
    The command has the text that the user has typed.
    """
    options = Namespace(db=url, schema=None, host=None)

    message = complete_commands("use `model-catalog ls`", options)

    assert message == f"use `model-catalog ls --db {shlex.quote(url)}`"


@pytest.mark.parametrize(
    "text",
    [
        "`model-catalog it's`",
        "`model-catalog",
        "model-catalog ls",
        "`model-catalog `",
        "`model-catalog ls --db`",
    ],
    ids=["open quote", "open backtick", "no backticks", "no command", "no database"],
)
def test_a_text_that_is_not_a_command_stays_as_it_is(text):
    """
    A name of a model may look like a command.
    """
    options = Namespace(db="x.db", schema=None, host=None)

    assert complete_commands(text, options) == text
