"""`prune` and `rm --delete-files`, as a person and as a script use them."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from managed_models import paths_below

from model_catalog.cli import main


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """
    Run a command in a folder with the managed models `old`, `new` and `pinned`, of 8192 bytes each,
    and `own`; return exit code, standard output and standard error.
    """
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()

    def run(*arguments):
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    for number, name in enumerate(("old", "new", "pinned", "own")):
        path = Path(f"models/{name}.gguf")
        path.write_bytes(bytes([number]) * 8192)
        run("add", str(path), "--provider", "local", "--reference", name)
    run("pin", "local:pinned")
    execute(
        "UPDATE models SET last_used_at = 1600000000 + id * 86400,"
        f" managed_root = '{tmp_path}/models' WHERE reference <> 'own'"
    )
    return run


def execute(sql):
    with closing(sqlite3.connect(".rbee/models/catalog.db")) as raw, raw:
        return raw.execute(sql).fetchall()


def test_a_dry_run_prints_the_plan_and_the_reasons(cli):
    """
    The least recently used model first, with the bytes that it frees. Nothing is deleted.
    """
    code, out, err = cli("prune", "--free", "10kB", "--dry-run")

    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["MODEL", "LAST", "USED", "FREES", "NOTE"],
        ["local:old", "2020-09-14", "12:26", "8.2", "kB"],
        ["local:new", "2020-09-15", "12:26", "8.2", "kB"],
    ]
    assert err == (
        "2 models to delete: 16.4 kB\n2 models kept: 1 pinned; 1 not downloaded by the catalog\n"
    )
    assert len(paths_below(Path("models"))) == 4


def test_models_are_deleted_with_their_files(cli):
    """
    `-y` asks nothing. The exit code is 0 if the target is reached.
    """
    code, _, err = cli("prune", "--free", "5kB", "-y")

    assert code == 0
    assert err.endswith("1 model deleted, 8.2 kB freed\n")
    assert paths_below(Path("models")) == {"new.gguf", "pinned.gguf", "own.gguf"}
    assert "local:old" not in cli("ls")[1]


def test_a_target_out_of_reach_has_exit_code_1(cli):
    """
    The models that may be deleted are deleted all the same.
    """
    code, _, err = cli("prune", "--free", "1MB", "-y")

    assert code == 1
    assert "984 kB are missing from the target" in err
    assert "2 models deleted" in err


def test_records_are_removed_without_the_files(cli):
    """
    `--forget` leaves the files where they are.
    """
    code, _, err = cli("prune", "--older-than", "30d", "--forget", "-y")

    assert code == 0
    assert err.endswith("2 models removed from the catalog; the files stay\n")
    assert len(paths_below(Path("models"))) == 4


def test_scripts_get_json_and_names(cli):
    """
    The names can be passed on; JSON has bytes, times and reasons.
    """
    found = json.loads(cli("prune", "--max-total", "17kB", "-n", "--json")[1])
    rows = cli("prune", "--max-total", "17kB", "-n", "--format", "tsv")[1].splitlines()
    quiet = cli("prune", "--max-total", "17kB", "-y", "--format", "quiet")

    assert found["models"][0]["model"] == "local:old@"
    assert found["models"][0]["freed_bytes"] == 8192
    assert found["models"][0]["last_used_at"] == "2020-09-14T12:26:40Z"
    assert {each["reason"] for each in found["kept"]} == {
        "pinned",
        "not downloaded by the catalog",
        "not needed to reach the target",
    }
    assert rows[0].split("\t")[:2] == ["action", "model"]
    assert len(rows) == 5
    assert quiet[:2] == (0, "local:old@\n")


@pytest.mark.parametrize(
    "arguments",
    [("prune",), ("prune", "--free", "many"), ("prune", "--older-than", "soon")],
    ids=" ".join,
)
def test_invalid_arguments_of_prune_have_exit_code_2(cli, arguments):
    """
    One line says what is wrong.
    """
    code, out, err = cli(*arguments)

    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--free", "5XB"), ("--max-total", "much"), ("--free", "99999999TB"), ("--older-than", "30")],
)
def test_the_error_for_a_wrong_value_names_the_option(cli, option, value):
    """
    It does not list the keys of `--filter`.
    """
    code, out, err = cli("prune", option, value)

    assert (code, out) == (2, "")
    assert err.startswith(f"model-catalog: error: {option} {value!r} is ")
    assert "--filter" not in err


def test_without_a_terminal_nothing_is_deleted(cli, monkeypatch):
    """
    A script has to pass `-y`.
    """
    with Path(os.devnull).open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = cli("prune", "--free", "1kB")

    assert code == 2
    assert "pass -y" in err
    assert len(paths_below(Path("models"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)], ids=repr)
def test_a_terminal_is_asked(cli, answer, code):
    """
    Anything but a yes declines, with exit code 1.
    """
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "model_catalog", "prune", "--free", "1kB"]

    with subprocess.Popen(command, stdin=terminal, stderr=subprocess.PIPE, text=True) as process:
        os.write(master, answer.encode())
        _, err = process.communicate()
    for descriptor in (master, terminal):
        os.close(descriptor)

    assert process.returncode == code
    assert "Delete 1 model, and free 8.2 kB? [y/N]" in err
    assert Path("models/old.gguf").exists() is (code == 1)


def test_rm_deletes_the_files_of_named_models(cli):
    """
    Also of a model that the catalog has not downloaded. The bytes are printed first.
    """
    code, _, err = cli("rm", "local:own", "local:old", "--delete-files", "-y")

    assert code == 0
    assert "local:own@, 8.2 kB, at " in err
    assert err.endswith("2 models deleted, 16.4 kB freed\n")
    assert paths_below(Path("models")) == {"new.gguf", "pinned.gguf"}


def test_rm_refuses_to_delete_before_anything_is_deleted(cli):
    """
    One of the models is pinned: the other one stays too.
    """
    code, _, err = cli("rm", "local:own", "local:pinned", "--delete-files", "-y")

    assert code == 1
    assert "'local:pinned@' may not be deleted: pinned" in err
    assert len(paths_below(Path("models"))) == 4


def test_rm_asks_before_it_deletes_files(cli, monkeypatch):
    """
    The end of the input declines, as for `rm`.
    """
    with Path(os.devnull).open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = cli("rm", "local:own", "--delete-files")

    assert code == 1
    assert err.endswith("[y/N] \nnothing was deleted\n")
    assert Path("models/own.gguf").is_file()
