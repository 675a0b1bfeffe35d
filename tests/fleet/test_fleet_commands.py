"""The commands about hosts and about the models of all hosts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fleet_rows import insert_host, insert_model

from model_catalog.cli import main

LOST_S = 10_000


@pytest.fixture
def cli(database, capsys):
    """Run a command on the database; return its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        command = 2 if arguments[0] == "hosts" else 1
        target = ("--db", str(database.target))
        code = main([*arguments[:command], *target, *arguments[command:]])
        return code, *capsys.readouterr()

    return run


def test_a_host_registers_beats_and_is_shown(cli, tmp_path):
    """`register` records the disk of a folder, and `beat` that the host is alive."""
    registered = cli(
        *("hosts", "register", "gpu-07", "--address", "gpu-07.lan", "--label", "gpu=h100"),
        *("--label", "rack=7", "--ssh-user", "me", "--ssh-port", "2222"),
        *("--ssh-key-path", "/home/me/.ssh/id", "--path", str(tmp_path), "--capacity", "4TB"),
    )
    never = cli("hosts", "ls")
    beaten = cli("hosts", "beat", "gpu-07", "--path", str(tmp_path))
    _, shown, _ = cli("hosts", "show", "gpu-07", "--json")
    _, lines, _ = cli("hosts", "show", "gpu-07")

    assert registered == (0, "", "registered the host gpu-07\n")
    assert never[1].splitlines()[1].split()[:3] == ["gpu-07", "never", "never"]
    assert never[2] == "1 host, 0 alive\n"
    assert beaten == (0, "", "")
    host = json.loads(shown)
    assert (host["state"], host["labels"]) == ("alive", {"gpu": "h100", "rack": "7"})
    assert (host["ssh_port"], host["capacity_bytes"]) == (2222, 4_000_000_000_000)
    assert host["free_bytes"] > 0
    assert "ssh_key_path:    /home/me/.ssh/id\n" in lines


def test_hosts_are_listed_in_every_format(cli, database):
    """`--label` and `--lost-after` select and judge them."""
    insert_host(database, "a", free_bytes=2_000_000, labels='{"gpu": "l40"}')
    insert_host(database, "b", LOST_S)

    _, table, notice = cli("hosts", "ls")
    _, quiet, _ = cli("hosts", "ls", "--format", "quiet", "--label", "gpu=l40")
    _, tsv, _ = cli("hosts", "ls", "--format", "tsv")
    _, patient, _ = cli("hosts", "ls", "--json", "--lost-after", "1d")

    lines = table.splitlines()
    assert lines[0].split() == [
        *("HOST", "STATE", "HEARTBEAT", "FREE", "CAPACITY", "LABELS", "ADDRESS")
    ]
    assert lines[1].split()[:2] == ["a", "alive"]
    assert "2.0 MB" in lines[1]
    assert lines[2].split()[:4] == ["b", "lost", "2h", "ago"]
    assert notice == "2 hosts, 1 alive\n"
    assert quiet == "a\n"
    assert [line.split("\t")[:2] for line in tsv.splitlines()] == [
        *(["name", "state"], ["a", "alive"], ["b", "lost"])
    ]
    assert [host["state"] for host in json.loads(patient)] == ["alive", "alive"]


def test_an_unknown_host_fails_and_an_invalid_value_is_misuse(cli):
    """The exit codes are those of other commands, and no secret is printed."""
    assert cli("hosts", "show", "gpu-08")[0] == 1
    assert cli("hosts", "beat", "gpu-08")[0] == 1
    code, _, error = cli("hosts", "rm", "-y", "gpu-08")
    assert (code, "no host 'gpu-08' is registered" in error) == (1, True)
    assert cli("hosts", "register", "a/b")[0] == 2
    code, _, error = cli("hosts", "register", "a", "--address", "ssh://me:hunter2@a")
    assert (code, "hunter2" in error) == (2, False)
    assert cli("hosts", "ls", "--label", "gpu")[0] == 2
    assert cli("hosts", "ls", "--lost-after", "soon")[0] == 2


def test_a_host_with_models_is_removed_as_the_user_says(cli, database):
    """Without an option the command refuses."""
    for name in ("a", "b"):
        insert_host(database, name)
        insert_model(database, name, "m")

    refused = cli("hosts", "rm", "-y", "a")
    kept = cli("hosts", "rm", "-y", "--keep-models", "a")
    deleted = cli("hosts", "rm", "-y", "--delete-models", "b")

    assert refused[0] == 1
    assert "--keep-models" in refused[2]
    assert kept == (0, "", "removed the host a; the records of 1 model stay\n")
    assert deleted == (
        *(0, "", "removed the host b and the records of 1 model; their files stay\n"),
    )
    assert database.run("SELECT host FROM models") == [("a",)]
    assert database.run("SELECT name FROM model_hosts") == []


def test_a_removal_is_confirmed(cli, database, monkeypatch):
    """Without an answer nothing is removed."""
    insert_host(database, "a")
    monkeypatch.setattr(sys, "stdin", None)

    code, _, error = cli("hosts", "rm", "a")

    assert code == 1
    assert error == "Remove the host a? [y/N] \nnothing was removed\n"
    assert database.run("SELECT name FROM model_hosts") == [("a",)]


def insert_fleet(database) -> None:
    insert_host(database, "a", free_bytes=9_000_000)
    insert_host(database, "b", LOST_S)
    insert_model(database, "a", "m", "v1", size_bytes=1_000_000)
    insert_model(database, "a", "n", size_bytes=500_000, state="missing")
    insert_model(database, "b", "m", "v1", size_bytes=1_000_000)
    insert_model(database, "", "m", "v1", incomplete_reason="missing: x")


def test_who_has_lists_the_copies(cli, database):
    """The best copy is first, and the exit code is 1 if no host has the model."""
    insert_fleet(database)

    code, table, notice = cli("who-has", "hf:m@v1")
    _, tsv, _ = cli("who-has", "hf:m", "--format", "tsv")
    _, quiet, _ = cli("who-has", "hf:n", "--format", "quiet")
    _, found, _ = cli("who-has", "hf:m", "--json", "--lost-after", "1d")
    nothing = cli("who-has", "hf:absent", "--json")

    assert code == 0
    assert [line.split()[0] for line in table.splitlines()] == ["HOST", "a", "-", "b"]
    assert [line.split()[3] for line in table.splitlines()[1:]] == ["whole", "incomplete", "whole"]
    assert notice == "3 copies, 1 usable\n"
    assert tsv.splitlines()[0].startswith("host\thost_state\tprovider\treference\tversion\tusable")
    assert quiet == "a\n"
    assert [(copy["host"], copy["usable"]) for copy in json.loads(found)] == [
        *(("a", True), ("b", True), ("", False))
    ]
    assert nothing[:2] == (1, "[]\n")


def test_ls_fleet_lists_the_models_of_all_hosts(cli, database):
    """Filters and limits work as on one host, and `--sort` does not."""
    insert_fleet(database)

    _, table, notice = cli("ls", "--fleet", "--paths")
    _, quiet, _ = cli("ls", "--fleet", "--format", "quiet", "-f", "reference=m", "--limit", "2")
    _, found, _ = cli("ls", "--fleet", "--json", "--provider", "hf")
    _, tsv, _ = cli("ls", "--fleet", "--format", "tsv")

    assert [line.split()[:2] for line in table.splitlines()] == [
        *(["HOST", "MODEL"], ["-", "hf:m@v1"], ["a", "hf:m@v1"], ["a", "hf:n"], ["b", "hf:m@v1"])
    ]
    assert notice == "4 models on 3 hosts, 2.5 MB\n"
    assert quiet == "- hf:m@v1\na hf:m@v1\n"
    assert [model["host"] for model in json.loads(found)] == ["", "a", "a", "b"]
    assert len(tsv.splitlines()) == 5
    assert cli("ls", "--fleet", "--sort", "size")[0] == 2


def test_du_fleet_shows_totals_and_free_space(cli, database):
    """The last line of the table has the sums."""
    insert_fleet(database)

    _, table, _ = cli("du", "--fleet")
    _, found, _ = cli("du", "--fleet", "--json")
    _, quiet, _ = cli("du", "--fleet", "--format", "quiet")
    _, tsv, _ = cli("du", "--fleet", "--format", "tsv")

    assert [line.split() for line in table.splitlines()] == [
        ["HOST", "STATE", "MODELS", "SIZE", "FREE"],
        ["-", "unregistered", "1", "0", "B", "?"],
        ["a", "alive", "2", "1.5", "MB", "9.0", "MB"],
        ["b", "lost", "1", "1.0", "MB", "?"],
        ["total", "4", "2.5", "MB"],
    ]
    totals = json.loads(found)
    assert (totals["models"], totals["size_bytes"]) == (4, 2_500_000)
    assert [host["free_bytes"] for host in totals["hosts"]] == [None, 9_000_000, None]
    assert quiet == "2500000\n"
    assert len(tsv.splitlines()) == 4


def test_a_catalog_that_was_never_created_has_no_hosts(tmp_path, monkeypatch, capsys):
    """The commands that read create no file."""
    monkeypatch.chdir(tmp_path)

    codes = [
        main(command)
        for command in (
            *(["hosts", "ls"], ["ls", "--fleet"], ["du", "--fleet"]),
            *(["who-has", "hf:m"], ["hosts", "show", "a"], ["hosts", "rm", "a"]),
            ["hosts", "beat", "a"],
        )
    ]

    assert codes == [0, 0, 0, 1, 1, 1, 1]
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()


@pytest.mark.slow
def test_a_service_beats_until_it_is_terminated(database):
    """`--every` is for a service manager, which ends it with SIGTERM."""
    insert_host(database, "a", None)
    command = [sys.executable, "-m", "model_catalog", "hosts", "beat", "--db", str(database.target)]
    process = subprocess.Popen(
        [*command, "a", "--every", "1s"], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    first_line = process.stderr.readline()
    first = database.run("SELECT heartbeat_at_ms FROM model_hosts")
    deadline = time.monotonic() + 20
    while database.run("SELECT heartbeat_at_ms FROM model_hosts") == first:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    process.send_signal(signal.SIGTERM)
    code = process.wait(20)
    process.stderr.close()

    assert first_line == "the host a sends a heartbeat every 1s\n"
    assert first != [(None,)]
    assert code == 143
