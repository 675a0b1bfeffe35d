"""The search index finds what a plain comparison of texts finds, whoever wrote the models."""

import asyncio
import sqlite3
from contextlib import AsyncExitStack, closing

import pytest
from conftest import Database, a_model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from model_catalog import Model, Sort, open_catalog, schema_state, upgrade
from model_catalog.domain.search_text import fold_case
from model_catalog.mapping.search_index import indexing, objects
from model_catalog.repository.operations import listing, statistics
from model_catalog.repository.statements.row_conversion import to_models

# Every script and every kind of character that folding, trigrams or LIKE could treat specially.
ALPHABET = "aAbBßſẞéÉe\u0301İıΣσςЖжЧ漢字かな한글🙂\U0010ffff\ufffe\u200d%_\\\"'*^-/ .1٣"  # noqa: RUF001
WORDS = st.text(st.sampled_from(ALPHABET), min_size=1, max_size=12)
TEXTS = st.one_of(
    WORDS, st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
)


def index_everything(database) -> None:
    """Index all models of a SQLite file, as an upgrade does."""
    if database.path is not None:
        engine = create_engine(f"sqlite:///{database.path}")
        with engine.begin() as connection:
            indexing.index_all(connection)
        engine.dispose()


def drop_index(database) -> None:
    """Leave a database as one that can have no search index."""
    if database.path is None:
        for name in objects.POSTGRESQL_INDEXES:
            database.run(f"DROP INDEX {name}")
        return
    database.run(f"DELETE FROM {objects.STATE}")
    database.run(f"DROP TABLE {objects.INDEX}")


def indexed_to(path) -> int | None:
    with closing(sqlite3.connect(path)) as raw:
        row = raw.execute(f"SELECT indexed_to FROM {objects.STATE}").fetchone()
    return None if row is None else row[0]


async def found(catalog, word) -> list[str]:
    return sorted(model.reference for model in await catalog.list_models(search=word))


@pytest.fixture(params=["with the index", "without an index"])
def searched(request, empty):
    """A database that has the index, or that cannot have one."""
    asyncio.run(upgrade(empty.target))
    if request.param == "without an index":
        drop_index(empty)
    return empty


class _Changes:
    """Random changes of models through the catalog, a host's session and plain SQL."""

    def __init__(self, data, catalog, database, engine):
        self.data, self.catalog, self.database, self.engine = data, catalog, database, engine
        self.count = 0

    async def run(self, step):
        await getattr(self, step)()

    def _words(self):
        return self.data.draw(TEXTS.filter(_is_storable))

    async def register(self):
        self.count += 1
        description = self.data.draw(st.none() | TEXTS.filter(_is_storable))
        name = f"{self._words()}{self.count}"
        await self.catalog.register_model(a_model(name, description=description))

    async def bulk(self):
        self.count += 2
        names = (f"{self._words()}{self.count - one}" for one in range(2))
        await self.catalog.register_models([a_model(name) for name in names])

    async def tag(self):
        if (model := await self._some()) is not None:
            await self.catalog.tag_model(model.reference, model.provider, self._words())

    async def untag(self):
        if (model := await self._some()) is not None:
            for tag in model.tags:
                await self.catalog.untag_model(model.reference, model.provider, tag)

    async def remove(self):
        if (model := await self._some()) is not None:
            await self.catalog.remove_model(model.reference, model.provider)

    async def host_update(self):
        if (model := await self._some()) is not None:
            async with AsyncSession(self.engine) as session, session.begin():
                (await session.get_one(Model, model.id)).description = self._words()

    async def host_insert(self):
        self.count += 1
        async with AsyncSession(self.engine) as session, session.begin():
            session.add(a_model(f"{self._words()}{self.count}"))

    async def sql_update(self):
        if (model := await self._some()) is not None:
            word = self._words()
            self.database.run(
                "UPDATE models SET description = ?, description_folded = ? WHERE id = ?",
                *(word, fold_case(word), model.id),
            )

    async def sql_tag(self):
        if (model := await self._some()) is not None:
            word = self._words()
            self.database.run("DELETE FROM model_tags WHERE model_id = ?", model.id)
            self.database.run(
                "INSERT INTO model_tags (model_id, folded, tag) VALUES (?, ?, ?)",
                *(model.id, fold_case(word), word),
            )

    async def replace(self):
        """Replace a row by one with the same id, without a delete that a trigger could see."""
        if self.database.path is None or (model := await self._some()) is None:
            return
        word = f"{self._words()}{self.count}r{model.id}"
        self.database.run(
            "INSERT OR REPLACE INTO models (id, provider, reference, reference_folded, local_path)"
            " VALUES (?, 'hf', ?, ?, '/m')",
            *(model.id, word, fold_case(word)),
        )

    async def index(self):
        index_everything(self.database)

    async def _some(self):
        # Not in the order of the times, which differ from run to run.
        models = sorted(await self.catalog.list_models(), key=lambda model: model.id)
        place = self.data.draw(st.integers(0, 1000))
        return models[place % len(models)] if models else None


def _is_storable(word):
    return word == word.strip() and word != ""


STEPS = [name for name in vars(_Changes) if not name.startswith("_") and name != "run"]


def holds(model, word) -> bool:
    texts = (model.reference, model.description or "", *model.tags)
    return any(fold_case(word) in fold_case(text) for text in texts)


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
def test_a_search_finds_what_python_finds_in_the_folded_texts(searched):
    """After any writes, by whomever, and for any text of any script."""
    has_index = asyncio.run(schema_state(searched.target)).has_search_index

    @settings(
        max_examples=40 if searched.path else 10,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data):
        searched.delete_rows()
        asyncio.run(_compare(data, searched, has_index=has_index))

    check()


async def _compare(data, database, *, has_index):
    engine = create_async_engine(database.target_url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        catalog = await stack.enter_async_context(open_catalog(database.target))
        changes = _Changes(data, catalog, database, engine)
        allowed = [step for step in STEPS if has_index or step != "index"]
        for step in data.draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=12)):
            await changes.run(step)
        models = sorted(await catalog.list_models(), key=lambda model: model.id)
        texts = [t for m in models for t in (m.reference, m.description or "", *m.tags) if t]
        for _ in range(6):
            word = data.draw(TEXTS.filter(_is_storable))
            if texts and data.draw(st.booleans()):
                whole = data.draw(st.sampled_from(texts))
                start = data.draw(st.integers(0, len(whole) - 1))
                word = whole[start : start + data.draw(st.integers(1, 8))]
            expected = sorted(model.reference for model in models if holds(model, word))
            assert await found(catalog, word) == expected, word
            assert await catalog.count_models(search=word) == len(expected)


def fill(path, count, words=lambda number: f"plain{number}") -> None:
    """Insert models with a plain driver; every thousandth is `needle...`."""
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.executemany(
            "INSERT INTO models (provider, reference, reference_folded, local_path, size_bytes)"
            " VALUES ('hf', ?, ?, '/m', ?)",
            [
                (name, name, number % 997)
                for number in range(1, count + 1)
                for name in [f"needle{number}" if number % 1000 == 0 else words(number)]
            ],
        )


async def test_a_bulk_fills_the_index_when_many_models_wait(sqlite_file):
    """The models of other programs are indexed with its own; a small catalog is not indexed."""
    async with open_catalog(sqlite_file) as catalog:
        await catalog.register_models([a_model("first")])
        before = indexed_to(sqlite_file)
        fill(sqlite_file, indexing.MAX_WAITING)
        await catalog.register_models([a_model("last")])

        assert (before, indexed_to(sqlite_file)) == (None, indexing.MAX_WAITING)
        assert await found(catalog, "last") == ["last"]
        assert await catalog.count_models(search="NEEDLE") == 16


@pytest.mark.parametrize("tag", ["Needle", "nee\0dle"], ids=["plain", "with a NUL"])
async def test_new_models_are_indexed_with_their_tags(sqlite_file, tag):
    """A tag that was recorded before its model was indexed is found, also behind a NUL."""
    async with open_catalog(sqlite_file) as catalog:
        await catalog.register_models([a_model(f"m{number}") for number in range(100)])
        tagged = await catalog.get_model("m6", "hf")
        with closing(sqlite3.connect(sqlite_file)) as raw, raw:
            values = (tagged.id, fold_case(tag), tag)
            raw.execute("INSERT INTO model_tags VALUES (?, ?, ?)", values)
        index_everything(Database("sqlite", f"{sqlite_file}", path=sqlite_file))

        assert indexed_to(sqlite_file) == 100
        assert await found(catalog, tag[-3:]) == ["m6"]
        assert await catalog.count_models(search=tag[-3:]) == 1


async def test_a_registration_indexes_few_models_at_once(sqlite_file):
    """It does so once in 256 registrations, so that none of them takes long."""
    fill(sqlite_file, indexing.MAX_WAITING)
    async with open_catalog(sqlite_file) as catalog:
        for number in range(256):
            await catalog.register_model(a_model(f"new{number}"))

    assert indexed_to(sqlite_file) == 512


@pytest.mark.parametrize("is_indexed", [True, False], ids=["indexed", "waiting"])
@pytest.mark.parametrize("sort", Sort, ids=str)
async def test_pages_behind_a_search_have_all_models_in_order(sqlite_file, sort, is_indexed):
    """Each page starts after the last model of the page before, in every order."""
    fill(sqlite_file, 5_000)
    if is_indexed:
        index_everything(Database("sqlite", str(sqlite_file), path=sqlite_file))
    async with open_catalog(sqlite_file) as catalog:
        for word, other in (("needle", {}), ("plain1", {"min_size_bytes": 500})):
            whole = [m.reference for m in await catalog.list_models(sort=sort, **other)]
            expected = [name for name in whole if word in name]
            paged, last = [], None
            while page := await catalog.list_models(
                search=word, sort=sort, limit=200, after=last, **other
            ):
                paged += [model.reference for model in page]
                last = page[-1]
            assert paged == expected
            assert await catalog.count_models(search=word, **other) == len(expected)


async def test_a_text_with_a_nul_is_found_although_the_tokenizer_may_end_there(sqlite_file):
    """A plain program can write it. The model is compared at each search."""
    name = "before\0after"
    with closing(sqlite3.connect(sqlite_file)) as raw, raw:
        raw.execute(
            "INSERT INTO models (provider, reference, description_folded, local_path)"
            " VALUES ('hf', 'm', ?, '/m')",
            [name],
        )
    for _ in range(2):
        index_everything(Database("sqlite", str(sqlite_file), path=sqlite_file))
        with closing(sqlite3.connect(sqlite_file)) as raw, raw:
            raw.execute("UPDATE models SET description_folded = description_folded")

    async with open_catalog(sqlite_file) as catalog:
        assert await found(catalog, "after") == ["m"]


@pytest.mark.parametrize("clause", ["ABORT", "FAIL", "ROLLBACK", "IGNORE", "REPLACE"])
def test_a_changed_model_can_be_changed_again_with_any_conflict_clause(sqlite_file, clause):
    """The clause of the statement replaces that of a trigger, and must not make it fail."""
    fill(sqlite_file, 10)
    index_everything(Database("sqlite", str(sqlite_file), path=sqlite_file))

    with closing(sqlite3.connect(sqlite_file)) as raw, raw:
        for word in ("one", "two"):
            raw.execute(f"UPDATE OR {clause} models SET description_folded = ?", [word])
        changed = raw.execute(f"SELECT count(*) FROM {objects.CHANGES}").fetchone()

    assert changed == (10,)


@pytest.mark.parametrize("is_analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize("filters", [{}, {"provider": "hf"}, {"architecture": "llama"}], ids=str)
async def test_a_search_reads_its_candidates_by_id(sqlite_file, filters, is_analyzed):
    """SQLite reads no other models, whatever else is asked, and whatever its statistics are."""
    fill(sqlite_file, 3_000)
    index_everything(Database("sqlite", str(sqlite_file), path=sqlite_file))
    if is_analyzed:
        with closing(sqlite3.connect(sqlite_file)) as raw, raw:
            raw.execute("ANALYZE")
    engine = create_engine(f"sqlite:///{sqlite_file}")
    statements = []
    event.listen(
        engine, "before_cursor_execute", lambda *found: statements.append((found[2], found[3]))
    )
    with engine.connect() as connection:
        listing.fetch_page(connection, a_page({"search": "needle", **filters}))
        count = statistics.count({"search": "needle", **filters}, "sqlite")
        count.run_one(connection, count.value)
        plans = [
            [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
            for sql, values in list(statements)
            if "instr" in sql
        ]
    engine.dispose()

    assert len(plans) == 2
    for plan in plans:
        assert "SEARCH models USING INTEGER PRIMARY KEY (rowid=?)" in plan
        assert not [step for step in plan if step.startswith("SCAN models")]


def a_page(filters):
    """Return the query of the newest 50 models that pass some filters."""
    operation = listing.list_page(
        to_models, "sqlite", filters, sort=Sort.DOWNLOADED_AT, descending=None, limit=50, after=None
    )
    return operation.value


@pytest.mark.slow
@pytest.mark.slow_with("psycopg")
@pytest.mark.parametrize("backend", ["asyncpg"])
async def test_postgresql_reads_the_candidates_from_the_gin_indexes(database):
    """Also with statistics of skewed data: all models have the same provider."""
    database.run(
        "INSERT INTO models (provider, reference, reference_folded, description_folded, local_path)"
        " SELECT 'hf', w, w, 'about ' || w, '/m'"
        " FROM (SELECT 'plain' || md5(i::text) AS w FROM generate_series(1, 20000) i) AS words"
    )
    database.run(
        "INSERT INTO model_tags (model_id, folded, tag) SELECT id, reference, reference FROM models"
    )
    # It also moves new entries from the list of an index to their place.
    database.run("VACUUM ANALYZE models, model_tags")
    plans = [
        "\n".join(
            row[0]
            for row in database.run(f"EXPLAIN SELECT 1 FROM {table} WHERE {column} LIKE '%needle%'")
        )
        for table, column in objects.POSTGRESQL_INDEXES.values()
    ]

    for name, plan in zip(objects.POSTGRESQL_INDEXES, plans, strict=True):
        assert f"Bitmap Index Scan on {name}" in plan
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("a-Needle_%"))
        assert await found(catalog, "needle_%") == ["a-Needle_%"]
        assert await found(catalog, "needle%_") == []
