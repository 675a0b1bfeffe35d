"""Revision ids: those of release 0.1.0, a host's version_locations, tables without an id."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import alembic.command
import pytest
from alembic.script import ScriptDirectory
from alembic_host import HostProject
from conftest import a_model
from schema_shape import digest, dump, shape
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    ForeignDatabaseError,
    SchemaOutOfDateError,
    SchemaTooNewError,
    check_schema,
    downgrade,
    open_catalog,
    schema_state,
    upgrade,
    upgrade_connection,
)
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import (
    VERSION_TABLE,
    canonical_revision,
    head_revision,
    known_revisions,
)

ROOT = Path(__file__).parents[2]
HEAD = head_revision()
NUMBERS = [revision.removeprefix("model_catalog_") for revision in known_revisions()]
ONE_DRIVER = pytest.mark.parametrize("backend", ["sqlite", "asyncpg"])
"""The drivers send the same statements: test_migrations.py upgrades and downgrades with both."""
# The ids of release 0.1.0. Later revisions never had an id without the prefix.
OLD_IDS = [number for number in NUMBERS if number <= "0015"]


def record(database, revision: str) -> None:
    """Write an id to the version table with a plain driver, as release 0.1.0 wrote it."""
    database.run(f"UPDATE {VERSION_TABLE} SET version_num = ?", revision)


def recorded(database) -> list[tuple]:
    return database.run(f"SELECT version_num FROM {VERSION_TABLE}")


def run_alembic(*arguments: str, target: str) -> str:
    """Run the `alembic` command in the checkout, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={target}", *arguments],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@ONE_DRIVER
async def test_every_old_id_goes_up_down_and_up(empty):
    """
    From each id of release 0.1.0 a database is upgraded and downgraded, its rows stay, and its
    schema is that of a new database.
    """
    async with open_catalog(empty.target) as catalog:
        await catalog.register_model(a_model("m"))
    fresh = shape(empty)

    for number in OLD_IDS:
        await downgrade(empty.target, number)
        record(empty, number)
        state = await schema_state(empty.target)
        if canonical_revision(number) != HEAD:
            assert await check_schema(empty.target) != []
            with pytest.raises(SchemaOutOfDateError, match=f"at revision model_catalog_{number}"):
                async with open_catalog(empty.target, upgrade=False):
                    pass
        await upgrade(empty.target)

        assert state == (f"model_catalog_{number}", HEAD)
        assert canonical_revision(*recorded(empty)[0]) == HEAD
        assert shape(empty) == fresh
        assert empty.run("SELECT reference FROM models") == [("m",)]
    assert await check_schema(empty.target) == []


@pytest.mark.parametrize("number", [OLD_IDS[1], OLD_IDS[-1]])
async def test_a_downgrade_from_an_old_id_records_the_new_one(empty, number):
    """A downgrade starts at an id of release 0.1.0 and ends at an id with the prefix."""
    await upgrade(empty.target, number)
    record(empty, number)

    await downgrade(empty.target, "0001")

    assert recorded(empty) == [("model_catalog_0001",)]
    await downgrade(empty.target, "base")
    assert recorded(empty) == []


def test_upgrade_connection_starts_at_an_old_id(empty):
    """The synchronous form recognizes the ids of release 0.1.0, too."""
    asyncio.run(upgrade(empty.target, "0007"))
    record(empty, "0007")
    drivername = "sqlite" if empty.path else "postgresql+psycopg"
    engine = create_engine(empty.target_url.set(drivername=drivername))

    with engine.connect() as connection:
        upgrade_connection(connection)
    engine.dispose()

    assert recorded(empty) == [(HEAD,)]


async def test_a_database_at_the_old_id_of_the_newest_revision_is_not_changed(empty):
    """It needs no migration, so that release 0.1.0 can still open it."""
    await upgrade(empty.target, "0015")
    record(empty, "0015")
    before = digest(empty)

    await upgrade(empty.target, "0015")
    state = await schema_state(empty.target)
    if HEAD == "model_catalog_0015":
        assert await check_schema(empty.target) == []
        async with open_catalog(empty.target, upgrade=False) as catalog:
            assert await catalog.list_models() == []

    assert state == ("model_catalog_0015", HEAD)
    assert digest(empty) == before


@pytest.mark.parametrize("newer", ["0099", "model_catalog_0099", "c0ffee"])
async def test_an_unknown_id_is_newer(empty, newer):
    """Ids of newer releases are refused in both forms, and the error names the id as it is."""
    await upgrade(empty.target)
    record(empty, newer)
    before = dump(empty)

    for attempt in (upgrade(empty.target), downgrade(empty.target, "0001")):
        with pytest.raises(SchemaTooNewError, match=f"'{newer}'.*{HEAD}"):
            await attempt

    assert dump(empty) == before


async def test_a_backup_of_an_old_id_has_the_number_of_the_new_revision(tmp_path):
    """The name of the file has no prefix, as in release 0.1.0."""
    path = tmp_path / "catalog.db"
    await upgrade(path, "0009")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '0009'")
        connection.exec_driver_sql(
            "INSERT INTO models (provider, reference, local_path) VALUES ('hf', 'm', '/m')"
        )
    engine.dispose()

    await upgrade(path, "0010")

    (backup,) = tmp_path.glob("catalog.db.backup-*")
    assert backup.name.endswith("Z-before-0010")


@pytest.mark.slow
async def test_the_alembic_command_starts_at_an_old_id(empty):
    """`alembic current` and `alembic upgrade head` recognize the ids of release 0.1.0."""
    await upgrade(empty.target, "0013")
    record(empty, "0013")

    current = await asyncio.to_thread(run_alembic, "current", target=empty.target)
    record(empty, "0013")
    output = await asyncio.to_thread(run_alembic, "upgrade", "head", target=empty.target)

    assert "model_catalog_0013" in current
    assert "Running upgrade model_catalog_0013 -> model_catalog_0014" in output
    assert recorded(empty) == [(HEAD,)]
    assert await check_schema(empty.target) == []


def test_a_new_revision_gets_the_prefix(tmp_path):
    """`alembic revision --rev-id 9999` names the file by the number, and the id has the prefix."""
    project = HostProject(tmp_path, _SqliteTarget(tmp_path / "x.db"))
    config = project.config()
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    (tmp_path / "steps" / "script.py.mako").write_text(
        (ROOT / "migrations" / "script.py.mako").read_text()
    )

    script = alembic.command.revision(config, "Add notes", rev_id="9999")

    assert Path(script.path).name == "9999_add_notes.py"
    assert script.revision == "model_catalog_9999"


class _SqliteTarget:
    """As much of a Database as HostProject needs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.target_url = create_engine(f"sqlite+pysqlite:///{path}").url.set(
            drivername="sqlite+aiosqlite"
        )


def host_with_our_branch(folder, database) -> HostProject:
    """Return a host that has our revisions in its `version_locations`."""
    project = HostProject(folder, database)
    project.add_revision()
    project.version_locations = "\n".join(
        (str(folder / "steps" / "versions"), "model_catalog:migrations/versions")
    )
    return project


@pytest.mark.slow
def test_our_revisions_are_a_branch_in_the_version_locations_of_a_host(empty, tmp_path):
    """
    The host's Alembic creates the tables, with the ids in its own version table. Then the catalog
    recognizes its tables and records their revision.
    """
    project = host_with_our_branch(tmp_path, empty)
    scripts = ScriptDirectory.from_config(project.config())

    alembic.command.upgrade(project.config(), "heads")
    ids = {row[0] for row in empty.run("SELECT version_num FROM alembic_version")}
    unrecorded = dump(empty)
    states = [asyncio.run(schema_state(empty.target))]
    assert asyncio.run(check_schema(empty.target)) == []
    assert dump(empty) == unrecorded
    asyncio.run(upgrade(empty.target))
    states.append(asyncio.run(schema_state(empty.target)))

    assert set(scripts.get_heads()) == ids == {HEAD, "c0ffee"}
    assert scripts.get_revision("model_catalog@head").revision == HEAD
    assert states == [(HEAD, HEAD)] * 2
    assert recorded(empty) == [(HEAD,)]
    assert asyncio.run(check_schema(empty.target)) == []


def test_a_host_downgrades_our_branch(empty, tmp_path):
    """`alembic downgrade model_catalog@base` drops our tables and leaves the host's."""
    project = host_with_our_branch(tmp_path, empty)
    alembic.command.upgrade(project.config(), "heads")

    alembic.command.downgrade(project.config(), "model_catalog@base")

    assert empty.tables == {"alembic_version", "deployments"}


@pytest.mark.slow
@ONE_DRIVER
async def test_tables_without_a_version_table_are_recognized_at_every_revision(empty):
    """
    They are read as what they are, without a change. An upgrade goes on from there, and keeps the
    rows.
    """
    await upgrade(empty.target)
    fresh = shape(empty)

    # All on SQLite, and every second one on a server, which takes twice as long.
    revisions = known_revisions()[1 :: 1 if empty.path is not None else 2]
    for revision in revisions:
        await downgrade(empty.target, revision) if revision != HEAD else None
        empty.run(
            "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, '/m')", revision
        )
        empty.run(f"DROP TABLE {VERSION_TABLE}")
        before = digest(empty)
        state = await schema_state(empty.target)
        unchanged = digest(empty) == before
        await upgrade(empty.target)

        # On a server the revisions since 0027 differ only in the search index, which it may lack.
        is_head = empty.path is None and revision >= "model_catalog_0027"
        assert state == (HEAD if is_head else revision, HEAD)
        assert unchanged
        assert recorded(empty) == [(HEAD,)]
        assert shape(empty) == fresh
    rows = empty.run("SELECT reference FROM models ORDER BY 1")
    assert rows == [(revision,) for revision in revisions]


@pytest.mark.slow
@pytest.mark.parametrize("opens", ["upgrade", "open_catalog", "engine", "upgrade=False"])
async def test_tables_of_create_all_are_recognized(empty, opens):
    """`Base.metadata.create_all` makes the newest revision, which the first upgrade records."""
    engine = create_async_engine(empty.target_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    if opens == "upgrade":
        await upgrade(empty.target)
    else:
        target = engine if opens == "engine" else empty.target
        async with open_catalog(target, upgrade=opens != "upgrade=False") as catalog:
            await catalog.register_model(a_model("m"))
    await engine.dispose()

    assert (VERSION_TABLE in empty.tables) is (opens != "upgrade=False")
    assert await schema_state(empty.target) == (HEAD, HEAD)
    assert await check_schema(empty.target) == []


@pytest.mark.slow
async def test_the_alembic_command_recognizes_tables_of_create_all(empty):
    """`alembic upgrade head` records the revision and runs nothing."""
    engine = create_async_engine(empty.target_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()

    output = await asyncio.to_thread(run_alembic, "upgrade", "head", target=empty.target)

    assert "Running upgrade" not in output
    assert recorded(empty) == [(HEAD,)]


CHANGES = {
    "a column more": ("ALTER TABLE models ADD COLUMN notes TEXT", "with column models.notes"),
    "an index less": ("DROP INDEX ix_models_digest", "without index ix_models_digest of models"),
    "a table less": ("DROP TABLE model_files", "without table model_files. It"),
}


@pytest.mark.parametrize(("ddl", "difference"), CHANGES.values(), ids=CHANGES)
async def test_tables_at_no_known_revision_are_refused(empty, ddl, difference):
    """The error names the most similar revision and the differences, and nothing is changed."""
    await upgrade(empty.target)
    empty.run(f"DROP TABLE {VERSION_TABLE}")
    empty.run(ddl)
    before = dump(empty)

    for shared in (False, True):
        with pytest.raises(
            ForeignDatabaseError, match=f"most like revision {HEAD}, but {difference}"
        ) as caught:
            await upgrade(empty.target, shared=shared)
        assert "Change the tables so that they equal those of that revision" in str(caught.value)

    assert dump(empty) == before
