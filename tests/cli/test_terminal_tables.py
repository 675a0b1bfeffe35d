"""Tables on a terminal, in a pipe, and without the package that draws them."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from terminals import ESCAPE, in_terminal, printing_to_terminal

from model_catalog import Model, open_catalog
from model_catalog.cli import main

pytest.importorskip("rich")
from rich.cells import cell_len

COMMIT = "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"
MODELS = [
    ("ollama", "[bold]x[/bold]", "[red]v", "/m/\x1b]0;title\x07[link=file:///x]a[/link]", 1_000),
    ("hf", "日本語モデル-超長い名前-量子化版-Q4_K_M", "最新版", "/m/日本語/モデル.gguf", 10**8),
    ("hf", f"org/{'long-name-' * 6}Q8_0", COMMIT, f"/srv/{'x' * 90}.gguf", 14_000_000),
]
PLAIN = f"""\
PROVIDER  REFERENCE                                                             VERSION                                      SIZE  DOWNLOADED
hf        org/long-name-long-name-long-name-long-name-long-name-long-name-Q8_0  {COMMIT}  14.0 MB  2026-11-30 12:00
hf        日本語モデル-超長い名前-量子化版-Q4_K_M                               最新版                                     100 MB  2026-11-30 12:00
ollama    [bold]x[/bold]                                                        [red]v                                     1.0 kB  2026-11-30 12:00
"""  # noqa: E501 - a pipe gets it as it is
WITHOUT_RICH = (
    "import sys; sys.modules['rich'] = None; from model_catalog.cli import run_program; "
    "run_program()"
)


@pytest.fixture
async def listed(tmp_path, monkeypatch):
    """The default catalog has models whose names are long, wide, or markup."""
    monkeypatch.chdir(tmp_path)
    async with open_catalog() as catalog:
        for provider, reference, version, path, size_bytes in MODELS:
            model = Model(
                reference=reference,
                provider=provider,
                version=version,
                local_path=path,
                size_bytes=size_bytes,
                downloaded_at=datetime(2026, 11, 30, 12, tzinfo=UTC),
            )
            await catalog.register_model(model)


@pytest.fixture
def show(listed, monkeypatch):
    """Run a command whose standard output is a terminal; return the screen."""

    def run(*arguments, **options):
        with printing_to_terminal(monkeypatch, "stdout", **options) as screen:
            main(arguments)
        return screen

    return run


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("command", [["ls"], ["ls", "--paths"], ["check"], ["stats"]], ids=" ".join)
def test_no_line_is_wider_than_the_terminal(show, width, command):
    """
    Every command that prints a table fits a narrow, a usual and a wide terminal.
    """
    lines = show(*command, width=width).text.splitlines()

    assert lines
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [40, 80, 200])
def test_only_columns_that_may_be_cut_are_shortened(show, width):
    """
    Sizes, times and paths are complete at every width. A name keeps its beginning and its end.
    """
    screen = show("ls", "--paths", width=width)
    joined = re.sub(r"\s", "", screen.text)

    for expected in ("14.0MB", "100MB", "1.0kB", "2026-11-3012:00", "/m/日本語/モデル.gguf"):
        assert expected in joined
    assert joined.count("2026-11-3012:00") == len(MODELS)
    assert f"/srv/{'x' * 90}.gguf" in joined.replace("PATH", "")


def test_a_long_name_keeps_its_beginning_and_its_end(show):
    """
    The middle of a name is replaced by an ellipsis, the version first.
    """
    (line,) = [line for line in show("ls").text.splitlines() if "org/" in line]

    assert re.match(r"hf +org/long-.*….*-Q8_0 +5c38e…267a +14\.0 MB", line)


def test_columns_are_aligned_by_the_width_of_characters(show):
    """
    Sizes end at one column of the terminal, also behind characters that take two columns.
    """
    lines = show("ls", width=200).text.splitlines()

    ends = {
        cell_len(line[: match.end()]) for line in lines if (match := re.search("SIZE|[kM]B", line))
    }
    assert len(lines) == 1 + len(MODELS)
    assert len(ends) == 1


def test_a_terminal_that_is_too_narrow_gets_a_line_for_each_value(show):
    """
    Names stand before their values, and an empty line divides the models.
    """
    first = show("ls", width=40).text.split("\n\n")[0].splitlines()

    assert [line.split()[0] for line in first if not line.startswith(" ")] == [
        *("PROVIDER", "REFERENCE", "VERSION", "SIZE", "DOWNLOADED"),
    ]
    assert first[-2].split() == ["SIZE", "14.0", "MB"]


@pytest.mark.parametrize("width", [40, 200])
def test_text_from_files_is_neither_markup_nor_escapes(show, width):
    """
    Markup is printed as it is, and a control character as an escape. Only the header is bold.
    """
    screen = show("ls", "--paths", width=width)

    assert "[bold]x[/bold]" in screen.text
    assert "[red]v" in screen.text
    assert r"\x1b]0;title\x07" in re.sub(r"\s+", "", screen.text)
    assert set(ESCAPE.findall(screen.raw)) == {"\x1b[1m", "\x1b[0m"}
    assert screen.raw.count("\x1b") == len(ESCAPE.findall(screen.raw))


@pytest.mark.parametrize("command", ["ls", "du"])
def test_no_color_is_honoured(show, command):
    """
    With NO_COLOR a table has no escape sequence.
    """
    screen = show(command, NO_COLOR="1")

    assert "ollama" in screen.raw
    assert "\x1b" not in screen.raw


@pytest.mark.parametrize("command", ["ls", "du", "stats"])
def test_a_dumb_terminal_gets_the_table_of_a_pipe(show, capsys, command):
    """
    With TERM=dumb the bytes are those of a pipe.
    """
    screen = show(command, width=40, TERM="dumb")
    main([command])

    assert screen.raw == capsys.readouterr().out


def test_bars_show_shares_on_a_terminal_only(show, capsys):
    """
    `du` draws the share of each provider. The bars are dropped if they do not fit.
    """
    main(["du"])

    assert "█" in show("du").text
    assert "█" not in show("du", width=36).text
    assert "█" not in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["", "FORCE_COLOR", "CLICOLOR_FORCE"])
def test_a_pipe_gets_the_plain_table(listed, monkeypatch, capsys, variable):
    """
    The bytes never depend on a width, or on a request for colors. Scripts read them.
    """
    monkeypatch.setenv("COLUMNS", "40")
    if variable:
        monkeypatch.setenv(variable, "1")

    main(["ls"])

    assert capsys.readouterr().out == PLAIN


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_width_is_that_of_the_terminal(listed, width):
    """
    A process asks the terminal for its width, without the variable COLUMNS.
    """
    with in_terminal(sys.executable, "-m", "model_catalog", "ls", width=width) as (process, screen):
        pass

    assert process.returncode == 0
    assert max(map(cell_len, screen.text.splitlines())) <= width
    assert (COMMIT in screen.text) == (width == 200)


@pytest.mark.slow
def test_without_rich_a_terminal_gets_the_plain_table_and_a_sentence(listed):
    """
    The sentence on standard error says what to install.
    """
    with in_terminal(sys.executable, "-c", WITHOUT_RICH, "ls", width=200) as (process, screen):
        pass

    assert process.returncode == 0
    assert PLAIN in screen.raw
    assert screen.raw.count("pip install 'model-catalog[cli]'") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--json"],
        ["ls", "--format", "tsv"],
        ["ls", "--format", "quiet"],
        ["verify"],
        ["export"],
    ],
    ids=" ".join,
)
def test_without_rich_other_commands_work_as_always(listed, tmp_path, arguments):
    """
    A terminal shows the same text as with rich, and no sentence about it.
    """
    for path in ("first", "second"):
        Path(path).touch()
    with in_terminal(sys.executable, "-c", WITHOUT_RICH, *arguments) as (without, screen):
        pass
    with in_terminal(sys.executable, "-m", "model_catalog", *arguments) as (with_rich, expected):
        pass

    assert without.returncode == with_rich.returncode
    assert "rich" not in screen.raw
    assert "pip install" not in screen.raw
    assert screen.remains.splitlines()[:1] == expected.remains.splitlines()[:1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    ["import model_catalog", "main(['--help'])", "main(['ls'])", "main(['verify'])"],
)
def test_rich_is_imported_only_to_draw(listed, code):
    """
    Neither the library, nor `--help`, nor a pipe pays for the import.
    """
    program = (
        "import sys\nfrom model_catalog.cli import main\n"
        f"try:\n    {code}\nexcept SystemExit:\n    pass\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'rich'])"
    )

    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )

    assert process.stdout.splitlines()[-1] == "[]"
