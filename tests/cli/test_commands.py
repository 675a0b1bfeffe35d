"""The command line, as a person and as a script use it."""

import json
import os
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
    """
    Run a command in an empty folder; return its exit code, standard output and standard error.
    """
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
    """The fixture `cli`, with three models in the catalog."""
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


def test_a_model_is_added_shown_and_removed(cli, tmp_path):
    """
    `add`, `show` and `rm` change the catalog, and the file stays.
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


def test_the_size_of_a_folder_is_that_of_its_files(cli):
    """
    Links in a snapshot folder count with the size of their target, each target once.
    """
    Path("blobs").mkdir()
    Path("blobs/a").write_bytes(bytes(300))
    Path("snapshot/sub").mkdir(parents=True)
    for link in ("snapshot/one", "snapshot/sub/two"):
        Path(link).symlink_to(Path("blobs/a").absolute())
    Path("snapshot/config.json").write_bytes(b"{}")

    cli("add", "snapshot", "--provider", "hf", "--reference", "m")

    assert json.loads(cli("show", "hf:m", "--format", "json")[1])["size_bytes"] == 302


def test_add_records_the_metadata_of_the_header(cli):
    """
    An incomplete file is recorded too, with a warning.
    """
    content = make_gguf("llama", context_length=2048)
    Path("complete.gguf").write_bytes(content)
    Path("truncated.gguf").write_bytes(content[:-1])

    code, _, err = cli("add", "complete.gguf", "--provider", "local", "--reference", "complete")
    path = Path("complete.gguf").absolute()
    assert (code, err) == (0, f"recorded local:complete, gguf, llama, F32, 224 B, at {path}\n")
    assert cli("ls", "-f", "arch=llama", "-f", "context>=2k", "--format", "quiet")[1] == (
        "local:complete\n"
    )

    code, _, err = cli("add", "truncated.gguf", "--provider", "local", "--reference", "truncated")
    assert code == 0
    assert "warning: the model is incomplete" in err
    assert cli("show", "local:truncated")[0] == 0


def test_ls_shows_kinds_if_a_model_cannot_be_loaded_alone(cli):
    """
    `add` and `ls` name an adapter, and a filter finds it. The user's word replaces the file's.
    """
    Path("m.gguf").write_bytes(make_gguf("llama", context_length=8))
    Path("lora.gguf").write_bytes(make_gguf("llama", context_length=8))
    cli("add", "m.gguf", "--provider", "local", "--reference", "m")
    before = cli("ls")[1]
    _, _, notice = cli("add", "lora.gguf", "--provider", "local", "--reference", "l")

    table = cli("ls")[1]
    found = cli("ls", "--format", "quiet", "--filter", "kind=adapter")[1]

    assert "KIND" not in before
    assert "KIND" in table
    assert "adapter" in notice
    assert found == "local:l\n"
    assert json.loads(cli("show", "local:l", "--format", "json")[1])["kind"] == "adapter"


def test_the_catalogs_own_database_is_not_added(cli):
    """
    Opening the file beside SQLite and closing it again would drop SQLite's locks.
    """
    cli("add", "tiny.bin", "--provider", "local", "--reference", "tiny")

    code, _, err = cli("add", ".rbee/models/catalog.db", "--provider", "p", "--reference", "r")
    assert code == 1
    assert "the catalog" in err
    assert cli("ls", "--format", "quiet")[1] == "local:tiny\n"


@pytest.mark.parametrize("path", ["missing.gguf", "pipe", "dangling"])
def test_a_path_that_is_not_a_file_is_not_added(cli, path):
    """
    The error names the missing file, the FIFO or the dangling link, and no catalog is created.
    """
    os.mkfifo("pipe")
    Path("dangling").symlink_to("nowhere")

    code, out, err = cli("add", path, "--provider", "hf", "--reference", "m")

    assert (code, out) == (1, "")
    assert path in err
    assert not Path(".rbee").exists()


def test_ls_prints_a_table_and_a_total(filled):
    """
    The table is sorted by download time, newest first. The total goes to standard error.
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
    assert err == "3 models, 5.0 MB, 2.5 MB on the disk\n"


def test_ls_shows_paths_with_an_option(filled, tmp_path):
    """
    Paths would make every table wide, so they need `--paths`.
    """
    assert str(tmp_path) not in filled("ls")[1]
    assert f"{tmp_path}/tiny.bin" in filled("ls", "--paths")[1]


def test_json_has_sizes_in_bytes_and_times_in_utc(filled, tmp_path):
    """
    A program reads integers and ISO 8601 times, not texts for people.
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
        "kind": "model",
        "unknown_reason": "the format of the weights is not known",
        "host": "",
    }


def test_tsv_has_a_header_and_one_line_for_each_model(filled):
    """
    The columns can be read by `cut` and `awk`.
    """
    _, out, _ = filled("ls", "--format", "tsv")

    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert head[:4] == ["provider", "reference", "version", "size_bytes"]
    assert sorted(row[:4] for row in rows)[2] == ["local", "tiny", "", "1000"]


def test_a_quiet_name_has_its_version_if_another_version_is_not_listed(filled):
    """
    Otherwise `rm` would remove that version too.
    """
    filled("add", "tiny.bin", "--provider", "local", "--reference", "org/other:Q4")

    _, out, _ = filled("ls", "--format", "quiet", "--filter", "version=v1")
    _, newest, _ = filled("ls", "--format", "quiet", "--limit", "1")

    assert out == "local:org/other:Q4@v1\n"
    assert newest == "local:org/other:Q4@\n"


def test_quiet_names_can_be_passed_to_rm(filled):
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


@pytest.mark.slow
def test_du_prints_sizes_by_provider(filled):
    """
    There is one line for each provider, largest first, and a total.
    """
    filled("add", "tiny.bin", "--provider", "aaa", "--reference", "tiny")

    assert [line.split() for line in filled("du")[1].splitlines()] == [
        ["PROVIDER", "MODELS", "SIZE", "ON", "DISK"],
        ["local", "3", "5.0", "MB", "2.5", "MB"],
        ["aaa", "1", "1.0", "kB", "4.1", "kB"],
        ["total", "4", "5.0", "MB", "2.5", "MB"],
    ]
    on_disk = sum(Path(name).stat().st_blocks * 512 for name in ("tiny.bin", "other.bin"))
    assert filled("du", "--format", "quiet")[1] == f"{on_disk}\n"
    assert filled("du", "--format", "tsv")[1].splitlines()[1] == f"local\t3\t5001000\t{on_disk}"
    total = json.loads(filled("du", "--format", "json")[1])
    assert (total["size_bytes"], total["disk_bytes"]) == (5_002_000, on_disk)


@pytest.mark.parametrize(
    ("answer", "code", "remaining"),
    [("y\n", 0, 1), ("YES\n", 0, 1), ("n\n", 1, 3), ("\n", 1, 3), ("", 1, 3)],
    ids=["yes", "YES", "no", "nothing", "end of input"],
)
def test_rm_asks_for_confirmation(filled, answer, code, remaining):
    """
    It lists every version that it will remove, and removes only after a yes.
    """
    found, out, err = filled("rm", "local:org/other:Q4", answer=answer)

    assert (found, out) == (code, "")
    assert "local:org/other:Q4@v1, 2.5 MB" in err
    assert "local:org/other:Q4@v2, 2.5 MB" in err
    assert len(filled("ls", "--format", "quiet")[1].splitlines()) == remaining


def test_rm_reports_an_unknown_name(filled):
    """
    The known model is removed, the unknown one is named, and the exit code is 1.
    """
    code, _, err = filled("rm", "-y", "local:tiny", "local:nothing")

    assert code == 1
    assert "'nothing'" in err
    assert filled("show", "local:tiny")[0] == 1


def test_reading_commands_create_no_catalog(cli):
    """
    Without a default catalog there are no models. A catalog that was named, but does not exist, is
    an error.
    """
    code, out, err = cli("ls")
    assert (code, out) == (0, "")
    assert err.startswith("0 models, 0 B\nthere is no catalog: run `model-catalog scan` ")
    assert cli("ls", "--format", "json")[1] == "[]\n"
    assert cli("du", "--format", "quiet")[1] == "0\n"
    code, _, err = cli("show", "hf:m")
    assert (code, "`model-catalog ls`" in err) == (1, True)
    assert cli("rm", "-y", "hf:m")[0] == 1
    assert not Path(".rbee").exists()

    code, out, err = cli("ls", "--db", "typo.db")
    assert (code, out) == (1, "")
    assert "`model-catalog db upgrade --db typo.db`" in err
    assert not Path("typo.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "noprovider"], "has no provider"),
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
def test_invalid_arguments_have_exit_code_2(cli, arguments, message):
    """
    The message says what is wrong with the argument.
    """
    code, out, err = cli(*arguments)

    assert (code, out) == (2, "")
    assert message in err
    assert "hunter2" not in err


def test_an_unknown_option_has_exit_code_2(cli, capsys):
    """
    argparse uses the same code.
    """
    with pytest.raises(SystemExit) as caught:
        main(["ls", "--colour"])

    assert caught.value.code == 2


def test_names_cannot_control_the_terminal(cli, tmp_path):
    """
    A path may contain escape sequences, line breaks and bidi marks. They are printed as escapes.
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


@pytest.mark.slow
def test_the_database_is_upgraded_and_checked(cli):
    """
    `db upgrade` creates it, `db current` prints only the revision, and `db check` finds a missing
    column.
    """
    assert cli("db", "upgrade", "0001", "--db", "c.db")[0] == 0
    assert cli("db", "current", "--db", "c.db")[:2] == (0, "model_catalog_0001\n")
    code, out, _ = cli("db", "check", "--db", "c.db")
    assert code == 1
    assert "is at revision model_catalog_0001" in out

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
def test_the_option_db_takes_a_path_or_a_url(cli, database):
    """
    The commands work on every database.
    """
    assert (
        cli("add", "tiny.bin", *("--provider", "p", "--reference", "r", "--db", database.target))[0]
        == 0
    )

    assert cli("ls", "--format", "quiet", "--db", database.target)[1] == "p:r\n"


def test_the_environment_variable_replaces_the_option_db(cli, monkeypatch):
    """
    `MODEL_CATALOG_URL` names the catalog if `--db` is not given.
    """
    monkeypatch.setenv("MODEL_CATALOG_URL", "elsewhere.db")

    cli("add", "tiny.bin", "--provider", "p", "--reference", "r")

    assert Path("elsewhere.db").is_file()
    assert not Path(".rbee").exists()


def test_help_does_not_import_the_database_packages(tmp_path):
    """
    The commands import SQLAlchemy, the parser does not. So `--help` is fast.
    """
    script = (
        "import sys\n"
        "from model_catalog.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'sqlalchemy', 'alembic', 'asyncpg', 'psycopg'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert (process.returncode, process.stderr) == (0, "")
    assert "model-catalog add" in process.stdout


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error(filled):
    """
    `model-catalog ls | head -1` prints no traceback.
    """
    command = [sys.executable, "-m", "model_catalog", "ls", "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as lister:
        lister.stdout.close()
        err = lister.stderr.read()

    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_the_demo_shows_every_call_and_leaves_no_file(cli, tmp_path):
    """
    It prints each call and its result, and removes its temporary folder.
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
def test_sizes_have_decimal_units(size_bytes, shown):
    """
    The units are powers of 1000, as disks and model hubs use them.
    """
    assert human_size(size_bytes) == shown


def test_only_control_characters_are_escaped():
    """
    Letters of any script stay; invisible characters become escapes.
    """
    assert escape_controls("Größe 模型 🦙") == "Größe 模型 🦙"
    assert escape_controls("a\tb\u200bc\u2028d\x9b") == r"a\tb\u200bc\u2028d\x9b"


def test_all_filters_must_match(filled):
    """
    A model that does not match one of the filters is not listed.
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


def test_ls_sorts_by_the_given_key(filled):
    """
    Each key has a default direction, which `:asc` or `:desc` overrides.
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
def test_an_invalid_filter_or_sort_key_has_exit_code_2(cli, arguments):
    """
    The message is printed before a database is opened.
    """
    code, out, err = cli("ls", *arguments)

    assert (code, out) == (2, "")
    assert err


def test_an_unknown_filter_key_lists_the_keys(cli):
    """
    The user sees which keys exist.
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


def test_labels_are_printed_and_shown(filled):
    """
    `tag`, `note`, `pin` and their opposites print the result, and `show` contains it.
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


def test_an_alias_can_be_used_in_place_of_a_version(filled):
    """
    `alias` sets, moves, lists and deletes aliases.
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
def test_labelling_an_unknown_model_fails(cli, arguments):
    """
    The exit code is 1, and no catalog is created.
    """
    code, out, err = cli(*arguments)

    assert (code, out) == (1, "")
    assert "no model 'm' of provider 'hf'" in err
    assert not Path(".rbee").exists()


def test_stats_counts_by_provider_format_and_architecture(filled):
    """
    An unknown value is counted as `?`.
    """
    lines = [line.split() for line in filled("stats")[1].splitlines()]
    assert ["provider", "local", "3", "5.0", "MB", "2.5", "MB"] in lines
    assert ["architecture", "?", "3", "5.0", "MB", "2.5", "MB"] in lines
    rows = json.loads(filled("stats", "--format", "json")[1])
    (row,) = [row for row in rows if row["kind"] == "format"]
    assert (row["name"], row["models"], row["size_bytes"]) == (None, 3, 5_001_000)


def test_an_export_can_be_imported_into_another_catalog(filled, tmp_path):
    """
    The other catalog exports the same text.
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


def test_a_broken_line_stops_an_import(cli):
    """
    Nothing is imported. With `--skip-broken` the other lines are imported, and the exit code is 1.
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


def test_a_failed_export_keeps_the_earlier_file(filled):
    """
    The file is replaced only when the new export is complete.
    """
    filled("export", "out.ndjson")
    before = Path("out.ndjson").read_text()

    assert filled("export", "out.ndjson", "--db", "missing.db")[0] == 1

    assert Path("out.ndjson").read_text() == before
    assert list(Path().glob(".out*")) == []


def test_an_export_replaces_only_regular_files(filled, tmp_path):
    """
    A link is followed, a file keeps its mode, and a FIFO is written to directly.
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


def test_rename_changes_the_reference_or_the_version(filled):
    """
    It prints the new name, and refuses one that is taken.
    """
    code, out, err = filled("rename", "local:tiny", "--reference", "small", "--version", "")

    assert (code, out, err) == (0, "", "local:tiny is local:small now\n")
    assert filled("show", "local:small")[0] == 0
    code, _, err = filled("rename", "local:org/other:Q4@v1", "--version", "v2")
    assert code == 2
    assert "'local:org/other:Q4@v2' is taken" in err
    assert filled("rename", "local:small")[0] == 2


def test_rm_accepts_an_alias(filled):
    """
    It prints and removes the version that the alias points to.
    """
    filled("alias", "local:org/other:Q4@v1", "stable")

    code, _, err = filled("rm", "-y", "local:org/other:Q4@stable")

    assert code == 0
    assert "local:org/other:Q4@v1, 2.5 MB" in err
    assert filled("show", "local:org/other:Q4@v1")[0] == 1
    assert filled("show", "local:org/other:Q4@v2")[0] == 0


def test_contradicting_providers_have_exit_code_2(filled):
    """
    `--provider` is a filter like the others.
    """
    assert filled("ls", "--provider", "local", "-f", "provider=nope")[0] == 2
    assert filled("ls", "--provider", "nope")[2] == "0 models, 0 B\n"


@pytest.mark.parametrize("expression", ["tag=", "size>99999999999GB", "context=8k"])
def test_an_invalid_value_of_a_filter_lists_the_keys(cli, expression):
    """
    The key itself may be valid.
    """
    code, _, err = cli("ls", "-f", expression)

    assert code == 2
    assert "the keys are size" in err


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "<&-"])
def test_a_closed_stream_causes_no_traceback(filled, closed):
    """
    A shell can close standard input or output. Then nothing is confirmed, so `rm` removes nothing.
    """
    command = f"{sys.executable} -m model_catalog rm local:tiny {closed}"

    process = subprocess.run(
        ["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )

    assert process.returncode == 1
    assert "Traceback" not in process.stderr
