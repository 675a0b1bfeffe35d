"""`model-catalog report` in a real browser: content, sorting, accessibility, no requests."""

import asyncio
import re
import sys
from datetime import UTC, datetime, timedelta

import pytest
from browser import CHROMIUM, Browser

from model_catalog import FileRecord, Model, open_catalog
from model_catalog.downloads import use_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202egnp.exe"
DIGEST = "sha256:" + "a" * 64
OLD = datetime.now(UTC) - timedelta(days=90)


@pytest.fixture
async def page(tmp_path):
    """The report of five models, written by the command while one of them is in use."""
    for name in ("one.bin", "two.bin"):
        (tmp_path / name).write_bytes(bytes(1000))
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        for name in ("one", "two"):
            model = Model(
                reference=name,
                provider="local",
                local_path=str(tmp_path / f"{name}.bin"),
                size_bytes=1000,
                digest=DIGEST,
            )
            await catalog.register_model(
                model, files=[FileRecord(f"{name}.bin", 1000, digest=DIGEST)]
            )
        for reference, size in (("org/large", 9_000_000), (HOSTILE, 2_000_000), ("unknown", None)):
            await catalog.register_model(
                Model(
                    reference=reference,
                    provider="hf",
                    local_path="/nowhere/" + reference,
                    size_bytes=size,
                    architecture="llama",
                    downloaded_at=OLD,
                )
            )
        await catalog.pin_model("hf:org/large", reason="<b>ours</b>")
        async with use_model(catalog, "hf:unknown"):
            path = tmp_path / "report.html"
            command = ("-m", "model_catalog", "report", "--html", path)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                "--db",
                tmp_path / "catalog.db",
                stderr=asyncio.subprocess.PIPE,
            )
            _, messages = await process.communicate()
            assert process.returncode == 0, messages
            assert path.as_uri() in messages.decode()
            yield path


@pytest.fixture
def browser(tmp_path):
    """A browser with a profile of its own."""
    with Browser(tmp_path / "profile") as browser:
        yield browser


def column_of(browser, table, number):
    return browser.evaluate(
        f"[...document.querySelectorAll('#{table} ~ * tbody tr')]"
        f".map((row) => row.children[{number}].textContent)"
    )


async def test_it_opens_without_a_request_and_without_an_error(page, browser):
    """
    The only request is that of the file itself, and no script fails.
    """
    browser.open(page.as_uri())

    assert browser.requests == [page.as_uri()]
    assert browser.problems == []
    assert browser.evaluate("document.styleSheets.length") == 1
    assert browser.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "1200px"


async def test_it_has_what_the_catalog_has(page, browser):
    """
    Totals, the duplicate, the reasons to keep a model, and models that were not used for long.
    """
    browser.open(page.as_uri())
    text = browser.evaluate("document.body.innerText")

    assert "used by process" in text
    assert "pinned: <b>ours</b>" in text
    assert column_of(browser, "unused", 0) == [
        "hf:org/large",
        f"hf:{HOSTILE}".replace("\u202e", "\\u202e"),
    ]
    assert column_of(browser, "duplicates", 3) == ["1.0 kB"]
    assert len(column_of(browser, "models", 0)) == 5
    assert browser.evaluate("document.querySelectorAll('.treemap rect').length") == 5


async def test_hostile_names_are_text(page, browser):
    """
    A name with markup makes no element and runs no script, and its controls are escaped.
    """
    browser.open(page.as_uri())

    assert browser.evaluate("document.querySelectorAll('img, b').length") == 0
    assert browser.evaluate("document.body.innerText.includes('<img src=x onerror=alert(1)>')")
    assert "\u202e" not in page.read_text()


async def test_a_click_sorts_a_table(page, browser):
    """
    A click sorts by the column as numbers, a second one in the other direction.
    """
    browser.open(page.as_uri())
    click = "document.querySelector('#models ~ * th:nth-child(2) button').click()"

    browser.evaluate(click)
    ascending = column_of(browser, "models", 1)
    browser.evaluate(click)

    assert ascending == ["?", "1.0 kB", "1.0 kB", "2.0 MB", "9.0 MB"]
    assert column_of(browser, "models", 1) == ascending[::-1]
    sort = "document.querySelector('#models ~ * th:nth-child(2)').getAttribute('aria-sort')"
    assert browser.evaluate(sort) == "descending"


async def test_a_screen_reader_finds_headings_tables_and_labels(page, browser):
    """
    The accessibility tree has the headings, the headers of rows and columns, and named regions.
    """
    browser.open(page.as_uri())
    tree = browser.accessibility_tree()

    headings = [name for role, name in tree if role == "heading"]
    assert headings[:3] == ["Models on this machine", "Disk use", "Duplicates"]
    roles = {role for role, _ in tree}
    assert {"table", "columnheader", "rowheader", "navigation", "main", "caption"} <= {
        role.lower() for role in roles if role
    }
    unnamed = [role for role, name in tree if role in {"button", "region", "image"} and not name]
    assert unnamed == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_it_fits_a_phone(page, browser, dark):
    """
    On a screen of 360 pixels nothing is wider than the screen, and the colours are the user's.
    """
    browser.screen(360, 740, dark=dark)
    browser.open(page.as_uri())

    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)))
    assert (brightness < 200) is dark
