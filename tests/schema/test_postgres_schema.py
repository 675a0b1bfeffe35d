"""A catalog in a PostgreSQL schema of its own, in the database of a host with a table `models`."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import postgres
import psycopg
import pytest
import sqlalchemy as sa
from alembic_host import CALLS, HostProject
from conftest import Database, a_model, postgresql_database, shared_connection
from public_calls import READS, WRITES, fill
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from model_catalog import (
    CatalogUnavailableError,
    ForeignDatabaseError,
    InvalidTargetError,
    Model,
    ModelCatalog,
    backup,
    check_schema,
    downgrade,
    open_catalog,
    schema_state,
    upgrade,
    upgrade_connection,
)
from model_catalog.alembic import TABLE_NAMES
from model_catalog.cli import main
from model_catalog.mapping.added_objects import added_tables
from model_catalog.mapping.revisions import head_revision

ROOT = Path(__file__).parents[2]
HEAD = head_revision()
# A name that needs quotes, and that a driver could take for parameters.
ODD = 'Odd "name" 50%s :x [a].b'
TABLES = TABLE_NAMES - added_tables("sqlite")


@pytest.fixture(params=["asyncpg", "psycopg"])
def backend(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def host_url(pg_server) -> Iterator[sa.URL]:
    """A database with a table `models` of the host, and a migrated catalog in two schemas."""
    with postgres.database(pg_server, "host") as url:
        with psycopg.connect(postgres.dsn(url), autocommit=True) as raw:
            raw.execute("CREATE TABLE models (name TEXT PRIMARY KEY)")
            raw.execute("INSERT INTO models VALUES ('the host''s')")
        target = url.set(drivername="postgresql+psycopg")
        for schema in ("catalog", ODD):
            asyncio.run(upgrade(target, schema=schema))
        yield url
        shared_connection(postgres.dsn(url)).close()


@pytest.fixture
def host(backend, host_url) -> Iterator[Database]:
    """The database of a host, with two empty catalogs."""
    found = postgresql_database(backend, host_url)
    for schema in ("catalog", quoted(ODD)):
        found.run(f"DELETE FROM {schema}.model_aliases; DELETE FROM {schema}.models")
        found.run(f"ALTER SEQUENCE {schema}.models_id_seq RESTART")
    before = found.run("SELECT * FROM models")
    yield found
    assert found.run("SELECT * FROM public.models") == before == [("the host's",)]
    found.assert_nothing_left()


@pytest.fixture
def blank(empty) -> Iterator[Database]:
    """A database without tables, whose schemas are dropped afterwards."""
    yield empty
    for (schema,) in empty.run(
        "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|info|pub)'"
    ):
        empty.run(f"DROP SCHEMA {quoted(schema)} CASCADE")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def tables_in(database: Database, schema: str) -> set[str]:
    rows = database.run("SELECT tablename FROM pg_tables WHERE schemaname = ?", schema)
    return {name for (name,) in rows}


def engine_of(database: Database, **options) -> AsyncEngine:
    return create_async_engine(database.target_url, **options)


# How a catalog in a schema is used: our own connections, a host's engine, sessions, or one session.


class Ways:
    """Open a catalog in a schema, in each way that a host can."""

    @staticmethod
    async def by_url(database, schema, use):
        async with open_catalog(database.target, schema=schema) as catalog:
            await use(catalog)

    @staticmethod
    async def by_engine(database, schema, use):
        engine = engine_of(database)
        async with open_catalog(engine, schema=schema) as catalog:
            await use(catalog)
        await engine.dispose()

    @staticmethod
    async def by_sessions(database, schema, use):
        engine = engine_of(database)
        await use(ModelCatalog(async_sessionmaker(engine), schema=schema))
        await engine.dispose()

    @staticmethod
    async def by_session(database, schema, use):
        engine = engine_of(database)
        async with AsyncSession(engine) as session, session.begin():
            await use(ModelCatalog(session, schema=schema))
        await engine.dispose()

    @staticmethod
    async def by_option_of_the_engine(database, schema, use):
        engine = engine_of(database, execution_options={"schema_translate_map": {None: schema}})
        await use(ModelCatalog(async_sessionmaker(engine)))
        await engine.dispose()

    @staticmethod
    async def by_option_of_the_connection(database, schema, use):
        engine = engine_of(database)
        options = {"schema_translate_map": {None: schema}}
        async with AsyncSession(engine) as session, session.begin():
            await session.connection(execution_options=options)
            await use(ModelCatalog(session))
        await engine.dispose()


QUICK = ("by_url", "by_sessions")
WAYS = {name: getattr(Ways, name) for name in vars(Ways) if name.startswith("by_")}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, way in WAYS.items()
    ],
)
@pytest.mark.parametrize(
    "schema",
    [pytest.param("catalog", id="plain", marks=pytest.mark.slow), pytest.param(ODD, id="odd")],
)
async def test_every_call_uses_the_tables_of_the_schema(host, schema, way):
    """A statement that named the host's own table would fail, because it has other columns."""

    async def use(catalog):
        await fill(catalog)
        for call in (READS | WRITES).values():
            await call(catalog)
        await catalog.register_model(a_model("last"))

    await way(host, schema, use)

    other = "catalog" if schema == ODD else quoted(ODD)
    names = quoted(schema)
    assert host.run(f"SELECT reference FROM {names}.models WHERE reference = 'last'") == [("last",)]
    assert host.run(f"SELECT count(*) FROM {other}.models") == [(0,)]


async def test_calls_in_batches_use_the_tables_of_the_schema(host):
    """Calls that come at the same time share a statement with arrays."""
    async with open_catalog(host.target, schema="catalog") as catalog:
        names = [f"m{number}" for number in range(20)]
        await asyncio.gather(*(catalog.register_model(a_model(name)) for name in names))
        found = await asyncio.gather(*(catalog.get_model(name, "hf") for name in names))

    assert [model.reference for model in found] == names
    assert host.run("SELECT count(*) FROM catalog.models") == [(20,)]


async def test_a_hosts_session_keeps_its_own_schema(host):
    """The schema is an option of the connection only while the catalog uses it."""
    engine = engine_of(host)
    own = sa.select(sa.Table("models", sa.MetaData(), sa.Column("name")))
    async with AsyncSession(engine) as session, session.begin():
        catalog = ModelCatalog(session, schema="catalog")
        await catalog.register_model(a_model("m"))
        names = (await session.execute(own)).all()
        with pytest.raises(InvalidTargetError):
            ModelCatalog(session, schema="pg_mine")
        path = await session.scalar(sa.text("SHOW search_path"))

    assert names == [("the host's",)]
    assert path == '"$user", public'
    await engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("schema", ["catalog", ODD], ids=["plain", "odd"])
async def test_a_schema_is_created_migrated_checked_and_emptied(blank, schema, tmp_path):
    """A table `models` of the host is in the way of nothing, and is not changed."""
    blank.run("CREATE TABLE models (name TEXT PRIMARY KEY)")

    await upgrade(blank.target, "0009", schema=schema)
    old = await schema_state(blank.target, schema=schema)
    async with open_catalog(blank.target, schema=schema) as catalog:
        await catalog.register_model(a_model("m"))
    new = await schema_state(blank.target, schema=schema)
    problems = await check_schema(blank.target, schema=schema)
    copy = await backup(blank.target, tmp_path / "copy.ndjson", schema=schema)
    tables = tables_in(blank, schema)
    await downgrade(blank.target, "base", schema=schema)

    assert old == ("model_catalog_0009", HEAD)
    assert new == (HEAD, HEAD)
    assert problems == []
    assert '"m"' in copy.read_text()
    assert tables == TABLES
    assert tables_in(blank, schema) == {"model_catalog_version"}
    assert tables_in(blank, "public") == {"models"}
    assert blank.run("SELECT * FROM models") == []


@pytest.mark.slow
async def test_check_sees_a_difference_in_the_schema_only(blank):
    """The check compares the tables of the schema, and not those of another catalog."""
    await upgrade(blank.target)
    await upgrade(blank.target, schema="catalog")
    blank.run("ALTER TABLE catalog.models DROP COLUMN pin_reason")

    problems = await check_schema(blank.target, schema="catalog")

    assert len(problems) == 1
    assert "pin_reason" in problems[0]
    assert await check_schema(blank.target) == []


@pytest.mark.slow
async def test_two_schemas_are_migrated_at_the_same_time(blank):
    """Each schema has a lock of its own: a migration of one does not wait for the other."""
    with closing(psycopg.connect(postgres.dsn(blank.url))) as raw:
        # A host holds the lock of the schema `public`.
        raw.execute(f"SELECT pg_advisory_xact_lock({0x4D436174616C6F67})")
        await asyncio.gather(
            upgrade(blank.target, schema="one"),
            upgrade(blank.target, schema="two"),
            upgrade(blank.target, schema="two"),
        )

    assert tables_in(blank, "one") == tables_in(blank, "two") == TABLES
    assert tables_in(blank, "public") == set()


@pytest.mark.slow
async def test_the_default_schema_and_its_name_have_the_same_lock(blank):
    """Two programs that name the schema differently do not create its tables at the same time."""
    await asyncio.gather(*(upgrade(blank.target, schema=name) for name in (None, "public") * 3))

    assert tables_in(blank, "public") == TABLES


@pytest.mark.slow
@pytest.mark.parametrize("is_open", [False, True], ids=["own transaction", "open transaction"])
@pytest.mark.parametrize("by_option", [False, True], ids=["argument", "option"])
async def test_a_hosts_connection_is_as_it_was_after_an_upgrade(blank, is_open, by_option):
    """Neither the search path nor the schema of the catalog stays on the connection."""
    engine = engine_of(blank, pool_size=1, max_overflow=0)
    options = {
        "schema_translate_map": {None: "catalog", "other": "x"} if by_option else {"other": "x"}
    }

    def run(connection):
        if is_open:
            connection.execute(sa.text("SET LOCAL search_path = pg_catalog"))
        upgrade_connection(connection, **({} if by_option else {"schema": "catalog"}))
        path = connection.scalar(sa.text("SHOW search_path"))
        return path, connection.get_execution_options()["schema_translate_map"]

    async with engine.connect() as connection:
        await connection.execution_options(**options)
        path, schemas = await connection.run_sync(run)
        await connection.commit()
    async with engine.connect() as connection:
        later = await connection.scalar(sa.text("SHOW search_path"))

    assert path == ("pg_catalog" if is_open else '"$user", public')
    assert schemas == options["schema_translate_map"]
    assert later == '"$user", public'
    assert tables_in(blank, "catalog") == TABLES
    assert tables_in(blank, "public") == set()
    await engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "SERIALIZABLE"])
async def test_an_engine_with_a_schema_is_upgraded_in_each_isolation_level(blank, isolation):
    """A host's engine may commit after each statement; a migration has a transaction anyway."""
    engine = engine_of(
        blank,
        isolation_level=isolation,
        execution_options={"schema_translate_map": {None: "catalog"}},
        pool_size=1,
        max_overflow=0,
    )
    await upgrade(engine)
    state, problems = await schema_state(engine), await check_schema(engine)
    async with engine.connect() as connection:
        path = await connection.scalar(sa.text("SHOW search_path"))
    await engine.dispose()

    assert (state, problems, path) == ((HEAD, HEAD), [], '"$user", public')
    assert tables_in(blank, "catalog") == TABLES


@pytest.mark.slow
async def test_a_failed_upgrade_creates_no_schema(blank):
    """The schema is created in the transaction of the migration."""
    with pytest.raises(CatalogUnavailableError):
        await downgrade(blank.target, "base", schema="catalog")
    with pytest.raises(CatalogUnavailableError, match="schema 'catalog' does not exist"):
        await schema_state(blank.target, schema="catalog")
    with pytest.raises(CatalogUnavailableError, match="--schema"):
        async with open_catalog(blank.target, create=False, schema="catalog"):
            pass

    assert blank.run("SELECT 1 FROM pg_namespace WHERE nspname = 'catalog'") == []


@pytest.fixture
def role(blank) -> Iterator[str]:
    """A role whose name needs quotes, and that may connect only."""
    # The tests of other processes use the same server.
    name = f"guest Role {os.getpid()}"
    blank.run(f"CREATE ROLE {quoted(name)} LOGIN PASSWORD 'guest'")
    yield name
    blank.run(f"DROP OWNED BY {quoted(name)} CASCADE")
    blank.run(f"DROP ROLE {quoted(name)}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exists", "message"), [(False, "may not create it"), (True, "may not use the schema")]
)
async def test_a_role_without_a_right_is_told_what_the_owner_is_to_run(
    blank, role, exists, message
):
    """In a schema that it may not use, PostgreSQL would create the tables as temporary ones."""
    if exists:
        blank.run('CREATE SCHEMA "Catalog"')
    target = blank.target_url.set(username=role, password="guest")

    with pytest.raises(CatalogUnavailableError, match=message) as caught:
        await upgrade(target, schema="Catalog")
    before = tables_in(blank, "Catalog")
    blank.run(str(caught.value).partition("run: ")[2])
    await upgrade(target, schema="Catalog")

    assert before == set()
    assert tables_in(blank, "Catalog") == TABLES


@pytest.mark.slow
async def test_temporary_tables_of_a_connection_do_not_hide_those_of_the_schema(blank):
    """PostgreSQL looks for a table among the temporary ones first."""
    engine = engine_of(blank)

    def run(connection):
        connection.execute(sa.text("CREATE TEMP TABLE models (name TEXT)"))
        upgrade_connection(connection, schema="catalog")

    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()

    assert tables_in(blank, "catalog") == TABLES


@pytest.mark.slow
async def test_tables_in_the_schema_belong_to_another_program(blank):
    """The rule for sharing a database is applied to the schema."""
    blank.run("CREATE TABLE elsewhere (id INTEGER)")
    blank.run("CREATE SCHEMA taken; CREATE TABLE taken.jobs (id INTEGER)")

    await upgrade(blank.target, schema="free")
    with pytest.raises(ForeignDatabaseError, match="the tables 'jobs' and no catalog"):
        await upgrade(blank.target, schema="taken")
    await upgrade(blank.target, schema="taken", shared=True)

    assert tables_in(blank, "taken") == TABLES | {"jobs"}


@pytest.mark.slow
async def test_unrecorded_tables_in_a_schema_are_recognized(blank):
    """Tables at a known revision are stamped, and others are named."""
    await upgrade(blank.target, schema="catalog")
    await upgrade(blank.target, schema="changed")
    blank.run("DROP TABLE catalog.model_catalog_version, changed.model_catalog_version")
    blank.run("ALTER TABLE changed.models DROP COLUMN pin_reason")

    await upgrade(blank.target, schema="catalog")
    with pytest.raises(ForeignDatabaseError, match=r"without column .*pin_reason"):
        await upgrade(blank.target, schema="changed")

    assert await schema_state(blank.target, schema="catalog") == (HEAD, HEAD)


INVALID = {
    "empty": "",
    "too long": "ä" * 32,
    "reserved": "pg_mine",
    "NUL": "a\0b",
    "surrogate": "\udce4",
    "not a text": 5,
}


@pytest.mark.parametrize("schema", INVALID.values(), ids=INVALID)
async def test_an_invalid_schema_is_refused(blank, schema):
    """The message has the value and says what is wrong with it."""
    with pytest.raises(InvalidTargetError, match="the schema "):
        await upgrade(blank.target, schema=schema)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["psycopg"], indirect=True)
def test_the_command_line_takes_a_schema(blank, monkeypatch, capsys):
    """`--schema` names it, and for the default target `MODEL_CATALOG_SCHEMA`."""
    words = ["--db", blank.target, "--schema", "cli"]
    missing = main(["ls", *words])
    message = capsys.readouterr().err
    codes = [main(["db", "upgrade", *words]), main(["ls", *words]), main(["db", "check", *words])]
    monkeypatch.setenv("MODEL_CATALOG_URL", blank.target)
    monkeypatch.setenv("MODEL_CATALOG_SCHEMA", "variable")
    by_variable = main(["db", "upgrade"])

    assert missing == 1
    assert "the schema 'cli' does not exist" in message
    assert [*codes, by_variable] == [0, 0, 0, 0]
    assert tables_in(blank, "cli") == tables_in(blank, "variable") == TABLES
    assert tables_in(blank, "public") == set()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["psycopg"], indirect=True)
def test_the_alembic_command_takes_a_schema(blank):
    """`-x schema=` names it, also when the statements are only printed."""

    def alembic(schema, *words):
        options = ("-x", f"url={blank.target}", "-x", f"schema={schema}")
        command = [sys.executable, "-m", "alembic", *options, *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    alembic("online", "upgrade", "head")
    alembic("online", "check")
    blank.run(alembic("printed", "upgrade", "head", "--sql"))

    assert tables_in(blank, "online") == tables_in(blank, "printed") == TABLES
    assert tables_in(blank, "public") == set()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["psycopg"], indirect=True)
def test_autogenerate_leaves_the_schema_alone(blank, tmp_path):
    """A host with a table `models`, and with a reference to a model, compares all schemas."""
    blank.run("CREATE TABLE models (name TEXT PRIMARY KEY); CREATE SCHEMA catalog")
    blank.run("CREATE TABLE catalog.jobs (id INTEGER PRIMARY KEY)")
    project = HostProject(tmp_path, blank)
    project.add_import(
        "from model_catalog import Model, upgrade_connection\n"
        "from model_catalog.alembic import SchemaFilter\n"
        "ours = SchemaFilter('catalog')"
    )
    _, before, after = CALLS["upgrade_connection in an async env.py"]
    project.replace(before, after.replace("upgrade_connection(connection)", UPGRADE_IN_SCHEMA, 1))
    project.configure(
        "include_schemas=True, include_name=ours.include_name, include_object=ours.include_object"
    )
    project.replace("target_metadata = Base.metadata", TABLES_OF_THE_HOST)

    code = project.autogenerate()
    project.upgrade()
    later = project.autogenerate().partition("def upgrade")[2]

    assert "sa.ForeignKeyConstraint(['model_id'], ['catalog.models.id']" in code
    # The filter hides the tables of the catalog, and no table of the host.
    assert "op.drop_table('jobs', schema='catalog')" in code
    assert "model_tags" not in code
    assert later.count("pass") == 2
    assert tables_in(blank, "catalog") == TABLES


UPGRADE_IN_SCHEMA = "upgrade_connection(connection, schema='catalog')"
TABLES_OF_THE_HOST = """
Model.__table__.to_metadata(Base.metadata, schema="catalog")

class Own(Base):
    __tablename__ = "models"
    name: Mapped[str] = mapped_column(Text, primary_key=True)

class Placement(Base):
    __tablename__ = "placements"
    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("catalog.models.id"))

target_metadata = Base.metadata
"""


async def test_a_session_sees_the_writes_of_its_own_schema_only(host):
    """A session without the schema has the models of another catalog, or none at all."""
    engine = engine_of(host)
    own = engine.execution_options(schema_translate_map={None: "catalog"})
    async with AsyncSession(own) as session:
        catalog = ModelCatalog(session, schema="catalog")
        await catalog.register_model(a_model("a"))
        model = await session.scalar(sa.select(Model))
        await catalog.tag_model("a", "hf", "chat")
        assert model.tags == ("chat",)
        await ModelCatalog(session, schema=ODD).register_model(a_model("b", size_bytes=1))
        await ModelCatalog(session, schema=ODD).register_models([a_model("b", size_bytes=2)])
        assert (model.reference, model.size_bytes) == ("a", None)
        await catalog.register_models([a_model("a", size_bytes=3)])
        assert model.size_bytes == 3
        await session.commit()

    options = {"schema_translate_map": {None: "catalog"}}
    async with AsyncSession(engine) as session:
        model = await session.scalar(sa.select(Model), execution_options=options)
        catalog = ModelCatalog(session, schema="catalog")
        with pytest.raises(ZeroDivisionError):
            async with catalog.transaction() as inner:
                await inner.register_models([a_model("a", size_bytes=4)])
                raise ZeroDivisionError
        assert (await catalog.get_model("a", "hf")).size_bytes == model.size_bytes == 3
    await engine.dispose()
