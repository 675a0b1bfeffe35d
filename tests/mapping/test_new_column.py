"""A new column of Model is one mapping line, one revision and one line in the field table."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAPPING_LINES = (
    "    notes: Mapped[str | None] = mapped_column(Text, default=None)\n"
    "    audited_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)\n"
)
TABLE_LINES = (
    "    notes: Annotated[str | None, Field(Group.USER, validation.description)]\n"
    "    audited_at: Annotated[datetime | None, Field(Group.INSPECTION, validation.timestamp)]\n"
)
REVISION = '''"""
Add the user's notes, and the time of an audit.

Revision ID: model_catalog_9999
"""

import sqlalchemy as sa
from alembic import op

revision = "model_catalog_9999"
down_revision = "model_catalog_{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("notes", sa.Text()))
    seconds = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("models", sa.Column("audited_at", seconds))


def downgrade() -> None:
    op.drop_column("models", "audited_at")
    op.drop_column("models", "notes")
'''
# Runs on the changed copy. Every road that a value takes must carry the new field.
PROGRAM = """
import asyncio, contextlib, copy, inspect, io, json, pickle, sqlite3, sys
from datetime import UTC, datetime
from pathlib import Path

import model_catalog
from model_catalog import InvalidModelError, Model, ModelRow, check_schema, open_catalog
from model_catalog.cli import main
from model_catalog.domain.fields import FIELDS, UPDATABLE_FIELDS

SCRATCH, OLD = map(Path, sys.argv[1:])
assert Path(model_catalog.__file__).is_relative_to(SCRATCH), model_catalog.__file__
NEW, COPY = OLD.with_name("new.db"), OLD.with_name("copy.db")


def printed(*arguments):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out):
        assert main([*arguments, "--db", str(NEW)]) == 0
    out.flush()
    return out.buffer.getvalue().decode()


async def use(path):
    async with open_catalog(path) as catalog:
        given = Model(reference="m", provider="hf", local_path="/m", notes="one")
        assert (await catalog.register_model(given)).notes == "one"
        await catalog.register_models([{"reference": "n", "provider": "hf", "local_path": "/n",
                                        "notes": "many"}])
        assert (await catalog.register_model(given)).notes == "one"
        assert (await catalog.update_model("m", "hf", notes="two")).notes == "two"

        found = await catalog.find_model("m", "hf")
        assert found.notes == "two"
        assert copy.copy(found).notes == pickle.loads(pickle.dumps(found)).notes == "two"
        found.size_bytes = 7
        assert (await catalog.register_model(found)).notes == "two"
        assert [model.notes for model in await catalog.list_models(reference="n")] == ["many"]
        (row,) = await catalog.list_rows(reference="m")
        assert (row.notes, row._asdict()["notes"], row.tags) == ("two", "two", ())
        try:
            await catalog.update_model("m", "hf", notes=1)
        except InvalidModelError as error:
            assert error.field == "notes"
        else:
            raise AssertionError("the validator of the new field did not run")

        with contextlib.closing(sqlite3.connect(path)) as raw, raw:
            raw.execute("UPDATE models SET audited_at = 86400")
        audited_at = datetime(1970, 1, 2, tzinfo=UTC)
        (row,) = await catalog.list_rows(reference="m")
        assert row.audited_at == (await catalog.get_model("m", "hf")).audited_at == audited_at

        stream = io.StringIO()
        await catalog.export_catalog(stream)
        assert stream.getvalue().count('"audited_at": "1970-01-02T00:00:00Z"') == 2

        # A result of a check is reset by a new path, and cannot be set by the caller.
        assert (await catalog.update_model("m", "hf", local_path="/k")).audited_at is None
        try:
            Model(reference="m", provider="hf", local_path="/m", audited_at=audited_at)
        except TypeError as error:
            assert "audited_at" in str(error)
        else:
            raise AssertionError("the constructor takes a field that the catalog sets")
    stream.seek(0)
    async with open_catalog(COPY) as catalog:
        assert (await catalog.import_catalog(stream)).written == 2
        model = await catalog.get_model("m", "hf")
        assert (model.notes, model.audited_at) == ("two", audited_at)
    COPY.unlink()


assert "notes" in inspect.signature(Model).parameters
assert "notes" in UPDATABLE_FIELDS and ModelRow._fields == (*FIELDS, "tags")
for path in (OLD, NEW):
    asyncio.run(use(path))
    assert asyncio.run(check_schema(path)) == []
assert json.loads(printed("show", "hf:m", "--json"))["notes"] == "two"
assert {model["notes"] for model in json.loads(printed("ls", "--json"))} == {"two", "many"}
assert "notes:" in printed("show", "hf:m")
assert json.loads(printed("show", "hf:n", "--json"))["audited_at"] == "1970-01-02T00:00:00Z"
"""


def insert_before(path: Path, line: str, text: str) -> None:
    """Insert a text before the first occurrence of a line."""
    source = path.read_text()
    assert f"\n{line}" in source
    path.write_text(source.replace(f"\n{line}", f"\n{text}{line}", 1))


@pytest.mark.slow
def test_a_new_column_needs_one_line_in_the_mapping_and_one_in_the_field_table(tmp_path):
    """
    With these two lines and a revision, a new field is registered, updated, read, listed,
    exported, imported, printed and validated. A new result of checks is reset by a new path. A
    migrated file and a new file pass check_schema.
    Only type checkers read the line of ModelChanges, which test_fields.py demands.
    """
    package = tmp_path / "scratch" / "model_catalog"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "model_catalog", package, ignore=ignored)
    shutil.copytree(ROOT / "migrations", package / "migrations", ignore=ignored, dirs_exist_ok=True)
    old = tmp_path / "old.db"
    upgrade = "import asyncio, sys, model_catalog; asyncio.run(model_catalog.upgrade(sys.argv[1]))"
    run_on(package, upgrade, old)

    revisions = package / "migrations" / "versions"
    head = max(path.name[:4] for path in revisions.glob("[0-9]*.py"))
    (revisions / "9999_add_columns.py").write_text(REVISION.format(head=head))
    insert_before(package / "mapping" / "tables.py", "    __table_args__ = (\n", MAPPING_LINES)
    insert_before(package / "domain" / "fields.py", "    tags: tuple[str, ...]\n", TABLE_LINES)

    run_on(package, PROGRAM, package.parent, old)


def run_on(package: Path, program: str, *arguments: Path) -> None:
    """Run a program that imports the copy of the package."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(package.parent), "PATH": "", "HOME": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr == ""
    assert done.returncode == 0
