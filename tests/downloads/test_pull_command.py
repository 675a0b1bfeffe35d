"""`model-catalog pull` with the real huggingface_hub and a hub on the loopback interface."""

import signal
import sqlite3
import sys
from contextlib import closing

import pytest
from hub_pulls import COMMIT, FILES, OTHER_COMMIT, QUANTIZATIONS, TOKEN, Puller, finish
from loopback_hub import LoopbackHub
from terminals import in_terminal

from model_catalog import open_catalog
from model_catalog.cli import main
from model_catalog.upkeep import Verdict, verify_models

pytestmark = pytest.mark.slow

HELD = "model-Q4_K_M.gguf"


@pytest.fixture(params=["sqlite", "asyncpg"])
def backend(request):
    """test_hub_download.py has the same downloads through psycopg."""
    return request.param


@pytest.fixture
def hub():
    with LoopbackHub(COMMIT, dict(FILES)).serve() as served:
        yield served


@pytest.fixture
def puller(hub, database, tmp_path):
    pytest.importorskip("huggingface_hub")
    return Puller(hub, database.target, tmp_path)


def downloads(database):
    return database.run(
        "SELECT state, error, done_bytes, total_bytes FROM model_downloads ORDER BY id"
    )


def models(database):
    return database.run("SELECT reference, version, state FROM models ORDER BY version")


async def test_a_pulled_model_is_recorded_in_place(puller, database):
    """With its files, their digests, the alias of its branch, and the folder that is managed."""
    code, printed = puller.pull("hf:o/m")

    snapshot = puller.repository / "snapshots" / COMMIT
    async with open_catalog(database.target) as catalog:
        model = await catalog.get_model("hf:o/m@main")
        files = {file.path: file.digest for file in await catalog.list_files(model)}
        verified = [each async for each in verify_models(catalog)]
    assert (code, printed) == (
        0,
        f"{snapshot}\nrecorded hf:o/m@{COMMIT}, gguf, llama, 200 kB, at {snapshot}\n",
    )
    assert (model.local_path, model.version) == (str(snapshot), COMMIT)
    assert (model.store, model.store_root) == ("huggingface", str(puller.cache))
    assert (model.managed_root, model.foreign) == (str(puller.repository), False)
    assert files.keys() == FILES.keys()
    assert files[HELD] == f"sha256:{puller.hub.etag(HELD)}"
    assert [each.verdict for each in verified] == [Verdict.OK]
    size = sum(map(len, FILES.values()))
    assert downloads(database) == [("done", None, size, size)]
    parts = sorted(each.name for each in puller.repository.iterdir())
    assert parts == ["blobs", "refs", "snapshots", "trees"]


def test_a_second_pull_asks_nobody(puller, database):
    """The model is recorded and present, so the hub may be down."""
    first = puller.pull("hf:o/m")
    puller.hub.refusal = (500, "Down")

    second = puller.pull("hf:o/m@main")

    assert first == second
    assert len(models(database)) == len(downloads(database)) == 1


def test_a_token_is_sent_to_the_hub_only(puller, database):
    """It is in no row, no file of the catalog, and nothing that was printed."""
    printed = puller.pull("hf:o/m")[1]
    puller.hub.refusal = (401, "GatedRepo")
    printed += puller.pull("hf:o/other")[1]

    assert puller.hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in printed
    for table in ("models", "model_files", "model_claims", "model_downloads", "model_uses"):
        assert TOKEN not in repr(database.run(f"SELECT * FROM {table}"))
    if database.path is not None:
        for path in database.path.parent.glob("catalog.db*"):
            assert TOKEN.encode() not in path.read_bytes()


def test_a_killed_pull_is_run_again(puller, database):
    """The files are whole, the model is recorded once, and no partial file is left."""
    puller.hub.held = {HELD}
    process = puller.start("hf:o/m")
    assert puller.hub.is_half_sent.wait(60)
    process.send_signal(signal.SIGKILL)
    finish(process)
    puller.hub.held = set()
    puller.hub.release.set()
    database.run("UPDATE model_claims SET expires_at_ms = 0")

    code, printed = puller.pull("hf:o/m")

    snapshot = puller.repository / "snapshots" / COMMIT
    assert code == 0, printed
    assert {path: (snapshot / path).read_bytes() for path in FILES} == FILES
    assert models(database) == [("o/m", COMMIT, "present")]
    assert database.run("SELECT managed_root FROM models") == [(str(puller.repository),)]
    assert not list(puller.repository.rglob("*.incomplete"))
    assert [row[0] for row in downloads(database)] == ["failed", "done"]


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interrupted_pull_is_recorded_as_cancelled(puller, database, number, exit_code):
    """It ends with the exit code of the signal, and the next pull need not wait for a lease."""
    puller.hub.held = {HELD}
    process = puller.start("hf:o/m")
    assert puller.hub.is_half_sent.wait(60)
    process.send_signal(number)
    puller.hub.held = set()
    puller.hub.release.set()
    code, printed = finish(process)

    again = puller.pull("hf:o/m")

    assert (code, printed) == (exit_code, "")
    assert again[0] == 0, again
    assert [row[:2] for row in downloads(database)] == [
        ("failed", "it was cancelled"),
        ("done", None),
    ]
    assert models(database) == [("o/m", COMMIT, "present")]


def test_a_pull_shows_its_progress_on_a_terminal(puller, database):
    """Ctrl-C erases it and shows the cursor again. Then a whole pull leaves only its messages."""
    pytest.importorskip("rich")
    command = [sys.executable, "-m", "model_catalog", "pull", "hf:o/m", "--db", str(puller.target)]
    puller.hub.held = {HELD}

    with in_terminal(*command, width=100, **puller.env) as (stopped, interrupted):
        assert puller.hub.is_half_sent.wait(60)
        interrupted.wait_for("/200.1 kB")
        interrupted.type(b"\x03")
        stopped.wait(60)
    puller.hub.held = set()
    puller.hub.release.set()
    with in_terminal(*command, width=100, **puller.env) as (pulled, whole):
        pass

    assert (stopped.returncode, pulled.returncode) == (130, 0)
    assert interrupted.remains.replace("^C", "").strip() == ""
    for screen in (interrupted, whole):
        assert screen.raw.rindex("\x1b[?25h") > screen.raw.rindex("\x1b[?25l")
    assert "200.1/200.1 kB" in whole.text
    assert whole.remains.startswith("recorded hf:o/m@")


def test_an_interrupted_pull_does_not_wait_for_a_hub_that_sends_nothing(puller, database):
    """The thread that reads from the hub cannot be cancelled, and the process ends without it."""
    puller.hub.held = {HELD}
    process = puller.start("hf:o/m")
    assert puller.hub.is_half_sent.wait(60)
    process.send_signal(signal.SIGINT)

    code, printed = finish(process)

    assert (code, printed) == (130, "")
    assert not puller.hub.release.is_set()
    assert [row[:2] for row in downloads(database)] == [("failed", "it was cancelled")]
    assert database.run("SELECT * FROM model_claims") == []


def test_two_pulls_at_once_download_once(puller, database):
    """The second process waits for the first one, and prints the same model."""
    puller.hub.held = {HELD}
    first = puller.start("hf:o/m")
    assert puller.hub.is_half_sent.wait(60)
    puller.hub.held = set()
    second = puller.start("hf:o/m")
    puller.hub.release.set()

    results = [finish(first), finish(second)]

    assert results[0] == results[1]
    assert results[0][0] == 0
    # A request for the file whose connection was closed, and one for the rest of it.
    assert sorted(set(puller.hub.downloads)) == sorted(FILES)
    assert puller.hub.downloads.count(HELD) <= 2
    assert [row[0] for row in downloads(database)] == ["done"]
    assert models(database) == [("o/m", COMMIT, "present")]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        pytest.param((403, "GatedRepo"), "Accept its conditions", id="gated"),
        pytest.param((404, "RepoNotFound"), "no such repository", id="unknown"),
        pytest.param((401, ""), "the status 401. If it is private, set HF_TOKEN", id="token"),
        pytest.param((404, "RevisionNotFound"), "no such branch, tag or commit", id="revision"),
        pytest.param((418, ""), "the status 418", id="other"),
    ],
)
@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_refusal_of_the_hub_is_explained(puller, database, refusal, said):
    """The error names the model and the way out, and is in the record of the download."""
    puller.hub.refusal = refusal

    code, printed = puller.pull("hf:o/m@v1")

    assert code == 1
    assert printed.startswith("model-catalog: error: hf:o/m@v1 could not be downloaded: ")
    assert said in printed
    assert printed.count("\n") == 1
    ((state, error, *_),) = downloads(database)
    assert state == "failed"
    assert said.split(". ")[0] in error or "HubDownloadError" in error
    assert models(database) == []


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_hub_that_is_down_is_explained(puller, database):
    """Nothing listens at the address of the hub."""
    puller.env["HF_ENDPOINT"] = "http://127.0.0.1:9"

    code, printed = puller.pull("hf:o/m")

    assert code == 1
    assert "the hub cannot be reached" in printed
    assert "HF_ENDPOINT" in printed
    assert models(database) == []


@pytest.mark.parametrize("backend", ["sqlite"])
def test_too_little_space_is_found_before_the_download(puller, database):
    """No file is asked for."""
    puller.hub.sizes = {HELD: 2**60}

    code, printed = puller.pull("hf:o/m")

    assert code == 1
    assert "bytes are missing" in printed
    assert f"{2**60 + len(FILES['config.json']) + len(FILES['README.md']):,}" in printed
    assert puller.hub.downloads == []
    assert models(database) == []


def test_patterns_name_one_of_several_quantizations(puller, database):
    """A quantization that was pulled before does not stand in for another one."""
    puller.hub.revisions[COMMIT] = QUANTIZATIONS
    first = puller.pull("hf:o/m", "--include", "*Q4_K_M*")
    second = puller.pull("hf:o/m", "--include", "*Q8_0*")
    sent = list(puller.hub.downloads)

    again = [puller.pull("hf:o/m", "--include", f"*{each}*") for each in ("Q4_K_M", "Q8_0")]

    assert (first[0], second[0]) == (0, 0)
    assert sent == puller.hub.downloads == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert [code for code, _ in again] == [0, 0]
    assert "m-Q4_K_M.gguf" in again[0][1]
    assert "m-Q8_0.gguf" in again[1][1]
    assert [version for _, version, _ in models(database)] == [
        f"{COMMIT}/m-Q4_K_M.gguf",
        f"{COMMIT}/m-Q8_0.gguf",
    ]
    roots = database.run("SELECT DISTINCT managed_root FROM models")
    assert roots == [(str(puller.repository),)]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_patterns_without_a_file_are_refused(puller, database):
    """Nothing is downloaded and nothing is recorded."""
    code, printed = puller.pull("hf:o/m", "--include", "*Q2*")

    assert code == 1
    assert "no file of the repository matches the patterns (include '*Q2*')" in printed
    assert models(database) == []


@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_error_for_an_endpoint_without_a_scheme_names_the_variable(puller):
    """httpx would only say that a URL has no protocol."""
    puller.env["HF_ENDPOINT"] = "hub.example.org"

    code, printed = puller.pull("hf:o/m")

    assert code == 1
    assert "the URL of the hub is not valid. Set HF_ENDPOINT to one that begins with" in printed


@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_error_for_a_cache_that_is_a_file_names_the_path(puller, tmp_path):
    """To try again would not help."""
    (tmp_path / "file").touch()
    puller.env["HF_HOME"] = str(tmp_path / "file")

    code, printed = puller.pull("hf:o/m")

    assert code == 1
    assert f"could not be downloaded: '{tmp_path}/file/" in printed
    assert (
        "Not a directory. Make its folder writable, or set HF_HOME to a folder that is" in printed
    )


@pytest.mark.parametrize("backend", ["sqlite"])
def test_excluded_files_are_not_downloaded(puller):
    """Those that match a pattern of --exclude."""
    code, _ = puller.pull("hf:o/m", "--exclude", "*.md", "--exclude", "*.json")

    assert code == 0
    assert puller.hub.downloads == [HELD]


async def test_each_revision_is_a_version(puller, database):
    """A branch, a tag and a commit name the version that they name on the hub."""
    puller.hub.add_revision(OTHER_COMMIT, {**FILES, "README.md": b"more"}, "main")
    puller.hub.refs["v1"] = COMMIT
    old, new = puller.pull("hf:o/m@v1"), puller.pull("hf:o/m")
    by_branch = puller.pull("hf:o/m@main")
    by_commit = puller.pull(f"hf:o/m@{OTHER_COMMIT}")

    async with open_catalog(database.target) as catalog:
        found = {name: await catalog.get_model(f"hf:o/m@{name}") for name in ("v1", "main")}

    # A recorded model of the name is returned, whatever the hub has now.
    assert old[0] == by_branch[0] == 0
    assert (new, by_commit) == (old, by_branch)
    assert found["v1"].version == COMMIT
    assert found["main"].version == OTHER_COMMIT
    assert puller.hub.downloads.count(HELD) == 1


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_local_path_is_registered(puller, database, tmp_path):
    """Nothing is copied. The reference is the absolute path."""
    path = tmp_path / "some@model.gguf"
    path.write_bytes(FILES[HELD])

    code, printed = puller.pull(f"local:{path}")

    assert code == 0, printed
    columns = "provider, reference, version, local_path, managed_root"
    assert database.run(f"SELECT {columns} FROM models") == [
        ("local", str(path), "", str(path), None)
    ]
    assert downloads(database) == []


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["ollama:llama3"], "get_or_download", id="provider"),
        pytest.param(["local:.", "--include", "*"], "--include", id="patterns"),
        pytest.param(["hf:o/m", "--include", ""], "include", id="blank"),
        pytest.param(["llama3"], "provider:reference", id="name"),
    ],
)
def test_invalid_arguments_are_refused(puller, words, said):
    """The exit code is 2."""
    code, printed = puller.pull(*words)

    assert code == 2
    assert said in printed


@pytest.mark.parametrize("name", ["a/b/c", "a b", "/a", "a/"])
def test_what_is_not_the_name_of_a_repository_is_wrong_usage(name, tmp_path, capsys):
    """The hub is not asked, and no download is recorded."""
    target = tmp_path / "catalog.db"

    code = main(["pull", f"hf:{name}", "--db", str(target)])

    assert code == 2
    assert "write hf:organisation/name" in capsys.readouterr().err
    with closing(sqlite3.connect(target)) as raw:
        assert raw.execute("SELECT count(*) FROM model_downloads").fetchone() == (0,)
