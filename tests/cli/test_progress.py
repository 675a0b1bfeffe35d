"""Progress on a terminal: what it shows, and what it leaves behind."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest
from terminals import in_terminal, printing_to_terminal

from model_catalog.cli import main
from model_catalog.cli.commands.demo_files import huggingface_cache, make_gguf
from model_catalog.cli.output import print_error, print_line
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.concurrency.threads import to_thread
from model_catalog.upkeep import Progress

pytest.importorskip("rich")

ADD = ("add", "m.gguf", "--provider", "local", "--reference", "m")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, except for the file of one model."""
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").write_bytes(make_gguf("llama", context_length=8))


@pytest.fixture
def show(folder, monkeypatch, capsys):
    """Run a command whose standard error is a terminal; return the screen and the output."""

    def run(*arguments, **options):
        capsys.readouterr()
        with printing_to_terminal(monkeypatch, "stderr", **options) as screen:
            code = main(arguments)
        assert code == 0
        return screen, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("arguments", "shown", "remains"),
    [
        (ADD, None, "recorded local:m, gguf, llama, F32, 224 B, at "),
        ((*ADD, "--digest"), "224/224 bytes", "recorded local:m, gguf, llama, F32, 224 B, at "),
        (("verify",), "224/224 bytes", "1 model, 224 B read, all as recorded\n"),
        (("accept", "local:m"), "224/224 bytes", "local:m has the recorded digest: "),
        (("scan", "hub"), "models compared in huggingface", "huggingface, "),
        (("export", "out.ndjson"), "1 of 1", "exported 1 model\n"),
        (("import", "in.ndjson"), "1 of 1", "imported 1 model\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value or ["nothing"]),
)
def test_progress_is_shown_and_erased(show, arguments, shown, remains):
    """
    Commands that read files or many models show how far they are. Only their messages remain.
    """
    if arguments[0] != "add":
        main([*ADD, "--digest"])
    Path("in.ndjson").write_text(
        '{"format": "model-catalog", "version": 1}\n'
        '{"provider": "p", "reference": "r", "local_path": "/m"}\n'
    )
    Path("hub").mkdir()
    huggingface_cache(Path("hub"), make_gguf("bert", context_length=512))

    screen, out = show(*arguments, width=100)

    assert (shown is None and "\x1b" not in screen.raw) or shown in screen.text
    assert screen.remains.startswith(remains)
    assert screen.raw.count("\x1b[?25l") == screen.raw.count("\x1b[?25h")
    assert "\x1b" not in out


@pytest.mark.parametrize("width", [20, 40, 80, 200])
async def test_the_line_fits_the_terminal(monkeypatch, width):
    """
    A narrow terminal gets a short bar. The name of the file is shortened in the middle.
    """
    path = "/srv/models/" + "long/" * 40 + "model-Q4_K_M.gguf"

    with printing_to_terminal(monkeypatch, "stderr", width=width) as screen, ProgressBar() as bar:
        bar.show(Progress(path, 10**9, 4 * 10**9))
        bar.show(Progress(path, 2 * 10**9, 4 * 10**9))
        bar.show_count(3, 12_000, "[bold]models[/bold]")

    lines = screen.text.replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= width
    assert "━" in screen.text
    if width >= 80:
        assert "2.0/4.0 GB" in screen.text
        assert "3 of 12,000" in screen.text
        assert "Q4_K_M.gguf" in screen.text
    if width == 200:
        assert "[bold]models[/bold]" in screen.text


async def test_messages_appear_above_the_line(monkeypatch):
    """
    An error on standard error, and a line on standard output, are each a line of their own.
    """
    with (
        printing_to_terminal(monkeypatch, "stdout", "stderr") as screen,
        ProgressBar() as bar,
    ):
        bar.show(Progress("m.gguf", 1, 2))
        print_error("warning: [bold]x[/bold] \x1b[31m")
        with bar.hidden():
            print_line("ok          local:m")
        bar.show(Progress("m.gguf", 2, 2))

    assert screen.remains == (
        "model-catalog: warning: [bold]x[/bold] \\x1b[31m\nok          local:m\n"
    )


async def test_work_that_cannot_be_counted_shows_the_elapsed_time(monkeypatch):
    """
    The line appears after a moment, and not at all for work that is done by then.
    """
    with printing_to_terminal(monkeypatch, "stderr") as quick, ProgressBar("copying"):
        await asyncio.sleep(0)
    with printing_to_terminal(monkeypatch, "stderr") as slow, ProgressBar("copying the database"):
        await to_thread(slow.wait_for, "copying the database")

    assert quick.raw == ""
    assert "0:00:00 copying the database" in slow.text
    assert slow.remains == ""


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["dumb", "plain"]
)
def test_conventions_of_terminals_are_honoured(show, environment):
    """
    A terminal that cannot move the cursor gets no progress. With NO_COLOR it has no color.
    """
    main([*ADD, "--digest"])

    screen, _ = show("verify", **environment)

    if "NO_COLOR" in environment:
        assert "224/224 bytes" in screen.text
        assert "\x1b[3" not in screen.raw
    else:
        assert screen.raw == "1 model, 224 B read, all as recorded\n"


def test_an_export_to_the_terminal_has_no_progress(folder, monkeypatch):
    """
    The lines of the export would be mixed with it.
    """
    main(ADD)

    with printing_to_terminal(monkeypatch, "stdout", "stderr", width=100) as screen:
        main(["export"])

    assert "\x1b" not in screen.raw
    assert screen.raw.splitlines()[-1] == "exported 1 model"


def test_a_pipe_gets_no_progress(folder, capsys):
    """
    Neither standard output nor standard error has an escape sequence.
    """
    main([*ADD, "--digest"])
    main(["verify"])

    out, err = capsys.readouterr()
    assert "\x1b" not in out + err


@pytest.mark.slow
def test_results_and_progress_share_a_terminal(folder):
    """
    `verify` prints each result on a line of its own. In the end only the results remain.
    """
    for number in range(3):
        Path(f"{number}.gguf").write_bytes(make_gguf("llama", context_length=number + 1))
        with Path(f"{number}.gguf").open("ab") as file:
            file.truncate(200_000_000)
        names = ("--provider", "local", "--reference", f"{number}")
        main(["add", f"{number}.gguf", *names, "--digest"])

    with in_terminal(sys.executable, "-m", "model_catalog", "verify", width=100) as (_, screen):
        pass

    *results, total, end = screen.remains.split("\n")
    assert sorted(results) == [f"ok          local:{number}" for number in range(3)]
    assert total.startswith("3 models, 600 MB read")
    assert end == ""
    assert re.search(r"\d [MG]B/s", screen.text)


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_command_leaves_a_clean_terminal(folder, stop):
    """
    The line is erased, the cursor is shown, and there is no traceback.
    """
    with Path("m.gguf").open("ab") as file:
        file.truncate(200_000_000_000)
    main(ADD)

    command = [sys.executable, "-m", "model_catalog", "verify"]
    with in_terminal(*command, width=100) as (process, screen):
        screen.wait_for("/200.0 GB")
        if stop == "Ctrl-C":
            screen.type(b"\x03")
        else:
            process.send_signal(signal.SIGTERM)

    assert process.returncode == (130 if stop == "Ctrl-C" else 143)
    assert screen.raw.rindex("\x1b[?25h") > screen.raw.rindex("\x1b[?25l")
    assert screen.remains.replace("^C", "").strip() == ""
