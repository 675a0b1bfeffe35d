"""A catalog of one host behaves as if the models of other hosts were not in its database."""

import inspect
import shutil
import time
from contextlib import suppress

import pytest
from host_calls import FUNCTIONS, METHODS, NAMES, Clock, path_of, run_sequence, write_files
from public_calls import WRITES, fill
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import FileRecord, Model, ModelCatalog, ModelRef, downloads, open_catalog, upkeep
from model_catalog.errors import ModelNotFoundError
from model_catalog.upkeep import adopt, scan_store

OTHERS = ("", "b")
TABLES = {
    "models": "host",
    "model_aliases": "host",
    "model_claims": "host",
    "model_downloads": "host",
    "model_catalog_leases": "host",
    "model_tags": "model_id",
    "model_files": "model_id",
    "model_uses": "model_id",
}


CHILD_ROWS = (
    """INSERT INTO model_claims
    SELECT host, provider, reference, version, 'download', 'claim {host} ' || id, 'box', 1, 0,
           9000000000000 FROM models WHERE host = ?""",
    """INSERT INTO model_downloads (host, provider, reference, version, token, state, holder_host,
                                     holder_process_id, queued_at_ms)
    SELECT host, provider, reference, version, 'claim {host} ' || id, 'running', 'box', 1, 0
    FROM models WHERE host = ?""",
    """INSERT INTO model_uses
    SELECT 'use {host} ' || id, id, 'box', 1, 0, 0, 9000000000000 FROM models WHERE host = ?""",
    """INSERT INTO model_catalog_leases (host, name, holder, renewed_at_ms, expires_at_ms)
    VALUES (?, 'watch', 'another process', 0, 9000000000000)""",
)


async def fill_other_hosts(database, folder) -> None:
    """Record the models of two other hosts with the same names and paths, and all child rows."""
    for host in OTHERS:
        async with open_catalog(database.target, host=host or None) as catalog:
            await adopt(catalog, await scan_store(catalog, "directory", folder / "store"))
            for name in NAMES:
                for version in ("", "v1", "v2", "v9"):
                    path = path_of(folder, name)
                    model = Model(
                        reference=name, provider="hf", version=version, local_path=str(path)
                    )
                    size_bytes = path.stat().st_size
                    digest = f"sha256:{1:064x}"
                    files = [FileRecord(path.name, size_bytes, digest=digest, file_id="1:1")]
                    await catalog.register_model(model, files)
                ref = ModelRef("hf", name, "v1")
                await catalog.tag_model(ref, tags=["other", "chat"])
                await catalog.set_alias(ref, alias="stable")
                await catalog.set_alias(ref, alias="latest")
                await catalog.pin_model(ref)
                await catalog.record_use(ref, count=5)
        for statement in CHILD_ROWS:
            database.run(statement.replace("{host}", host), host)
    database.run("UPDATE models SET managed_root = ?", str(folder))


def rows_of_others(database) -> dict[str, list[str]]:
    """Return every row of the other hosts."""
    ids = "SELECT id FROM models WHERE host <> 'a'"
    return {
        table: sorted(
            map(
                repr,
                database.run(
                    f"SELECT * FROM {table} WHERE host <> 'a'"
                    if column == "host"
                    else f"SELECT * FROM {table} WHERE model_id IN ({ids})"
                ),
            )
        )
        for table, column in TABLES.items()
    }


class Opened:
    """A catalog of `open_catalog`."""

    def __init__(self, database, host):
        self._opening = open_catalog(database.target, host=host)

    async def __aenter__(self):
        return await self._opening.__aenter__()

    async def __aexit__(self, *error):
        await self._opening.__aexit__(*error)


class OverEngine(Opened):
    """A catalog of `open_catalog` over a program's own engine."""

    def __init__(self, database, host):
        self._engine = create_async_engine(database.target_url)
        self._opening = open_catalog(self._engine, host=host)

    async def __aexit__(self, *error):
        await super().__aexit__(*error)
        await self._engine.dispose()


class OverSessions:
    """A catalog over a program's session factory."""

    def __init__(self, database, host):
        self._engine = create_async_engine(database.target_url)
        self._host = host

    async def __aenter__(self):
        return ModelCatalog(async_sessionmaker(self._engine), host=self._host)

    async def __aexit__(self, *error):
        await self._engine.dispose()


async def run_on(database, form, folder, host, seed, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    shutil.rmtree(folder, ignore_errors=True)
    write_files(folder)
    async with form(database, host) as catalog:
        return await run_sequence(catalog, folder, seed, clock, count=150)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "form", "seed"),
    [
        # Each form on both databases, and each driver with both sequences.
        *(("sqlite", Opened, 0), ("sqlite", OverEngine, 1), ("sqlite", OverSessions, 0)),
        *(("asyncpg", Opened, 1), ("asyncpg", OverEngine, 0)),
        *(("psycopg", Opened, 0), ("psycopg", OverSessions, 1)),
    ],
)
async def test_the_same_calls_return_the_same_alone_and_beside_other_hosts(
    database, tmp_path, form, seed, monkeypatch
):
    """
    A random sequence of all public calls runs on a catalog that is alone, and then on that of host
    `a` beside hosts with the same names, paths, claims, uses and leases. All results are equal, and
    no byte of a row of the other hosts is changed.
    """
    folder = tmp_path / "models"
    write_files(folder)
    alone = await run_on(database, form, folder, None, seed, monkeypatch)
    database.delete_rows()
    write_files(folder)
    await fill_other_hosts(database, folder)
    before = rows_of_others(database)

    beside = await run_on(database, form, folder, "a", seed, monkeypatch)

    for number, (one, other) in enumerate(zip(alone, beside, strict=True)):
        assert one == other, number
    assert rows_of_others(database) == before
    assert all(before.values())


@pytest.mark.slow_with("asyncpg")
@pytest.mark.parametrize("name", WRITES)
async def test_a_write_with_the_id_of_a_model_of_another_host_changes_nothing(database, name):
    """
    SQLite may give the id of a removed model to one of another host, which may have the same path.
    """
    async with open_catalog(database.target, host="b") as catalog:
        await fill(catalog)
    database.run("UPDATE models SET id = 1")
    for table in ("model_tags", "model_files", "model_aliases"):
        database.run(f"UPDATE {table} SET model_id = 1")
    before = rows_of_others(database)

    async with open_catalog(database.target, host="a") as catalog:
        with suppress(ModelNotFoundError):
            await WRITES[name](catalog)

    assert rows_of_others(database) == before


def test_every_public_call_is_one_of_the_steps():
    """A new method of the catalog, or a new function that takes a catalog, needs a step."""
    methods = {name for name in vars(ModelCatalog) if not name.startswith("_")}
    functions = {
        name
        for package in (upkeep, downloads)
        for name in package.__all__
        if inspect.isfunction(getattr(package, name))
    }

    # `fleet` reads the models of all hosts.
    assert methods - {"fleet"} == set(METHODS)
    # Its parts are `get_or_download` and the adoption of a store.
    assert functions - {"download_from_hub"} == set(FUNCTIONS)
