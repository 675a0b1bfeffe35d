"""The command line, as a person and as a script use it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BACKENDS

from model_catalog.cli import main
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.cli.output import escape_controls, human_size


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Type a command in an empty folder; get its exit code, its data and its words."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.bin").write_bytes(b"TINY" + bytes(996))
    Path("other.bin").write_bytes(bytes(2_500_000))

    def run(*arguments: str, answer: str = "") -> tuple[int, str, str]:
        read, write = os.pipe()
        os.write(write, answer.encode())
        os.close(write)
        with os.fdopen(read) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def filled(cli):
    for path, ref, version in [
        ("tiny.bin", "tiny", ""),
        ("other.bin", "org/other:Q4", "v1"),
        ("other.bin", "org/other:Q4", "v2"),
    ]:
        code, _, _ = cli(
            *("add", path, "--provider", "local", "--reference", ref, "--version", version)
        )
        assert code == 0
    return cli


def test_a_model_is_added_shown_and_forgotten(cli, tmp_path):
    """
    add, show and rm are a whole life, and the file outlives it.
    """
    assert cli("add", "tiny.bin", "--provider", "local", "--reference", "tiny") == (
        0,
        "",
        f"recorded local:tiny, 1.0 kB, at {tmp_path}/tiny.bin\n",
    )

    code, out, _ = cli("show", "local:tiny")
    assert code == 0
    assert f"local_path:      {tmp_path}/tiny.bin\n" in out
    assert "size_bytes:      1000 (1.0 kB)\n" in out

    assert cli("rm", "local:tiny", "-y")[0] == 0
    assert cli("show", "local:tiny")[0] == 1
    assert Path("tiny.bin").is_file()


def test_a_folder_weighs_what_its_files_weigh(cli):
    """
    A snapshot folder of links is as large as what it links to, each file once.
    """
    Path("blobs").mkdir()
    Path("blobs/a").write_bytes(bytes(300))
    Path("snapshot/sub").mkdir(parents=True)
    for link in ("snapshot/one", "snapshot/sub/two"):
        Path(link).symlink_to(Path("blobs/a").absolute())
    Path("snapshot/config.json").write_bytes(b"{}")

    cli("add", "snapshot", "--provider", "hf", "--reference", "m")

    assert json.loads(cli("show", "hf:m", "--format", "json")[1])["size_bytes"] == 302


def test_what_a_header_claims_is_recorded(cli):
    """
    add reads the header; what is not whole is recorded all the same, and said.
    """
    whole = make_gguf("llama", context_length=2048)
    Path("whole.gguf").write_bytes(whole)
    Path("cut.gguf").write_bytes(whole[:-1])

    code, _, err = cli("add", "whole.gguf", "--provider", "local", "--reference", "whole")
    assert (code, err) == (
        0,
        f"recorded local:whole, gguf, llama, F32, 224 B, at {Path('whole.gguf').absolute()}\n",
    )
    assert cli("ls", "-f", "arch=llama", "-f", "context>=2k", "--format", "quiet")[1] == (
        "local:whole\n"
    )

    code, _, err = cli("add", "cut.gguf", "--provider", "local", "--reference", "cut")
    assert code == 0
    assert "warning: the model is incomplete" in err
    assert cli("show", "local:cut")[0] == 0


def test_the_catalogs_own_database_is_no_model(cli):
    """
    To open the file beside SQLite and close it again would drop SQLite's locks.
    """
    cli("add", "tiny.bin", "--provider", "local", "--reference", "tiny")

    code, _, err = cli("add", ".rbee/models/catalog.db", "--provider", "p", "--reference", "r")
    assert code == 1
    assert "the catalog" in err
    assert cli("ls", "--format", "quiet")[1] == "local:tiny\n"


@pytest.mark.parametrize("path", ["missing.gguf", "pipe", "dangling"])
def test_what_is_no_file_is_not_added(cli, path):
    """
    A missing file, a FIFO or a dangling link is said to be one, and makes no catalog.
    """
    os.mkfifo("pipe")
    Path("dangling").symlink_to("nowhere")

    code, out, err = cli("add", path, "--provider", "hf", "--reference", "m")

    assert (code, out) == (1, "")
    assert path in err
    assert not Path(".rbee").exists()


def test_the_list_is_a_table_with_a_total(filled):
    """
    Newest first under a head; how many and how large is said beside it.
    """
    code, out, err = filled("ls")

    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["PROVIDER", "REFERENCE", "VERSION", "SIZE", "DOWNLOADED"]
    assert {tuple(line.split()[:-2]) for line in lines[1:]} == {
        ("local", "tiny", "1.0", "kB"),
        ("local", "org/other:Q4", "v1", "2.5", "MB"),
        ("local", "org/other:Q4", "v2", "2.5", "MB"),
    }
    assert err == "3 models, 5.0 MB\n"


def test_paths_are_shown_when_asked_for(filled, tmp_path):
    """
    A path makes a table wide, so it takes --paths.
    """
    assert str(tmp_path) not in filled("ls")[1]
    assert f"{tmp_path}/tiny.bin" in filled("ls", "--paths")[1]


def test_json_carries_whole_bytes_and_utc_times(filled, tmp_path):
    """
    What a program reads is integers and ISO 8601, never words.
    """
    _, out, _ = filled("ls", "--format", "json", "--provider", "local")

    tiny = next(model for model in json.loads(out) if model["reference"] == "tiny")
    assert tiny.pop("downloaded_at").endswith("Z")
    assert tiny.pop("checked_at").endswith("Z")
    assert {name: value for name, value in tiny.items() if value not in (None, [])} == {
        "provider": "local",
        "reference": "tiny",
        "version": "",
        "size_bytes": 1000,
        "local_path": f"{tmp_path}/tiny.bin",
        "download_count": 1,
        "use_count": 0,
        "state": "present",
    }


def test_tsv_has_a_head_and_a_line_a_model(filled):
    """
    Columns for cut and awk.
    """
    _, out, _ = filled("ls", "--format", "tsv")

    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert head[:4] == ["provider", "reference", "version", "size_bytes"]
    assert sorted(row[:4] for row in rows)[2] == ["local", "tiny", "", "1000"]


def test_quiet_names_can_be_handed_back(filled):
    """
    Each line of `ls --format quiet` is a REF that names exactly that model.
    """
    filled("add", "tiny.bin", "--provider", "local", "--reference", "org/other:Q4")
    _, out, _ = filled("ls", "--format", "quiet")

    refs = out.splitlines()
    assert sorted(refs) == [
        "local:org/other:Q4@",
        "local:org/other:Q4@v1",
        "local:org/other:Q4@v2",
        "local:tiny",
    ]
    for ref in refs:
        assert filled("rm", "-y", ref)[0] == 0
    assert filled("ls")[2] == "0 models, 0 B\n"


def test_sizes_add_up_by_provider(filled):
    """
    du has a line a provider, the largest first, and a total.
    """
    filled("add", "tiny.bin", "--provider", "aaa", "--reference", "tiny")

    assert [line.split() for line in filled("du")[1].splitlines()] == [
        ["PROVIDER", "MODELS", "SIZE"],
        ["local", "3", "5.0", "MB"],
        ["aaa", "1", "1.0", "kB"],
        ["total", "4", "5.0", "MB"],
    ]
    assert filled("du", "--format", "quiet")[1] == "5002000\n"
    assert filled("du", "--format", "tsv")[1].splitlines()[1] == "local\t3\t5001000"
    assert json.loads(filled("du", "--format", "json")[1])["size_bytes"] == 5_002_000


@pytest.mark.parametrize(
    ("answer", "code", "left"),
    [("y\n", 0, 1), ("YES\n", 0, 1), ("n\n", 1, 3), ("\n", 1, 3), ("", 1, 3)],
    ids=["yes", "YES", "no", "nothing", "end of input"],
)
def test_forgetting_is_asked_about(filled, answer, code, left):
    """
    rm names what it will forget, every version of it, and forgets on a yes alone.
    """
    found, out, err = filled("rm", "local:org/other:Q4", answer=answer)

    assert (found, out) == (code, "")
    assert "local:org/other:Q4@v1, 2.5 MB" in err
    assert "local:org/other:Q4@v2, 2.5 MB" in err
    assert len(filled("ls", "--format", "quiet")[1].splitlines()) == left


def test_one_unknown_name_of_two_is_told(filled):
    """
    The known one is forgotten, the unknown one is named, and the code says that not all went well.
    """
    code, _, err = filled("rm", "-y", "local:tiny", "local:nothing")

    assert code == 1
    assert "'nothing'" in err
    assert filled("show", "local:tiny")[0] == 1


def test_looking_makes_no_file(cli):
    """
    On a fresh machine there is nothing; at a place that somebody named, nothing is an error.
    """
    assert cli("ls") == (0, "", "0 models, 0 B\n")
    assert cli("ls", "--format", "json")[1] == "[]\n"
    assert cli("du", "--format", "quiet")[1] == "0\n"
    assert cli("show", "hf:m")[0] == 1
    assert cli("rm", "-y", "hf:m")[0] == 1
    assert not Path(".rbee").exists()

    code, out, err = cli("ls", "--db", "typo.db")
    assert (code, out) == (1, "")
    assert "typo.db" in err
    assert not Path("typo.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "noprovider"], "names no provider"),
        (["rm", "-y", "hf:"], "reference '' must not be blank"),
        (
            ["add", "tiny.bin", "--provider", " ", "--reference", "m"],
            "provider ' ' must not be blank",
        ),
        (["add", "tiny.bin", "--provider", "hf", "--reference", "a\x1bb"], "control character"),
        (["ls", "--db", "mysql://u:hunter2@h/d"], "mysql://u:***@h/d"),
        (["ls", "--db", ""], "the path is empty"),
    ],
    ids=["no provider", "no reference", "blank", "escape", "driver", "no file"],
)
def test_misuse_is_told_with_code_two(cli, arguments, said):
    """
    What can never work is misuse: code 2, and what to write instead.
    """
    code, out, err = cli(*arguments)

    assert (code, out) == (2, "")
    assert said in err
    assert "hunter2" not in err


def test_an_unknown_option_is_misuse(cli, capsys):
    """
    argparse's own complaint has code 2 as well.
    """
    with pytest.raises(SystemExit) as caught:
        main(["ls", "--colour"])

    assert caught.value.code == 2


def test_names_cannot_steer_the_terminal(cli, tmp_path):
    """
    A path may hold escape sequences, line breaks and bidi marks; they are printed as escapes.
    """
    hostile = "\x1b[31mred\u202egnp\nnew\udcff.gguf"
    Path(hostile).write_bytes(b"GGUF")

    _, _, err = cli("add", hostile, "--provider", "hf", "--reference", "m")
    assert err.endswith(r"/\x1b[31mred\u202egnp\nnew\udcff.gguf" + "\n")

    for form in ("human", "tsv"):
        _, out, _ = cli("show", "hf:m", "--format", form)
        assert r"\x1b[31mred\u202egnp\nnew\udcff.gguf" in out
    _, out, _ = cli("show", "hf:m", "--format", "json")
    assert json.loads(out)["local_path"] == str(tmp_path / hostile)


def test_the_database_is_looked_after(cli):
    """
    db upgrade creates, db current prints the revision alone, db check finds a column that is gone.
    """
    assert cli("db", "upgrade", "0001", "--db", "c.db")[0] == 0
    assert cli("db", "current", "--db", "c.db")[:2] == (0, "0001\n")
    code, out, _ = cli("db", "check", "--db", "c.db")
    assert code == 1
    assert "is at 0001" in out

    assert cli("db", "upgrade", "--db", "c.db")[0] == 0
    assert cli("db", "check", "--db", "c.db") == (0, "", "no problem found\n")

    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect("c.db")) as raw:
        raw.execute("ALTER TABLE models RENAME COLUMN size_bytes TO size")
    code, out, _ = cli("db", "check", "--db", "c.db")
    assert code == 1
    assert "size_bytes" in out


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_database_is_served(cli, database):
    """
    --db takes a path or a URL.
    """
    assert (
        cli("add", "tiny.bin", *("--provider", "p", "--reference", "r", "--db", database.target))[0]
        == 0
    )

    assert cli("ls", "--format", "quiet", "--db", database.target)[1] == "p:r\n"


def test_the_environment_names_the_catalog(cli, monkeypatch):
    """
    MODEL_CATALOG_URL stands for --db.
    """
    monkeypatch.setenv("MODEL_CATALOG_URL", "elsewhere.db")

    cli("add", "tiny.bin", "--provider", "p", "--reference", "r")

    assert Path("elsewhere.db").is_file()
    assert not Path(".rbee").exists()


def test_help_imports_no_database(tmp_path):
    """
    --help answers at once: SQLAlchemy is imported by the commands, not by the command line.
    """
    script = (
        "import sys\n"
        "from model_catalog.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'sqlalchemy', 'alembic', 'asyncpg', 'psycopg'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "model-catalog add" in done.stdout


def test_a_reader_that_stops_reading_is_no_error(filled):
    """
    `model-catalog ls | head -1` ends quietly.
    """
    command = [sys.executable, "-m", "model_catalog", "ls", "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as lister:
        lister.stdout.close()
        err = lister.stderr.read()

    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_a_narrow_terminal_gets_a_narrow_table(filled):
    """
    At 80 columns no line is wrapped: a long reference is cut in its middle.
    """
    name = "org/" + "very-long-name-" * 8 + "Q4_K_M"
    filled("add", "tiny.bin", "--provider", "local", "--reference", name)
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "model_catalog", "ls"]

    subprocess.run(command, stdout=child, stderr=subprocess.PIPE, env=environment, check=True)
    os.close(child)
    lines = os.read(parent, 65536).decode().splitlines()
    os.close(parent)

    assert len(lines) == 5
    assert all(len(line) <= 80 for line in lines)
    assert any("…" in line and "Q4_K_M" in line for line in lines)


def test_the_demo_walks_the_whole_life(cli, tmp_path):
    """
    demo prints what it does and what comes back, and leaves nothing behind.
    """
    before = set(tmp_path.iterdir())

    code, out, err = cli("demo")

    assert (code, err) == (0, "")
    for call in (
        *("open_catalog", "register_model", "find_model", "list_models", "remove_model"),
        *("adopt", "find_duplicates"),
    ):
        assert f"> {call}(" in out
    assert "2 copies, 224 B redundant" in out
    assert "does the file still exist? True" in out
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (None, "?"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (5_600_000_000, "5.6 GB"),
        (2**63 - 1, "9.2 EB"),
        (10**22, "10000 EB"),
    ],
)
def test_sizes_are_decimal(size_bytes, shown):
    """
    Units of a thousand, as disks and model hubs count.
    """
    assert human_size(size_bytes) == shown


def test_plain_text_is_left_alone():
    """
    Letters of any script pass; what is invisible does not.
    """
    assert escape_controls("Größe 模型 🦙") == "Größe 模型 🦙"
    assert escape_controls("a\tb\u200bc\u2028d\x9b") == r"a\tb\u200bc\u2028d\x9b"


def test_filters_narrow_the_list(filled):
    """
    Several filters are all to hold.
    """
    filled("tag", "local:tiny", "Chat")

    assert filled("ls", "-f", "size>1MB", "--format", "quiet")[1].count("\n") == 2
    assert (
        filled("ls", "-f", "tag=chat", "-f", "size<=1000", "--format", "quiet")[1] == "local:tiny\n"
    )
    assert filled("ls", "-f", "used=never", "-f", "downloaded<1d", "--limit", "1")[2] == (
        "1 model, 2.5 MB\n"
    )
    assert filled("ls", "-f", "search=OTHER", "-f", "tag=chat")[2] == "0 models, 0 B\n"


def test_the_list_is_sorted_as_asked(filled):
    """
    A key has its own direction, unless one is given.
    """
    _, out, _ = filled("ls", "--sort", "size", "--format", "tsv")
    assert [row.split("\t")[3] for row in out.splitlines()[1:]] == ["2500000", "2500000", "1000"]

    _, out, _ = filled("ls", "--sort", "size:asc", "--limit", "1", "--format", "tsv")
    assert [row.split("\t")[3] for row in out.splitlines()[1:]] == ["1000"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-f", "colour=red"],
        ["-f", "size"],
        ["-f", "size>big"],
        ["-f", "size!=3"],
        ["-f", "used<soon"],
        ["-f", "used<9999999999999d"],
        ["-f", "tag>a"],
        ["-f", "arch=llama", "-f", "arch=qwen2"],
        ["--sort", "colour"],
        ["--sort", "size:up"],
    ],
    ids=" ".join,
)
def test_a_filter_that_is_none_is_misuse(cli, arguments):
    """
    Code 2, and what there is instead, before anything is opened.
    """
    code, out, err = cli("ls", *arguments)

    assert (code, out) == (2, "")
    assert err


def test_a_bad_filter_lists_the_keys(cli):
    """
    Whoever mistypes a key sees which there are.
    """
    _, _, err = cli("ls", "-f", "colour=red")

    for key in (
        "size",
        "context",
        "downloaded",
        "used",
        "tag",
        "pinned",
        "search",
        "arch",
        "quant",
    ):
        assert key in err


def test_what_is_attached_is_shown(filled):
    """
    tag, note, pin and alias say what they did, and show tells of it.
    """
    assert filled("tag", "local:tiny", "Chat", "Ünï")[2] == "local:tiny has the tags Chat, Ünï\n"
    assert filled("untag", "local:tiny", "ÜNÏ")[2] == "local:tiny has the tags Chat\n"
    assert filled("note", "local:tiny", "-", answer="two\nlines\n")[0] == 0
    assert filled("pin", "local:tiny", "--reason", "in use")[2] == "local:tiny is pinned: in use\n"

    facts = json.loads(filled("show", "local:tiny", "--format", "json")[1])
    assert (facts["tags"], facts["description"], facts["pin_reason"]) == (
        ["Chat"],
        "two\nlines\n",
        "in use",
    )
    assert r"two\nlines\n" in filled("show", "local:tiny")[1]

    filled("unpin", "local:tiny")
    filled("note", "local:tiny", "")
    filled("untag", "local:tiny", "chat")
    facts = json.loads(filled("show", "local:tiny", "--format", "json")[1])
    assert (facts["tags"], facts["description"], facts["pinned_at"]) == ([], None, None)


def test_an_alias_stands_for_a_version(filled):
    """
    alias sets, moves, lists and forgets.
    """
    assert filled("alias", "local:org/other:Q4@v1", "main")[2] == "local:org/other:Q4@main is v1\n"
    assert (
        json.loads(filled("show", "local:org/other:Q4@main", "--format", "json")[1])["version"]
        == "v1"
    )
    filled("alias", "local:org/other:Q4@v2", "main")

    assert filled("alias", "--format", "tsv")[1].splitlines()[1] == "local\torg/other:Q4\tmain\tv2"
    assert filled("alias", "--format", "quiet")[1] == "local:org/other:Q4@main\n"
    assert json.loads(filled("alias", "--format", "json")[1])[0]["alias"] == "main"
    assert filled("alias")[2] == "1 alias\n"

    assert filled("alias", "-d", "local:org/other:Q4", "main")[0] == 0
    assert filled("alias", "-d", "local:org/other:Q4", "main")[0] == 1
    assert filled("alias", "local:tiny")[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [["tag", "hf:m", "a"], ["note", "hf:m", "a"], ["pin", "hf:m"], ["alias", "hf:m", "a"]],
    ids=["tag", "note", "pin", "alias"],
)
def test_nothing_is_attached_to_what_is_not_there(cli, arguments):
    """
    Code 1, and on a fresh machine no file either.
    """
    code, out, err = cli(*arguments)

    assert (code, out) == (1, "")
    assert "no model 'm' of provider 'hf'" in err
    assert not Path(".rbee").exists()


def test_stats_count_by_kind(filled):
    """
    What is not known is counted under a question mark.
    """
    lines = [line.split() for line in filled("stats")[1].splitlines()]
    assert ["provider", "local", "3", "5.0", "MB"] in lines
    assert ["architecture", "?", "3", "5.0", "MB"] in lines
    assert {"kind": "format", "name": None, "models": 3, "size_bytes": 5_001_000} in json.loads(
        filled("stats", "--format", "json")[1]
    )


def test_a_catalog_travels_as_a_file(filled, tmp_path):
    """
    What one catalog exports another imports, and exports again as it was.
    """
    filled("tag", "local:tiny", "chat")
    assert filled("export", "out.ndjson")[2] == "exported 3 models\n"
    text = Path("out.ndjson").read_text()
    assert filled("export")[1] == text

    assert filled("import", "out.ndjson", "--db", "other.db")[2] == "imported 3 models\n"
    assert filled("import", "--db", "other.db", answer=text)[2] == (
        "imported 0 models, kept 3 existing\n"
    )
    assert filled("export", "--db", "other.db")[1] == text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_a_broken_import_is_told_of(cli):
    """
    Nothing is imported; with --skip-broken the rest is, and the code still says so.
    """
    Path("in.ndjson").write_text(
        '{"format": "model-catalog", "version": 1}\nbroken\n'
        '{"provider": "p", "reference": "r", "local_path": "/m"}\n'
    )

    code, _, err = cli("import", "in.ndjson")
    assert code == 2
    assert "line 2 cannot be imported" in err
    assert cli("ls")[2] == "0 models, 0 B\n"

    code, _, err = cli("import", "in.ndjson", "--skip-broken")
    assert code == 1
    assert "line 2 was skipped" in err
    assert cli("ls", "--format", "quiet")[1] == "p:r\n"
    assert cli("import", "missing.ndjson")[0] == 1


def test_an_export_that_fails_leaves_the_one_before(filled):
    """
    A file is replaced when all of the new one is written.
    """
    filled("export", "out.ndjson")
    before = Path("out.ndjson").read_text()

    assert filled("export", "out.ndjson", "--db", "missing.db")[0] == 1

    assert Path("out.ndjson").read_text() == before
    assert list(Path().glob(".out*")) == []


def test_an_export_takes_the_place_of_a_file_alone(filled, tmp_path):
    """
    A link is followed, a file keeps its mode, and what is no file is written to and stays.
    """
    Path("real.ndjson").write_text("old")
    Path("real.ndjson").chmod(0o644)
    Path("link.ndjson").symlink_to("real.ndjson")
    os.mkfifo("pipe")

    assert filled("export", "link.ndjson")[0] == 0
    assert Path("link.ndjson").is_symlink()
    assert Path("real.ndjson").read_text().count("\n") == 4
    assert Path("real.ndjson").stat().st_mode & 0o777 == 0o644

    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    assert filled("export", "pipe")[0] == 0
    assert reader.communicate()[0].count(b"\n") == 4
    assert Path("pipe").is_fifo()


def test_an_alias_names_what_is_to_be_forgotten(filled):
    """
    rm takes an alias wherever it takes a version, and says which version that is.
    """
    filled("alias", "local:org/other:Q4@v1", "stable")

    code, _, err = filled("rm", "-y", "local:org/other:Q4@stable")

    assert code == 0
    assert "local:org/other:Q4@v1, 2.5 MB" in err
    assert filled("show", "local:org/other:Q4@v1")[0] == 1
    assert filled("show", "local:org/other:Q4@v2")[0] == 0


def test_two_providers_at_once_are_none(filled):
    """
    --provider is a filter like the others, and two that cannot both hold are misuse.
    """
    assert filled("ls", "--provider", "local", "-f", "provider=nope")[0] == 2
    assert filled("ls", "--provider", "nope")[2] == "0 models, 0 B\n"


@pytest.mark.parametrize("expression", ["tag=", "size>99999999999GB", "context=8k"])
def test_every_bad_filter_lists_the_keys(cli, expression):
    """
    Also one whose key is known.
    """
    code, _, err = cli("ls", "-f", expression)

    assert code == 2
    assert "the keys are size" in err


def test_a_long_version_makes_no_line_longer_than_the_terminal(filled):
    """
    A commit's forty digits are shortened before a reference is.
    """
    filled(
        *(
            "add",
            "tiny.bin",
            "--provider",
            "hf",
            "--reference",
            "TheBloke/TinyLlama-1.1B-GGUF",
        ),
        *("--version", "52e7645ba7c309695bec7ac98f4f005b139cf465"),
    )
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "model_catalog", "ls"]

    subprocess.run(command, stdout=child, stderr=subprocess.PIPE, env=environment, check=True)
    os.close(child)
    lines = os.read(parent, 65536).decode().splitlines()
    os.close(parent)

    assert all(len(line) <= 80 for line in lines)
    assert any("TheBloke/TinyLlama-1.1B-GGUF" in line for line in lines)


@pytest.mark.parametrize("closed", [">&-", "<&-"])
def test_a_closed_stream_is_no_reason_to_fall_over(filled, closed):
    """
    What a shell has closed is not written to, and answers nothing.
    """
    command = f"{sys.executable} -m model_catalog rm local:tiny {closed}"

    done = subprocess.run(
        ["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
