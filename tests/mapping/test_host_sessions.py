"""A host's own session reads and writes models as the catalog does."""

import pickle
from datetime import UTC, datetime

import pytest
from conftest import a_model, moment
from sqlalchemy import event, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import aliased

from model_catalog import FileState, InvalidModelError, Model, ModelCatalog, Sort, prepare_engine

FIELDS = ("reference", "tags", "pinned", "foreign", "unsafe", "format", "architecture", "license")
FILE = {
    "local_path": "/models/a.gguf",
    "size_bytes": 7,
    "digest": f"sha256:{7:064}",
}


@pytest.fixture
async def sessions(database):
    """A host's session factory for the database of the test."""
    engine = create_async_engine(database.target_url)
    prepare_engine(engine)
    yield async_sessionmaker(engine, expire_on_commit=False)
    await engine.dispose()


@pytest.fixture
async def filled(sessions):
    """A catalog over the host's sessions, with three models that differ in every computed field."""
    catalog = ModelCatalog(sessions)
    async with sessions() as session, session.begin():
        inner = ModelCatalog(session)
        await inner.register_models(
            [
                a_model("a", claimed_architecture="llama", claimed_format="pickle", license="mit"),
                a_model("b", architecture="qwen2", claimed_architecture="llama", format="gguf"),
                a_model("c"),
            ]
        )
        await inner.tag_model("a", "hf", "Straße", "Chat")
        await inner.tag_model("b", "hf", "chat", "b")
        await inner.pin_model("b", "hf")
        await session.execute(update(Model).where(Model.reference == "c").values(store="ollama"))
    return catalog


def values(model):
    """The fields of a model that are computed, and its name."""
    return {name: getattr(model, name) for name in FIELDS}


async def test_a_session_reads_what_the_catalog_returns(filled, sessions):
    """Tags, effective values and flags of loaded objects are those of `list_models`."""
    async with sessions() as session:
        loaded = (await session.scalars(select(Model).order_by(Model.reference))).all()

    listed = await filled.list_models(sort=Sort.REFERENCE)
    assert [values(model) for model in loaded] == [values(model) for model in listed]
    assert [model.to_dict() for model in loaded] == [model.to_dict() for model in listed]
    assert loaded[0].tags == ("Chat", "Straße")
    assert loaded[0].architecture == "llama"


CONDITIONS = {
    "tag": (lambda model: model.tags.contains("CHAT"), "ab"),
    "other script": (lambda model: model.tags.contains("STRASSE"), "a"),
    "all tags": (lambda model: model.tags == ("chat", "b"), "b"),
    "no tags": (lambda model: model.tags == (), "c"),
    "claim": (lambda model: model.architecture == "llama", "a"),
    "user's value": (lambda model: model.architecture == "qwen2", "b"),
    "neither": (lambda model: model.architecture.is_(None), "c"),
    "only a claim": (lambda model: model.user_architecture.is_(None) & model.unsafe, "a"),
    "pinned": (lambda model: model.pinned, "b"),
    "not pinned": (lambda model: ~model.pinned, "ac"),
    "foreign": (lambda model: model.foreign, "c"),
    "unsafe": (lambda model: model.unsafe, "a"),
    "safe": (lambda model: ~model.unsafe, "bc"),
}


async def test_a_statement_compares_what_an_object_reads(filled, sessions):
    """Computed fields can be used in WHERE, of the class and of an alias of it."""
    async with sessions() as session:
        for name, (condition, found) in CONDITIONS.items():
            for model in (Model, aliased(Model)):
                references = select(model.reference).where(condition(model))
                read = await session.scalars(references.order_by(model.reference))

                assert "".join(read) == found, name


async def test_a_statement_sorts_by_what_an_object_reads(filled, sessions):
    """Computed fields can be selected and used in ORDER BY; NULL is where the database puts it."""
    async with sessions() as session:
        for field in (Model.tags, Model.pinned, Model.foreign, Model.unsafe):
            statement = select(Model.reference, field).order_by(field, Model.reference)
            rows = (await session.execute(statement)).all()
            read = {row.reference: getattr(row, field.key) for row in rows}

            assert list(read) == sorted(read, key=lambda each: (read[each], each)), field
        effective = select(Model.reference).order_by(Model.architecture.desc().nulls_last())
        assert "".join(await session.scalars(effective)) == "bac"
        assert list(await session.scalars(select(Model.tags).order_by(Model.tags.desc()))) == [
            ("b", "chat"),
            ("Chat", "Straße"),
            (),
        ]


async def test_a_flush_keeps_the_search_in_step(filled, sessions):
    """A model that a session adds or changes is found by its new words, in any case."""
    async with sessions() as session, session.begin():
        session.add(a_model("NEW/Model", description="Größe"))
        changed = await session.scalar(select(Model).where(Model.reference == "a"))
        changed.description = "Good at SUMMARIES"
    async with sessions() as session, session.begin():
        await session.execute(insert(Model), [vars_of(a_model("Bulk", description="ÄRA"))])

    for text, reference in [
        ("new/", "NEW/Model"),
        ("GRÖSSE", "NEW/Model"),
        ("summaries", "a"),
        ("ära", "Bulk"),
    ]:
        found = await filled.list_models(search=text)
        assert [model.reference for model in found] == [reference]


def vars_of(model):
    """The keywords of a model."""
    return {name: value for name, value in vars(model).items() if name != "id"}


INVALID = {
    "size_bytes": -1,
    "reference": "",
    "version": "a" * 513,
    "architecture": "",
    "downloaded_at": datetime(2026, 1, 1),  # noqa: DTZ001
    "digest": "md5:1",
    "state": "bogus",
    "use_count": None,
    "description": select(Model.reference).scalar_subquery(),
}


async def test_a_flush_raises_for_an_invalid_value(filled, sessions):
    """InvalidModelError names the field, and the row stays as it was."""
    before = await filled.list_rows()
    async with sessions() as session:
        for field, value in INVALID.items():
            changed = await session.scalar(select(Model).where(Model.reference == "a"))
            added = a_model("d")
            for model in (changed, added):
                setattr(model, field, value)
                session.add(model)
                with pytest.raises(InvalidModelError) as caught:
                    await session.commit()
                assert caught.value.field == field
                await session.rollback()

    assert await filled.list_rows() == before


async def test_a_flush_stores_the_values_that_the_catalog_stores(filled, sessions):
    """A new row has a download time, and times, digests and paths are stored in one form."""
    async with sessions() as session:
        model = a_model("d", digest="A" * 64, downloaded_at=moment(1).replace(microsecond=9))
        plain = a_model("e")
        session.add_all([model, plain])
        await session.commit()

        assert model.digest == f"sha256:{'a' * 64}"
        assert model.downloaded_at == moment(1)
        assert abs((plain.downloaded_at - datetime.now(UTC)).total_seconds()) < 60
        assert (plain.tags, plain.download_count, plain.state) == ((), 1, FileState.UNCHECKED)
        assert (await filled.get_model("d", "hf")).to_dict() == model.to_dict()


async def test_a_new_value_of_the_files_resets_their_results(filled, sessions, database):
    """The rule is that of `register_model`: a path, a size and a digest make results stale."""
    for name, value, digest in [
        ("local_path", "/elsewhere", FILE["digest"]),
        ("size_bytes", 8, None),
        ("digest", f"sha256:{8:064}", f"sha256:{8:064}"),
        ("description", "x", FILE["digest"]),
    ]:
        database.run("DELETE FROM models WHERE reference IN ('orm', 'catalog')")
        await filled.register_models([a_model(each, **FILE) for each in ("orm", "catalog")])
        database.run("UPDATE models SET state = 'changed', verified_at = 1, store = 'ollama'")
        await filled.update_model("catalog", "hf", **{name: value})
        async with sessions() as session, session.begin():
            model = await session.scalar(select(Model).where(Model.reference == "orm"))
            setattr(model, name, value)

        orm, catalog = [await filled.get_model(each, "hf") for each in ("orm", "catalog")]
        results = ("state", "verified_at", "store", "digest", "size_bytes", "local_path")
        assert [getattr(orm, each) for each in results] == [
            getattr(catalog, each) for each in results
        ]
        assert orm.digest == digest


async def test_an_expired_model_that_gets_a_new_path_loses_its_results(filled, sessions, database):
    """The old path is not loaded, so it counts as another one."""
    database.run("UPDATE models SET state = 'changed'")
    async with sessions() as session, session.begin():
        model = await session.scalar(select(Model).where(Model.reference == "c"))
        session.expire(model)
        model.local_path = "/models/tinyllama.gguf"

    assert (await filled.get_model("c", "hf")).state is FileState.UNCHECKED


async def test_a_merge_leaves_claims_as_they_are(filled, sessions, database):
    """Merging a model that was found or copied changes no column that nobody set."""
    found = await filled.get_model("a", "hf")
    columns = "SELECT architecture, claimed_architecture, license FROM models ORDER BY id"
    before = database.run(columns)
    async with sessions() as session, session.begin():
        merged = await session.merge(pickle.loads(pickle.dumps(found)))
        assert (merged.architecture, merged.tags) == ("llama", ("Chat", "Straße"))
        session.expunge(merged)
        session.add(found)
        found.use_count = 3
        await session.flush()
        assert found.tags == ("Chat", "Straße")

    assert database.run(columns) == before


async def test_a_model_that_is_merged_without_a_read_has_its_tags(filled, sessions):
    """`merge(load=False)` is how a session takes an object from a cache."""
    found = await filled.get_model("a", "hf")

    async with sessions() as session:
        merged = await session.merge(pickle.loads(pickle.dumps(found)), load=False)

        assert merged.tags == found.tags != ()


async def test_tags_are_those_of_the_last_refresh(filled, sessions):
    """A refresh or an expiry replaces the tags that the catalog has read."""
    found = await filled.get_model("a", "hf")
    plain = await filled.get_model("c", "hf")
    async with sessions() as session:
        session.add_all([found, plain])
        assert plain.tags == ()
        await filled.untag_model("a", "hf", "Straße")
        assert found.tags == ("Chat", "Straße")
        await session.refresh(found)
        assert found.tags == ("Chat",)
        session.expire(found)
        assert await session.run_sync(lambda _: found.tags) == ("Chat",)


async def test_statements_set_the_users_value(filled, sessions):
    """UPDATE and INSERT through the ORM set a computed field as an assignment does."""
    async with sessions() as session, session.begin():
        changed = update(Model).where(Model.architecture == "llama").values(architecture="mine")
        await session.execute(changed)
        await session.execute(
            insert(Model),
            [{"reference": "d", "provider": "hf", "local_path": "/d", "architecture": "new"}],
        )

    read = {row.reference: row.architecture for row in await filled.list_rows()}
    assert read == {"a": "mine", "b": "qwen2", "c": None, "d": "new"}


async def test_a_deleted_model_leaves_no_tags_without_foreign_keys(database):
    """On SQLite the host's connections may not enforce foreign keys; ids are used again."""
    engine = create_async_engine(database.target_url)
    sessions = async_sessionmaker(engine)
    catalog = ModelCatalog(sessions)
    await catalog.register_model(a_model("a"))
    await catalog.tag_model("a", "hf", "chat")
    async with sessions() as session, session.begin():
        await session.delete(await session.scalar(select(Model)))

    assert database.run("SELECT * FROM model_tags") == []
    await engine.dispose()


async def test_a_model_without_a_row_has_no_tags():
    """A new model and one that was made pending read no database."""
    model = a_model("m")
    async with AsyncSession() as session:
        session.add(model)

        assert model.tags == ()
        with pytest.raises(AttributeError):
            model.tags = ("chat",)


async def load(session, *references):
    """Models that a session has loaded, by their references."""
    models = (await session.scalars(select(Model).where(Model.reference.in_(references)))).all()
    return [next(each for each in models if each.reference == name) for name in references]


async def test_a_write_through_a_session_changes_its_loaded_models(filled, sessions):
    """Each write of the catalog is seen at once, without a read that an AsyncSession forbids."""
    async with sessions() as session:
        a, b, c = await load(session, "a", "b", "c")
        session.expire(a)
        catalog = ModelCatalog(session)

        await catalog.update_model("a", "hf", description="new", architecture="mine")
        assert (a.description, a.architecture, a.license) == ("new", "mine", "mit")
        await catalog.tag_model("a", "hf", "x")
        assert a.tags == ("Chat", "Straße", "x")
        await catalog.unpin_model("b", "hf")
        assert not b.pinned
        await catalog.record_use("b", "hf")
        assert b.use_count == 1
        await catalog.register_models([a_model("c", size_bytes=9)])
        assert (c.size_bytes, c.download_count) == (9, 2)
        assert not session.dirty
        await catalog.remove_model("c", "hf")
        assert c not in session
        assert c.size_bytes == 9


async def test_a_write_through_a_session_keeps_what_is_not_flushed(filled, sessions):
    """Without autoflush a pending change of the host stays, and the flush writes only that."""
    async with sessions(autoflush=False) as session:
        (a,) = await load(session, "a")
        a.description = "mine"
        catalog = ModelCatalog(session)
        await catalog.update_model("a", "hf", description="theirs", license="gpl")
        assert (a.description, a.license) == ("mine", "gpl")
        await catalog.register_models([a_model("a", size_bytes=9)])
        assert (a.description, a.size_bytes) == ("mine", 9)
        await session.commit()

    stored = await filled.get_model("a", "hf")
    assert (stored.description, stored.license, stored.size_bytes) == ("mine", "gpl", 9)


async def test_a_rolled_back_savepoint_takes_the_values_back(filled, sessions):
    """Of the catalog's own savepoint and of one of the host."""
    async with sessions() as session:
        (a,) = await load(session, "a")
        catalog = ModelCatalog(session)
        with pytest.raises(ZeroDivisionError):
            async with catalog.transaction() as inner:
                await inner.update_model("a", "hf", description="gone")
                assert a.description == "gone"
                raise ZeroDivisionError
        assert a.description is None

        nested = await session.begin_nested()
        await catalog.update_model("a", "hf", description="gone")
        await nested.rollback()
        await session.refresh(a, ["description"])
        assert a.description is None
        await session.refresh(a)
        assert a.tags == ("Chat", "Straße")


async def test_a_session_that_has_loaded_no_model_reads_nothing_more(filled, sessions, database):
    """The statements of a write are those of the catalog alone."""
    statements = []
    async with sessions() as session:
        catalog = ModelCatalog(session)
        connection = await session.connection()
        event.listen(
            connection.sync_connection,
            "before_cursor_execute",
            lambda *arguments: statements.append(arguments[2]),
        )
        await catalog.register_models([a_model("d")])
        statements.clear()
        await catalog.register_models([a_model("d")])
        alone = len(statements)
        await load(session, "d")
        kept = await load(session, "d")
        statements.clear()
        await catalog.register_models([a_model("d")])

        assert len(statements) == alone + 1
        assert kept[0].download_count == 3


async def test_a_flushed_name_moves_the_aliases(filled, sessions):
    """Aliases belong to a reference, so they follow a model that a session renames."""
    await filled.set_alias("a", "hf", "stable")
    async with sessions() as session, session.begin():
        (a,) = await load(session, "a")
        a.reference = "renamed"

    assert (await filled.get_model("renamed", "hf", "stable")).user_license == "mit"
    assert [model.reference for model in await filled.list_models(search="RENAMED")] == ["renamed"]
