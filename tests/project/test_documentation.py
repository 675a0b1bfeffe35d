"""README.md and docs/: programs run, commands parse, names, links and module paths exist."""

import builtins
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from model_catalog import ModelCatalog, downloads, upkeep
from model_catalog.cli.commands.demo_files import huggingface_cache, make_gguf, ollama_store
from model_catalog.cli.parser import make_parser

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
PAGES = [README, *sorted(PROJECT.glob("docs/**/*.md"))]
TEXTS = {page: page.read_text() for page in PAGES}
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
# docs/fleet.md has a test of its own, because its program needs a PostgreSQL server.
PROGRAMS = [
    pytest.param(block, id=page.stem)
    for page, text in TEXTS.items()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if "\nasyncio.run(" in block and page.stem != "fleet"
]
COMMANDS = sorted(
    {
        command
        for text in TEXTS.values()
        for command in re.findall(r"^\$ model-catalog (.*)$", text, re.MULTILINE)
    }
)
OUTSIDE_NAMES = {
    "Depends": "fastapi",
    "ForeignKey": "sqlalchemy",
    "asdict": "dataclasses",
    "merge": "sqlalchemy.orm.Session",
    "rollback": "sqlalchemy.orm.Session",
    "sleep": "asyncio",
    "to_metadata": "sqlalchemy.Table",
    "where": "sqlalchemy.Select",
}
SQL_FUNCTIONS = {"pg_backend_pid", "pg_current_wal_insert_lsn", "pg_last_wal_replay_lsn"}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_python_program_runs(program, tmp_path):
    """
    Each complete program runs without a warning and prints something.
    """
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command):
    """
    The argument parser accepts each command that a page shows.
    """
    assert make_parser().parse_args(shlex.split(command, comments=True))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README", "quickstart", "command-line"])
def test_the_session_of_a_page_runs(page, tmp_path):
    """
    The commands of the page succeed one after the other, and print the lines that end the session.
    """
    make_stores(tmp_path)
    (text,) = (text for path, text in TEXTS.items() if path.stem == page)
    sessions = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    env = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": str(tmp_path)}

    for command in re.findall(r"^\$ (.*)$", "".join(sessions), re.MULTILINE):
        process = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env,
            check=False,
        )
        assert process.returncode == (3 if "missing" in process.stdout else 0), process.stderr
        assert "error" not in process.stderr


def test_the_printed_revision_is_the_newest():
    """
    A session with `db current` is run again after each new revision.
    """
    newest = max(path.name[:4] for path in PROJECT.glob("migrations/versions/[0-9]*.py"))
    printed = re.findall(
        r"^\$ model-catalog db current\n(\S+)", "\n".join(TEXTS.values()), re.MULTILINE
    )

    assert set(printed) == {f"model_catalog_{newest}"}


def make_stores(folder):
    """Make a cache of Hugging Face, a store of Ollama and the files that the sessions name."""
    weights = make_gguf("bert", context_length=512)
    for name in (".cache/huggingface", ".ollama", "models"):
        (folder / name).mkdir(parents=True)
    huggingface_cache(folder / ".cache/huggingface/hub", weights)
    ollama_store(folder / ".ollama/models", weights)
    for name in ("models/bge.gguf", "ggml-vocab-bert-bge.gguf", "small.gguf"):
        (folder / name).write_bytes(weights)
    header = b'{"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}'
    length = len(header).to_bytes(8, "little")
    (folder / "voices.safetensors").write_bytes(length + header + bytes(8))


def test_the_readme_is_short():
    """
    The README has at most 180 lines; the guides are in docs/.
    """
    assert len(TEXTS[README].splitlines()) <= 180


def test_every_method_is_listed():
    """
    The pages name every public method of ModelCatalog, and every function of two packages.
    """
    methods = {name for name in dir(ModelCatalog) if not name.startswith("_")}
    functions = {name for name in (*upkeep.__all__, *downloads.__all__) if name.islower()}
    text = "\n".join(TEXTS.values())

    assert {name for name in methods | functions if f"`{name}" not in text} == set()


@EACH_PAGE
def test_named_modules_exist(page):
    """
    Each module path leads to a file of the package or of the project.
    """
    paths = re.findall(r"`((?:\w+/)+\w+\.py)`", TEXTS[page])

    missing = [
        path
        for path in paths
        if not (PROJECT / "src/model_catalog" / path).is_file() and not (PROJECT / path).is_file()
    ]
    assert missing == []


@EACH_PAGE
def test_named_functions_exist(page):
    """
    Each function that is called in running text is one of the project, of Python or of a library.
    """
    names = {name.split(".")[-1] for name in re.findall(r"`(?:await )?([\w.]+)\(", TEXTS[page])}

    unknown = names - _defined_names() - set(dir(builtins)) - SQL_FUNCTIONS
    assert {name for name in unknown if not _is_outside(name)} == set()


@EACH_PAGE
def test_links_lead_to_a_heading_of_a_file(page):
    """
    Each relative link leads to a file or a folder, and its fragment to a heading there.
    """
    prose = re.sub(r"```.*?```|`[^`]*`", "", TEXTS[page], flags=re.DOTALL)
    links = re.findall(r"\]\(([^):\s]*)\)", prose)

    broken = []
    for link in links:
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in _headings(target)):
            broken.append(link)
    assert broken == []


@cache
def _defined_names():
    sources = (
        path for folder in ("src", "tests", "examples") for path in (PROJECT / folder).rglob("*.py")
    )
    return {
        name
        for path in sources
        for name in re.findall(
            r"^\s*(?:async )?(?:def|class) (\w+)", path.read_text(), re.MULTILINE
        )
    }


def _is_outside(name):
    if name not in OUTSIDE_NAMES:
        return False
    path, _, class_ = OUTSIDE_NAMES[name].rpartition(".")
    if class_ and class_[0].isupper():
        return hasattr(getattr(import_module(path), class_), name)
    return hasattr(pytest.importorskip(OUTSIDE_NAMES[name]), name)


def _headings(page):
    """The fragments of the headings of a page, as GitHub and MyST make them."""
    text = page.read_text()
    for included in re.findall(r"```\{include\} (\S+)", text):
        text += "\n" + (page.parent / included).read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
