"""A host with its own Alembic: it upgrades the catalog in its env.py, and migrates beside us."""

import asyncio
import threading

import alembic.command
import alembic.context
import alembic.op
import pytest
from alembic.operations import Operations
from alembic_host import CALLS, HostProject
from schema_shape import dump
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import check_schema, downgrade, schema_state, upgrade
from model_catalog.mapping.added_objects import added_tables
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import head_revision
from model_catalog.schema.revision import VERSION_TABLE

HEAD = head_revision()
HOST_TABLES = {"alembic_version", "deployments"}


@pytest.mark.slow
@pytest.mark.parametrize(("template", "before", "after"), CALLS.values(), ids=CALLS)
def test_a_host_upgrades_the_catalog_in_its_own_env_py(empty, tmp_path, template, before, after):
    """
    One `alembic upgrade head` of the host creates the catalog's tables and the host's. A second
    one changes nothing.
    """
    project = HostProject(tmp_path, empty, template)
    project.add_import("from model_catalog import upgrade, upgrade_connection")
    project.replace(before, after)
    project.add_revision()

    project.upgrade()
    first = dump(empty)
    project.upgrade()

    added = added_tables("sqlite" if empty.path is not None else "postgresql")
    assert empty.tables == {VERSION_TABLE, *Base.metadata.tables} | added | HOST_TABLES
    assert empty.run("SELECT name FROM deployments") == [("first",)]
    assert empty.run("SELECT version_num FROM alembic_version") == [("c0ffee",)]
    assert asyncio.run(schema_state(empty.target)) == (HEAD, HEAD)
    assert asyncio.run(check_schema(empty.target)) == []
    assert dump(empty) == first


def test_a_host_migrates_in_another_thread_during_an_upgrade(empty, tmp_path):
    """
    While the host's Alembic is between two operations of its revision, `upgrade` migrates another
    database, from the beginning to the end. Each runs on its own connection.
    """
    project = HostProject(tmp_path, empty)
    project.add_revision()
    ours = tmp_path / "ours.db"
    within_revision, is_upgraded = threading.Event(), threading.Event()
    failed = []

    def host() -> None:
        try:
            with pytest.MonkeyPatch.context() as patch:
                create = Operations.create_table

                def pause(self, name, *arguments, **options):
                    if name == "deployments":
                        within_revision.set()
                        assert is_upgraded.wait(60)
                    return create(self, name, *arguments, **options)

                patch.setattr(Operations, "create_table", pause)
                project.upgrade()
        except BaseException as error:  # noqa: BLE001 - the test reports any error
            failed.append(error)

    thread = threading.Thread(target=host)
    thread.start()
    try:
        assert within_revision.wait(60)
        asyncio.run(upgrade(ours))
    finally:
        is_upgraded.set()
        thread.join()

    assert failed == []
    assert empty.tables == HOST_TABLES
    assert empty.run("SELECT name FROM deployments") == [("first",)]
    assert asyncio.run(check_schema(ours)) == []


@pytest.mark.slow
def test_a_host_migrates_up_and_down_beside_our_migrations(empty, tmp_path):
    """Two threads migrate at the same time, many times, and neither disturbs the other."""
    project = HostProject(tmp_path, empty)
    project.add_revision()
    ours = tmp_path / "ours.db"
    failed = []

    def host() -> None:
        try:
            for _ in range(15):
                alembic.command.upgrade(project.config(), "head")
                alembic.command.downgrade(project.config(), "base")
        except BaseException as error:  # noqa: BLE001 - the test reports any error
            failed.append(error)

    async def catalog() -> None:
        for _ in range(10):
            await upgrade(ours)
            await downgrade(ours, "base")

    thread = threading.Thread(target=host)
    thread.start()
    asyncio.run(catalog())
    thread.join()

    assert failed == []
    assert empty.tables == {"alembic_version"}


async def test_a_migration_does_not_use_the_proxies_of_alembic(empty):
    """During and after an upgrade and a downgrade, `alembic.op` and `alembic.context` stay."""
    before = vars(alembic.op).get("_proxy"), vars(alembic.context).get("_proxy")
    proxies = []

    def look(*_) -> None:
        proxies.append((vars(alembic.op).get("_proxy"), vars(alembic.context).get("_proxy")))

    engine = create_async_engine(empty.target_url)
    event.listen(engine.sync_engine, "before_cursor_execute", look)
    await upgrade(engine)
    await downgrade(engine, "0001")
    await upgrade(engine)
    await engine.dispose()
    look()

    assert len(proxies) > 100
    assert set(proxies) == {before}
