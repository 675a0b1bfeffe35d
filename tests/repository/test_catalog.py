"""The methods of ModelCatalog: what each writes, returns and leaves unchanged."""

import asyncio
import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from conftest import a_model, moment
from sqlalchemy import inspect, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    CatalogError,
    Model,
    ModelCatalog,
    ModelNotFoundError,
    ModelRef,
    SchemaOutOfDateError,
    TransactionError,
    errors,
    open_catalog,
    prepare_engine,
)


async def test_find_model_returns_a_registered_model(catalog):
    """
    A registered model is found by reference and provider, with the registered values.
    """
    await catalog.register_model(
        a_model(size_bytes=669_000_000, downloaded_at=moment(5), version="v1")
    )

    model = await catalog.find_model("TinyLlama-1.1B-Chat-v1.0", "hf")

    assert model is not None
    assert (model.reference, model.provider, model.version) == (
        "TinyLlama-1.1B-Chat-v1.0",
        "hf",
        "v1",
    )
    assert (model.local_path, model.size_bytes) == ("/models/tinyllama.gguf", 669_000_000)
    assert model.downloaded_at == moment(5)
    assert model.ref == ModelRef("hf", "TinyLlama-1.1B-Chat-v1.0", "v1")


async def test_register_model_writes_one_row_of_plain_values(catalog, database):
    """
    Programs that read the table with SQL find texts, numbers of bytes and whole seconds.
    """
    await catalog.register_model(a_model("m", size_bytes=2**63 - 1, downloaded_at=moment(0)))

    rows = database.run(
        "SELECT provider, reference, version, local_path, size_bytes, downloaded_at FROM models"
    )

    assert rows == [("hf", "m", "", "/models/tinyllama.gguf", 2**63 - 1, 1767225600)]


async def test_register_model_returns_the_recorded_model(catalog):
    """
    The returned model has an id, and its time is cut to whole seconds.
    """
    given = a_model(downloaded_at=moment(5) + timedelta(microseconds=999_999))

    model = await catalog.register_model(given)

    assert model is not given
    assert model.id == 1
    assert model.downloaded_at == moment(5)


REGISTERED = {
    "only required fields": {},
    "version": {"version": "v1"},
    "only header values": {"claimed_format": "gguf", "claimed_context_length": 4096},
    "user value other than the header value": {"claimed_license": "mit", "license": "apache-2.0"},
    "path that is not UTF-8": {"local_path": os.fsdecode(b"/m/\xff")},
    "time before 1970": {"downloaded_at": datetime(1969, 7, 20, 20, 17, 40, 5, tzinfo=UTC)},
    "description and URL": {
        "description": "Zeile 1\nZeile 2 \U0001f999",
        "source_url": "https://example.org/m",
    },
    "reference with case folding": {"reference": "STRASSE-\u1e9e"},
    "size set to None": {"size_bytes": None, "digest": "sha256:" + "0" * 64},
}


@pytest.mark.parametrize("given", REGISTERED.values(), ids=list(REGISTERED))
async def test_register_model_returns_what_find_model_returns(catalog, given):
    """
    This holds for a new model and for one that is registered again.
    """
    values = vars(a_model(**given))
    named = values["reference"], values["provider"]

    new = await catalog.register_model(a_model(**given))
    found = await catalog.find_model(*named)
    again = await catalog.register_model(a_model(**given, parameter_count=7))
    found_again = await catalog.find_model(*named)

    assert all_values(new) == all_values(found)
    assert all_values(again) == all_values(found_again)
    assert (new.download_count, again.download_count) == (1, 2)
    assert again.parameter_count == 7


async def test_a_removed_model_that_is_registered_again_is_new(catalog):
    """
    Its former tags, use counts and state are gone.
    """
    await catalog.register_model(a_model("m"))
    await catalog.tag_model("m", "hf", "chat")
    await catalog.record_use("m", "hf")
    await catalog.remove_model("m", "hf")

    back = await catalog.register_model(a_model("m"))

    assert (back.tags, back.use_count, back.download_count) == ((), 0, 1)
    assert all_values(back) == all_values(await catalog.find_model("m", "hf"))


async def test_register_model_returns_the_tags_of_a_known_model(catalog):
    """
    A model that is registered again is returned with its tags.
    """
    await catalog.register_model(a_model("m"))
    await catalog.tag_model("m", "hf", "chat")

    assert (await catalog.register_model(a_model("m"))).tags == ("chat",)


def all_values(model):
    """Return all values of a model, and its tags."""
    fields = {name: value for name, value in vars(model).items() if not name.startswith("_sa_")}
    return fields, inspect(model).identity_key


async def test_downloaded_at_is_now_if_it_was_not_set(catalog):
    """
    downloaded_at defaults to the time of registration.
    """
    before = datetime.now(UTC).replace(microsecond=0)

    model = await catalog.register_model(a_model())

    assert before <= model.downloaded_at <= datetime.now(UTC)


async def test_registering_again_keeps_fields_that_were_not_set(catalog):
    """
    A second registration changes the path; the size, which it does not set, stays.
    """
    first = await catalog.register_model(a_model(size_bytes=1000))

    second = await catalog.register_model(a_model(local_path="/new.gguf"))

    assert (second.id, second.local_path, second.size_bytes) == (first.id, "/new.gguf", 1000)
    assert len(await catalog.list_models()) == 1


async def test_a_field_that_is_set_to_none_is_cleared(catalog):
    """
    A size that is set to None is unknown afterwards.
    """
    await catalog.register_model(a_model(size_bytes=1000))

    model = await catalog.register_model(a_model(size_bytes=None))

    assert model.size_bytes is None


async def test_a_found_model_can_be_changed_and_registered_again(catalog):
    """
    A returned model is a plain object: change a field and register it.
    """
    await catalog.register_model(a_model(size_bytes=1, downloaded_at=moment(1)))
    model = await catalog.get_model("TinyLlama-1.1B-Chat-v1.0", "hf")

    model.size_bytes = 2
    again = await catalog.register_model(model)

    assert (again.id, again.size_bytes, again.downloaded_at) == (model.id, 2, moment(1))


async def test_a_model_without_a_date_gets_one_when_it_is_registered_again(catalog, database):
    """
    This also holds for a model that was read: rows of older catalogs may have no time.
    """
    await catalog.register_model(a_model("m"))
    database.run("UPDATE models SET downloaded_at = NULL")
    undated = await catalog.find_model("m", "hf")
    before = datetime.now(UTC).replace(microsecond=0)

    await catalog.register_model(undated)

    assert undated.downloaded_at is None
    assert (await catalog.find_model("m", "hf")).downloaded_at >= before


async def test_the_same_reference_of_two_providers_is_two_models(catalog):
    """
    The provider is part of the key.
    """
    await catalog.register_model(a_model("m", provider="hf", local_path="/a"))
    await catalog.register_model(a_model("m", provider="ollama", local_path="/b"))

    assert (await catalog.find_model("m", "hf")).local_path == "/a"
    assert (await catalog.find_model("m", "ollama")).local_path == "/b"


@pytest.mark.parametrize(
    ("reference", "provider", "version"),
    [("M", "hf", None), ("m", "HF", None), ("m ", "hf", None), ("m", "hf", "v2"), ("m", "hf", "")],
    ids=["case", "provider's case", "trailing blank", "other version", "empty version"],
)
async def test_find_model_compares_names_exactly(catalog, reference, provider, version):
    """
    Case and whitespace matter, and a version that is given must be equal.
    """
    await catalog.register_model(a_model("m", version="v1"))

    assert await catalog.find_model(reference, provider, version) is None


async def test_without_a_version_the_model_downloaded_last_is_found(catalog):
    """
    version=None means the newest by download, not the greatest by name.
    """
    await catalog.register_model(a_model("m", version="v9", downloaded_at=moment(1)))
    await catalog.register_model(a_model("m", version="v1", downloaded_at=moment(2)))

    assert (await catalog.find_model("m", "hf")).version == "v1"
    assert (await catalog.find_model("m", "hf", "v9")).version == "v9"


async def test_of_two_downloads_in_one_second_the_greater_id_is_found(catalog):
    """
    Times are stored in whole seconds; within a second the order of the ids decides.
    """
    for version in ("v1", "v2"):
        await catalog.register_model(a_model("m", version=version, downloaded_at=moment(1)))

    assert (await catalog.find_model("m", "hf")).version == "v2"


async def test_an_unknown_model_is_none_for_find_and_an_error_for_get(catalog):
    """
    find_model returns None; get_model raises an error with the key.
    """
    assert await catalog.find_model("m", "hf") is None
    with pytest.raises(
        ModelNotFoundError, match="'m' of provider 'hf' with version 'v1'"
    ) as caught:
        await catalog.get_model("m", "hf", "v1")

    assert isinstance(caught.value, LookupError)
    assert (caught.value.reference, caught.value.provider, caught.value.version) == (
        "m",
        "hf",
        "v1",
    )


async def test_the_default_order_is_newest_first_and_total(catalog, database):
    """
    Newest first, NULL last, then by provider, reference and version in byte order. The order does
    not depend on the locale of the database.
    """
    names = ["b", "A", "Z", "_x", "a", "ä", "B", "\U0001f999", "\uffff"]
    await catalog.register_models([a_model(name, downloaded_at=moment(1)) for name in names])
    await catalog.register_model(a_model("newest", downloaded_at=moment(2)))
    await catalog.register_model(a_model("a", version="v1", downloaded_at=moment(1)))
    await catalog.register_model(a_model("a", provider="Z", downloaded_at=moment(1)))
    database.run("UPDATE models SET downloaded_at = NULL WHERE reference = 'b'")

    listed = [(m.provider, m.reference, m.version) for m in await catalog.list_models()]

    assert listed == [
        ("hf", "newest", ""),
        ("Z", "a", ""),
        *[("hf", name, "") for name in ["A", "B", "Z", "_x", "a"]],
        ("hf", "a", "v1"),
        *[("hf", name, "") for name in ["ä", "\uffff", "\U0001f999"]],
        ("hf", "b", ""),
    ]


async def test_lists_and_totals_can_be_filtered_by_provider_and_reference(catalog):
    """
    The filters provider and reference narrow list, iteration and total alike.
    """
    await catalog.register_models(
        a_model(reference, provider=provider, size_bytes=size)
        for reference, provider, size in [("m", "hf", 1), ("m", "ollama", 2), ("n", "hf", 4)]
    )

    assert len(await catalog.list_models(provider="hf")) == 2
    assert len(await catalog.list_models(provider="hf", reference="m")) == 1
    assert len([model async for model in catalog.iter_models(reference="m")]) == 2
    assert await catalog.get_total_size(provider="hf") == 5
    assert await catalog.get_total_size(reference="m") == 3


async def test_an_empty_catalog_has_no_models_and_size_zero(catalog):
    """
    The list and the iteration are empty, and the total size is 0.
    """
    assert await catalog.list_models() == []
    assert [model async for model in catalog.iter_models()] == []
    assert await catalog.get_total_size() == 0
    assert await catalog.register_models([]) == 0
    assert await catalog.remove_model("m", "hf") is False


async def test_iter_models_yields_the_models_of_list_models(catalog, database):
    """
    Over many pages, with equal and missing times, no model is skipped or repeated.
    """
    await catalog.register_models(
        a_model(f"m{number:04}", version=f"v{number % 3}", downloaded_at=moment(number % 7))
        for number in range(1200)
    )
    database.run("UPDATE models SET downloaded_at = NULL WHERE id % 5 = 0")

    iterated = [model.ref async for model in catalog.iter_models()]

    assert iterated == [model.ref for model in await catalog.list_models()]
    assert len(set(iterated)) == 1200


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_models_can_be_written_during_an_iteration(catalog):
    """
    No transaction is open between two models.
    """
    await catalog.register_models(
        a_model(f"m{number:04}", downloaded_at=moment(number)) for number in range(600)
    )

    async for model in catalog.iter_models():
        await catalog.remove_model(model.reference, model.provider)

    assert await catalog.list_models() == []


async def test_remove_model_deletes_one_version_or_all(catalog):
    """
    With a version only that one is deleted, without a version all are. True means that a model
    existed.
    """
    await catalog.register_models(a_model("m", version=version) for version in ("", "v1", "v2"))

    assert await catalog.remove_model("m", "hf", "v1") is True
    assert await catalog.remove_model("m", "hf", "v1") is False
    assert [model.version for model in await catalog.list_models()] == ["", "v2"]

    assert await catalog.remove_model("m", "hf") is True
    assert await catalog.list_models() == []


async def test_remove_model_leaves_the_file(catalog, tmp_path):
    """
    remove_model deletes the record and no file.
    """
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    await catalog.register_model(a_model("m", local_path=str(path)))

    await catalog.remove_model("m", "hf")

    assert path.read_bytes() == b"GGUF"


async def test_the_total_size_is_exact_beyond_64_bits(catalog):
    """
    SQLite refuses a sum over 2**63, PostgreSQL returns a Decimal; the total is an int.
    """
    await catalog.register_models(a_model(f"m{n}", size_bytes=2**63 - 1) for n in range(5))
    await catalog.register_model(a_model("unknown"))

    total = await catalog.get_total_size()

    assert total == 5 * (2**63 - 1)
    assert type(total) is int


async def test_register_models_registers_the_models_of_a_generator(catalog):
    """
    The models set different fields, and each keeps its own values. All are in one transaction.
    """
    await catalog.register_model(a_model("known", size_bytes=7))

    count = await catalog.register_models(
        a_model("known", local_path="/moved") if n == 0 else a_model(f"m{n}", size_bytes=n)
        for n in range(1000)
    )

    assert count == 1000
    assert await catalog.get_total_size() == 7 + sum(range(1000))
    assert (await catalog.find_model("known", "hf")).local_path == "/moved"


async def test_in_a_batch_the_last_value_of_a_field_wins(catalog):
    """
    A key that occurs twice is one row, with each field as it was set last.
    """
    count = await catalog.register_models(
        [a_model("m", size_bytes=1, local_path="/a"), a_model("m", local_path="/b")]
    )

    assert count == 1
    model = await catalog.get_model("m", "hf")
    assert (model.local_path, model.size_bytes) == ("/b", 1)


async def test_one_invalid_model_refuses_the_whole_batch(catalog):
    """
    register_models records all models or none.
    """
    with pytest.raises(ValueError, match="size_bytes -1"):
        await catalog.register_models([a_model("good"), a_model("bad", size_bytes=-1)])

    assert await catalog.list_models() == []


async def test_a_transaction_is_committed_or_rolled_back_as_a_whole(catalog):
    """
    The rows of a block that raised are rolled back, those of a block that ended are committed.
    """
    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as both:
            await both.register_model(a_model("a"))
            assert await both.find_model("a", "hf") is not None
            raise ZeroDivisionError
    assert await catalog.list_models() == []

    async with catalog.transaction() as both:
        await both.register_model(a_model("a"))
        await both.remove_model("b", "hf")
    assert len(await catalog.list_models()) == 1


async def test_a_nested_transaction_is_rolled_back_alone(catalog):
    """
    The rows of the inner block are rolled back; those of the outer block stay.
    """
    async with catalog.transaction() as outer:
        await outer.register_model(a_model("outer"))
        with pytest.raises(ZeroDivisionError):
            async with outer.transaction() as inner:
                await inner.register_model(a_model("inner"))
                raise ZeroDivisionError

    assert [model.reference for model in await catalog.list_models()] == ["outer"]


async def test_tasks_can_share_a_transaction(catalog):
    """
    Calls in one transaction wait for its connection in a queue.
    """
    async with catalog.transaction() as shared:
        await asyncio.gather(*(shared.register_model(a_model(f"m{n}")) for n in range(20)))

    assert len(await catalog.list_models()) == 20


async def test_a_write_of_the_outer_catalog_in_its_own_transaction_is_refused(catalog):
    """
    Inside the transaction the outer catalog's write would wait forever.
    """
    async with catalog.transaction() as inner:
        with pytest.raises(TransactionError, match="has a transaction open"):
            await catalog.register_model(a_model())
        with pytest.raises(TransactionError, match="has a transaction open"):
            await asyncio.create_task(catalog.remove_model("m", "hf"))
        assert await catalog.list_models() == []

    await catalog.register_model(a_model())
    with pytest.raises(TransactionError, match="has ended"):
        await inner.register_model(a_model())


async def test_a_task_that_outlives_its_transaction_can_write(catalog):
    """
    A task that was started inside a transaction is refused a write only while the transaction is
    open.
    """
    has_ended = asyncio.Event()

    async def afterwards():
        await has_ended.wait()
        await catalog.register_model(a_model("later"))

    async with catalog.transaction():
        task = asyncio.create_task(afterwards())
        await asyncio.sleep(0)
    has_ended.set()
    await task

    assert await catalog.find_model("later", "hf") is not None


async def test_two_hundred_tasks_register_one_model(catalog):
    """
    The same key registered by all tasks at once is one row and no error.
    """
    models = await asyncio.gather(
        *(catalog.register_model(a_model(size_bytes=n)) for n in range(200))
    )

    (model,) = await catalog.list_models()
    assert {found.id for found in models} == {model.id}


async def test_a_host_engine_works_without_prepare_engine_and_stays_open(database):
    """
    A catalog over a host's session factory needs none of the catalog's engine settings. It works
    with sessions that expire their objects, and leaves the host's engine open.
    """
    engine = create_async_engine(database.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine, expire_on_commit=True))

    model = await catalog.register_model(a_model(size_bytes=3))
    await catalog.register_models(a_model(f"m{n}") for n in range(3))
    async with catalog.transaction() as both:
        await both.remove_model("m0", "hf")

    assert model.size_bytes == 3
    assert len(await catalog.list_models()) == 3
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM models")) == 3
    await engine.dispose()


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared engine", "plain engine"])
@pytest.mark.parametrize("keep", [True, False], ids=["committed", "rolled back"])
async def test_a_host_session_commits_or_rolls_back_the_catalog_rows(database, is_prepared, keep):
    """
    Host rows and catalog rows in a host's session are committed or rolled back as one.
    """
    engine = create_async_engine(database.target_url)
    if is_prepared:
        prepare_engine(engine)
    database.run("DROP TABLE IF EXISTS deployments")
    database.run("CREATE TABLE deployments (name TEXT)")

    async with AsyncSession(engine) as session:
        catalog = ModelCatalog(session)
        await session.execute(text("INSERT INTO deployments VALUES ('chat')"))
        await catalog.register_model(a_model("m", size_bytes=1))
        await catalog.register_models([a_model("n"), a_model("o", size_bytes=2)])
        assert session.in_transaction()
        assert await catalog.get_total_size() == 3
        await (session.commit() if keep else session.rollback())
    await engine.dispose()

    expected = 1 if keep else 0
    assert database.run("SELECT count(*) FROM deployments") == [(expected,)]
    assert database.run("SELECT count(*) FROM models") == [(3 * expected,)]
    database.run("DROP TABLE deployments")


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared engine", "plain engine"])
async def test_a_savepoint_in_a_host_session_commits_nothing(database, is_prepared):
    """
    transaction() over a host's session is rolled back with the session, even if it was its first
    statement.
    """
    engine = create_async_engine(database.target_url)
    if is_prepared:
        prepare_engine(engine)

    async with AsyncSession(engine) as session:
        async with ModelCatalog(session).transaction() as inner:
            await inner.register_model(a_model("m"))
        await session.rollback()
    await engine.dispose()

    assert database.run("SELECT count(*) FROM models") == [(0,)]


class CountingCatalog(ModelCatalog):
    """A host's subclass with state of its own, and a keyword of its own."""

    def __init__(self, sessions, *, timeout_s=30.0, provider="hf"):
        super().__init__(sessions, timeout_s=timeout_s)
        self.provider = provider
        self.finds = 0

    async def find(self, reference):
        self.finds += 1
        return await self.find_model(reference, self.provider)


class ProviderCatalog(CountingCatalog):
    """A subclass that passes its keyword on to the catalog of a transaction."""

    def _with_executor(self, executor):
        return type(self)(executor, provider=self.provider)


@pytest.mark.parametrize(
    ("subclass", "keywords", "provider"),
    [
        (CountingCatalog, {}, "hf"),
        (CountingCatalog, {"provider": "ollama"}, "hf"),
        (ProviderCatalog, {"provider": "ollama"}, "ollama"),
    ],
    ids=["default keyword", "own keyword", "own keyword passed on"],
)
async def test_the_constructor_of_a_subclass_runs_in_a_transaction_too(
    database, subclass, keywords, provider
):
    """
    transaction() yields an object of the subclass, made by its constructor, with its own state.
    """
    engine = create_async_engine(database.target_url)
    catalog = subclass(async_sessionmaker(engine), **keywords)
    await catalog.register_models([a_model("m"), a_model("m", provider="ollama")])
    await catalog.find("m")

    async with catalog.transaction() as inner:
        model = await inner.find("m")
        assert type(inner) is subclass
        assert (inner.finds, catalog.finds) == (1, 1)
        async with inner.transaction() as innermost:
            assert type(innermost) is subclass
            assert innermost.provider == provider
            assert innermost.finds == 0
    await engine.dispose()

    assert model.provider == inner.provider == provider


async def test_objects_that_a_host_session_has_not_flushed_are_found(database):
    """
    Objects that the host has added are flushed before the lookup, and stay objects of the host.
    """
    engine = create_async_engine(database.target_url)

    async with AsyncSession(engine) as session:
        mine = a_model("m", downloaded_at=moment(1))
        session.add(mine)
        found = await ModelCatalog(session).find_model("m", "hf")
        assert found is not None
        assert found is not mine
        assert mine in session
        assert found not in session
        await session.commit()
        assert (await session.scalars(select(Model))).one() is mine
    await engine.dispose()


async def test_prepare_engine_configures_a_host_engine(tmp_path):
    """
    One call gives a host's SQLite engine foreign keys, a write-ahead log and real transactions.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/host.db")
    prepare_engine(engine)
    prepare_engine(engine)

    async with engine.connect() as connection:
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"
        await connection.execute(text("CREATE TABLE undone (id INTEGER)"))
        await connection.rollback()
        assert await connection.scalar(text("SELECT count(*) FROM sqlite_master")) == 0
    await engine.dispose()


async def test_a_lock_that_is_never_released_is_catalog_busy_error(database, tmp_path):
    """
    If another process holds SQLite's write lock, the call waits until its timeout and no longer.
    """
    if database.path is None:
        pytest.skip("PostgreSQL locks rows, not the database")
    async with open_catalog(database.target, timeout_s=0.3) as catalog:
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(CatalogBusyError, match=r"waited 0\.[3-9] s") as caught:
                await catalog.register_model(a_model())
            assert await catalog.list_models() == []
            with pytest.raises(CatalogBusyError):
                async with catalog.transaction():
                    pass
        await catalog.register_model(a_model())

    assert caught.value.target == repr(str(database.path))


async def test_a_database_without_tables_raises_schema_out_of_date_error(empty):
    """
    The error tells a host that did not upgrade how to do so.
    """
    engine = create_async_engine(empty.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine))

    with pytest.raises(SchemaOutOfDateError, match=r"an older revision or none, .* db upgrade"):
        await catalog.list_models()
    await engine.dispose()


@pytest.mark.slow_with("asyncpg")
async def test_a_process_that_only_reads_can_read(catalog, database):
    """
    Models are returned even if the process has made no Model before.
    """
    await catalog.register_model(a_model("m"))
    script = (
        "import asyncio, sys, model_catalog\n"
        "async def read():\n"
        "    async with model_catalog.open_catalog(sys.argv[1]) as catalog:\n"
        "        return (await catalog.list_models())[0].reference\n"
        "print(asyncio.run(read()))\n"
    )

    reader = subprocess.run(
        [sys.executable, "-c", script, database.target], capture_output=True, text=True, check=False
    )

    assert (reader.stdout, reader.stderr) == ("m\n", "")


async def test_every_error_can_be_pickled():
    """
    An error that a worker process raises is equal in the parent process.
    """
    made = [
        errors.InvalidModelError("size_bytes", -1, "is out of range"),
        ModelNotFoundError("m", "hf", None),
        CatalogBusyError("x.db", "locked", 1.5),
        SchemaOutOfDateError("x.db", None, "0002"),
    ]

    for error in made:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
        assert isinstance(again, CatalogError)
