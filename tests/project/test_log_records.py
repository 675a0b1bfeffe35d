"""The loggers and the fields of log records are those that docs/observability.md lists."""

import ast
import logging
import re
from functools import cache
from pathlib import Path

import pytest

from model_catalog import upgrade

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "src" / "model_catalog"
PAGE = (PROJECT / "docs" / "observability.md").read_text()
LOGGERS = set(re.findall(r"^\| `(model_catalog\.\w+)` \|", PAGE, re.MULTILINE))
FIELDS = set(re.findall(r"^\| `(model_catalog_\w+)` \|", PAGE, re.MULTILINE))


@cache
def sources() -> dict[Path, ast.Module]:
    return {
        path: ast.parse(path.read_text())
        for folder in (PACKAGE, PROJECT / "migrations")
        for path in folder.rglob("*.py")
    }


def calls_of(name: str) -> list[tuple[Path, ast.Call]]:
    return [
        (path, node)
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def test_each_package_has_one_logger_that_is_documented():
    """
    A module logs to the logger of its package; the page lists them all, and no other.
    """
    used = set()
    for path, call in calls_of("logging.getLogger"):
        name = str(getattr(call.args[0], "value", ""))
        if ast.unparse(call.args[0]) == "__name__" or name.startswith("model_catalog."):
            used.add(name)
            folders = path.parts
            assert name.partition(".")[2] in folders, (path, name)

    assert used == LOGGERS


def test_the_fields_of_records_are_documented_and_replace_none():
    """
    Every field begins with `model_catalog_`, so none is an attribute of a log record.
    """
    used = {
        key.value
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and str(key.value).startswith("model_catalog_")
    }
    extras = [
        keyword.value
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
        for keyword in node.keywords
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict)
    ]
    record = logging.makeLogRecord({})

    assert len(extras) > 10
    assert {key.value for extra in extras for key in extra.keys} <= FIELDS
    assert used >= FIELDS
    assert not FIELDS & vars(record).keys()


@pytest.mark.parametrize("backend", ["asyncpg"])
async def test_the_url_of_a_record_has_no_password(empty, caplog):
    """
    A migration logs the database and the revision in fields.
    """
    caplog.set_level(logging.INFO, "model_catalog.schema")
    url = empty.target_url.set(password="secret-of-the-test")

    await upgrade(url)

    (record,) = [each for each in caplog.records if hasattr(each, "model_catalog_revision")]
    assert record.name == "model_catalog.schema"
    assert "secret-of-the-test" not in record.model_catalog_url
    assert record.model_catalog_url in record.getMessage()
