"""The search index finds what a plain comparison of texts finds, whoever wrote the models."""

import asyncio
import sqlite3
from contextlib import AsyncExitStack, closing

import pytest
from conftest import a_model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from model_catalog import Model, open_catalog, schema_state, upgrade
from model_catalog.domain.search_text import fold_case
from model_catalog.mapping.search_index import indexing, objects

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
