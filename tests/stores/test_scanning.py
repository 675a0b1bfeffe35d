"""The commands scan and dupes, and the filters for stores."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import C1, HuggingFace, Ollama, fill, listing, shared_folder
from new_layouts import Docker, KaggleHub, ModelScope, RamaLama

from model_catalog.cli import main

GGUF = b"GGUF" + bytes(100)


@pytest.fixture
def home_folder(tmp_path, monkeypatch):
    """A home folder with a cache of Hugging Face and a store of Ollama."""
    for variable in (
        *("HF_HOME", "HF_HUB_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME", "LLAMA_CACHE"),
        *("MODELS_PATH", "RAMALAMA_STORE", "XDG_DATA_HOME", "MODELSCOPE_CACHE", "KAGGLEHUB_CACHE"),
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cache = HuggingFace(tmp_path / ".cache/huggingface/hub")
    cache.revision("org/a", C1, {"m.gguf": GGUF})
    Ollama(tmp_path / ".ollama/models").model("llama3:8b", GGUF)
    return tmp_path


@pytest.fixture
def cli(home_folder, capsys):
    def run(*arguments):
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_models_in_the_cloud_are_named_in_one_line(cli, home_folder):
    """
    They have no files on this machine, so they are no rows and no records.
    """
    store = Ollama(home_folder / ".ollama/models")
    for name in ("gpt:cloud", "qwen:cloud"):
        store.manifest(name, [], store.config({"remote_host": "https://ollama.com:443"}))

    _, out, err = cli("scan", ".ollama/models")
    (found,) = json.loads(cli("scan", ".ollama/models", "--json")[1])["stores"]

    line = "2 models in the cloud, without files here: 'gpt:cloud', 'qwen:cloud'"
    assert line in err.splitlines()
    assert "cloud" not in out
    assert found["remote_models"] == ["gpt:cloud", "qwen:cloud"]


@pytest.mark.parametrize(
    ("folder", "make", "ref"),
    [
        (
            ".docker/models",
            lambda root: Docker(root).model("ai/m:q4", GGUF),
            "docker:ai/m@q4",
        ),
        (
            ".cache/modelscope",
            lambda root: ModelScope(root).old_model("org/m", m__gguf=GGUF),
            "modelscope:org/m@master",
        ),
        (
            ".cache/kagglehub",
            lambda root: KaggleHub(root).version("o/m/f/v/1", m__gguf=GGUF),
            "kaggle:o/m/f/v@1",
        ),
        (
            "rama/store",
            lambda root: RamaLama(root).model("ollama/library/m", "q4", {"m": ("gguf", GGUF)}),
            "ramalama:ollama://library/m@q4",
        ),
    ],
    ids=["docker", "modelscope", "kagglehub", "ramalama"],
)
def test_the_stores_of_more_programs_are_scanned(cli, home_folder, monkeypatch, folder, make, ref):
    """
    The reference that ls prints names the model, also with colons in it.
    """
    monkeypatch.setenv("RAMALAMA_STORE", str(home_folder / "rama"))
    make(home_folder / folder)

    assert cli("scan")[0] == 0

    assert ref in cli("ls", "--format", "quiet")[1].splitlines()
    assert cli("show", ref)[0] == 0


def test_all_stores_are_recorded_and_listed_in_one_table(cli, home_folder):
    """
    scan finds the folders of the programs, and ls shows the store of each model.
    """
    before = listing(home_folder / ".ollama"), listing(home_folder / ".cache")

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
    assert (listing(home_folder / ".ollama"), listing(home_folder / ".cache")) == before


def test_a_dry_run_reports_and_creates_no_catalog(cli, home_folder):
    """
    On a machine without a catalog it reports what a scan would record.
    """
    code, out, err = cli("scan", "--dry-run", "--json")

    found = json.loads(out)
    assert code == 0
    assert [[len(store["new"]), store["store"]] for store in found["stores"]] == [
        [1, "huggingface"],
        [1, "ollama"],
    ]
    assert err.endswith("2 new; nothing was written\n")
    assert not (home_folder / ".rbee").exists()


def test_a_machine_without_stores_is_told_how_to_scan_a_folder(cli, home_folder):
    """
    The command in the message has the database that the user named.
    """
    for folder in (".cache", ".ollama"):
        shutil.rmtree(home_folder / folder)

    code, _, err = cli("scan", "--db", "my models.db")

    assert code == 0
    assert "name a folder with `model-catalog scan FOLDER --db 'my models.db'`" in err


def test_changes_and_problems_are_reported(cli, home_folder):
    """
    There is a word for each in every format, and a removed model stays recorded.
    """
    cli("scan")
    manifests = home_folder / ".ollama/models/manifests/registry.ollama.ai/library"
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


@pytest.mark.parametrize(
    ("path", "reason"), [("nowhere", "No such file or directory"), ("file", "Not a directory")]
)
def test_a_path_that_is_not_a_folder_is_an_error(cli, path, reason):
    """
    No catalog is created.
    """
    Path("file").touch()

    code, out, err = cli("scan", path)

    assert (code, out) == (1, "")
    assert f"{path!r} is not a folder that can be scanned: {reason}" in err
    assert not Path(".rbee").exists()


def test_the_kind_of_a_given_folder_is_detected(cli, home_folder):
    """
    A cache at another path is detected, and a plain folder is scanned as such.
    """
    HuggingFace(home_folder / "other").revision("org/b", C1, {"m.gguf": GGUF})
    fill(home_folder / "plain", a___m__gguf=GGUF)

    out = cli("scan", "other", "plain", "--format", "tsv")[1]

    assert [line.split("\t")[0] for line in out.splitlines()[1:]] == ["huggingface", "directory"]


def test_control_characters_in_names_are_escaped(cli, home_folder):
    """
    That applies to names and to the paths of problems.
    """
    fill(home_folder / "plain", m__gguf=GGUF)
    (home_folder / "plain/\x1b[31mred\u202e.gguf").write_bytes(GGUF)
    (home_folder / "plain" / os.fsdecode(b"\xff.gguf")).write_bytes(GGUF)

    code, out, err = cli("scan", "plain")

    assert code == 0
    assert out.count("problem") == 2
    assert r"\x1b[31m" in out
    assert not {"\x1b", "\u202e"} & set(out + err)


def test_copies_are_listed_with_their_owners(cli, home_folder):
    """
    dupes lists the copies of each size, and the reclaimable bytes.
    """
    cli("scan")
    fill(home_folder, mine__gguf=GGUF)
    cli("add", "mine.gguf", "--provider", "local", "--reference", "mine", "--digest")

    code, out, err = cli("dupes")
    found = json.loads(cli("dupes", "--json")[1])

    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["104", "B", "huggingface"],
        ["yours", "local:mine", str(home_folder / "mine.gguf")],
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


@pytest.mark.slow
def test_bars_and_progress_are_shown_on_a_terminal_only(cli):
    """
    du draws the size of each provider relative to the largest. scan shows its progress.
    """
    scanned = on_a_terminal("scan")
    drawn = on_a_terminal("du")

    assert "models found in huggingface" in scanned
    lines = drawn.splitlines()
    assert [line.count("█") > 0 for line in lines] == [False, True, True, False]
    assert "█" not in cli("du")[1]


def test_lists_can_be_filtered_by_store(cli, home_folder):
    """
    The filters are `store=` and `foreign=`.
    """
    cli("scan")
    fill(home_folder, mine__gguf=GGUF)
    cli("add", "mine.gguf", "--provider", "local", "--reference", "mine")

    assert cli("ls", "-f", "store=ollama", "--format", "quiet")[1] == "ollama:llama3@8b\n"
    assert cli("ls", "-f", "foreign=no", "--format", "quiet")[1] == "local:mine\n"


@pytest.mark.slow
def test_a_read_only_store_of_another_user_is_adopted():
    """
    The catalog of the user records its models, and the store stays unchanged.
    """
    with shared_folder() as folder:
        Ollama(folder / "ollama").model("a", GGUF)
        mine = folder / "mine"
        mine.mkdir(mode=0o777)
        mine.chmod(0o777)
        for path, _, files in os.walk(folder / "ollama"):
            for name in files:
                Path(path, name).chmod(0o444)
            Path(path).chmod(0o555)
        before = listing(folder / "ollama")

        done = subprocess.run(
            [
                sys.executable,
                Path(__file__).with_name("adopt_as_other_user.py"),
                folder / "ollama",
                mine,
            ],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == [[1, 0, 0], [0, 0, 1]]
        assert listing(folder / "ollama") == before
