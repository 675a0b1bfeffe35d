"""What other programs keep, from the shell."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import C1, HuggingFace, Ollama, fill, listing, shared_folder

from model_catalog.cli import main

GGUF = b"GGUF" + bytes(100)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine with a cache of Hugging Face, a store of Ollama, and nothing else."""
    for variable in ("HF_HOME", "HF_HUB_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME", "LLAMA_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cache = HuggingFace(tmp_path / ".cache/huggingface/hub")
    cache.revision("org/a", C1, {"m.gguf": GGUF})
    Ollama(tmp_path / ".ollama/models").model("llama3:8b", GGUF)
    return tmp_path


@pytest.fixture
def cli(home, capsys):
    def run(*arguments):
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_all_stores_are_recorded_and_listed_in_one_table(cli, home):
    """
    scan looks where the programs keep their models; ls shows whose each one is.
    """
    before = listing(home / ".ollama"), listing(home / ".cache")

    code, out, err = cli("scan")
    again = cli("scan")
    listed = cli("ls")[1]

    assert code == 0
    rows = [line.split()[:3] for line in out.splitlines()]
    assert rows == [
        ["STORE", "WHAT", "MODEL"],
        ["huggingface", "new", f"hf:org/a@{C1}"],
        ["ollama", "new", "ollama:llama3@8b"],
    ]
    assert err.splitlines()[-1].endswith("on the disk: 2 new")
    assert again[:2] == (0, "")
    assert again[2].splitlines()[-1].endswith("2 unchanged")
    assert listed.splitlines()[0].split()[-1] == "STORE"
    assert {line.split()[-1] for line in listed.splitlines()[1:]} == {"huggingface", "ollama"}
    assert (listing(home / ".ollama"), listing(home / ".cache")) == before


def test_a_dry_run_tells_and_makes_no_catalog(cli, home):
    """
    On a machine that has no catalog yet it says what a scan would record.
    """
    code, out, err = cli("scan", "--dry-run", "--json")

    found = json.loads(out)
    assert code == 0
    assert [[len(store["new"]), store["store"]] for store in found["stores"]] == [
        [1, "huggingface"],
        [1, "ollama"],
    ]
    assert err.endswith("2 new; nothing was written\n")
    assert not (home / ".rbee").exists()


def test_what_is_gone_changed_or_a_problem_is_told(cli, home):
    """
    A word for each, in every format, and the model stays recorded.
    """
    cli("scan")
    manifests = home / ".ollama/models/manifests/registry.ollama.ai/library"
    (manifests / "llama3/8b").rename(manifests / "llama3/70b")
    (manifests / "llama3/broken").write_text("{")

    code, out, _ = cli("scan", "--format", "tsv")

    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()[1:]]
    assert [(row[1], row[2]) for row in rows] == [
        ("new", "ollama:llama3@70b"),
        ("gone", "ollama:llama3@8b"),
        ("problem", ""),
    ]
    assert json.loads(cli("show", "ollama:llama3@8b", "--json")[1])["state"] == "missing"
    (manifests / "llama3/70b").rename(manifests / "llama3/8b")
    assert "present again" in cli("scan")[1]


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_a_path_that_is_no_folder_is_told(cli, path):
    """
    It makes no catalog.
    """
    Path("file").touch()

    code, out, err = cli("scan", path)

    assert (code, out) == (1, "")
    assert f"{path!r} is not a folder that can be scanned" in err
    assert not Path(".rbee").exists()


def test_a_path_is_a_store_by_what_lies_in_it(cli, home):
    """
    A cache in another place is one, and a plain folder is read as it lies.
    """
    HuggingFace(home / "other").revision("org/b", C1, {"m.gguf": GGUF})
    fill(home / "plain", a___m__gguf=GGUF)

    out = cli("scan", "other", "plain", "--format", "tsv")[1]

    assert [line.split("\t")[0] for line in out.splitlines()[1:]] == ["huggingface", "directory"]


def test_names_of_strangers_steer_no_terminal(cli, home):
    """
    What is in a name, or in a problem's path, is written as an escape.
    """
    fill(home / "plain", m__gguf=GGUF)
    (home / "plain/\x1b[31mred\u202e.gguf").write_bytes(GGUF)
    (home / "plain" / os.fsdecode(b"\xff.gguf")).write_bytes(GGUF)

    code, out, err = cli("scan", "plain")

    assert code == 0
    assert out.count("problem") == 2
    assert r"\x1b[31m" in out
    assert not {"\x1b", "\u202e"} & set(out + err)


def test_copies_are_told_with_their_owners(cli, home):
    """
    dupes lists each copy under its size, and what may be had back.
    """
    cli("scan")
    fill(home, mine__gguf=GGUF)
    cli("add", "mine.gguf", "--provider", "local", "--reference", "mine", "--digest")

    code, out, err = cli("dupes")
    found = json.loads(cli("dupes", "--json")[1])

    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["104", "B", "huggingface"],
        ["yours", "local:mine", str(home / "mine.gguf")],
        ["ollama", "ollama:llama3@8b", out.splitlines()[-1].split()[-1]],
    ]
    assert "1 duplicate file: 208 B redundant, 104 B of it" in err
    assert (found["redundant_bytes"], found["reclaimable_bytes"]) == (208, 104)
    assert cli("dupes", "--format", "quiet")[1] == "104\n"


def on_a_terminal(*arguments):
    parent, child = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "model_catalog", *arguments],
        stdout=child,
        stderr=child,
        env={**os.environ, "COLUMNS": "80"},
        check=False,
    )
    os.close(child)
    text = os.read(parent, 65536).decode()
    os.close(parent)
    assert done.returncode == 0
    return text


def test_a_terminal_gets_bars_and_progress_and_a_pipe_gets_neither(cli):
    """
    du draws how large each provider is beside the largest; scan says how far it has come.
    """
    scanned = on_a_terminal("scan")
    drawn = on_a_terminal("du")

    assert "huggingface: 1 model\r" in scanned
    lines = drawn.splitlines()
    assert [line.count("█") > 0 for line in lines] == [False, True, True, False]
    assert "█" not in cli("du")[1]


def test_the_filters_know_stores(cli, home):
    """
    `store=` and `foreign=` narrow a list.
    """
    cli("scan")
    fill(home, mine__gguf=GGUF)
    cli("add", "mine.gguf", "--provider", "local", "--reference", "mine")

    assert cli("ls", "-f", "store=ollama", "--format", "quiet")[1] == "ollama:llama3@8b\n"
    assert cli("ls", "-f", "foreign=no", "--format", "quiet")[1] == "local:mine\n"


def test_a_store_of_another_user_to_which_nobody_may_write_is_adopted():
    """
    A user with a catalog of his own records what lies there, and it is as it was afterwards.
    """
    with shared_folder() as place:
        Ollama(place / "ollama").model("a", GGUF)
        mine = place / "mine"
        mine.mkdir(mode=0o777)
        mine.chmod(0o777)
        for path, _, files in os.walk(place / "ollama"):
            for name in files:
                Path(path, name).chmod(0o444)
            Path(path).chmod(0o555)
        before = listing(place / "ollama")

        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("guest.py"), place / "ollama", mine],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == [[1, 0, 0], [0, 0, 1]]
        assert listing(place / "ollama") == before
