"""A page after any model, in any order and behind any filter, is that part of the whole listing."""

import random

import pytest
from conftest import Database, a_model, moment

from model_catalog import Model, ModelCatalog, Sort
from model_catalog.repository.statements.page_statements import prepare_page

ORDERS = [(sort, descending) for sort in Sort for descending in (True, False)]
FILTERS = (
    {},
    {"provider": "hf"},
    {"provider": "local"},
    {"provider": "p07"},
    {"architecture": "llama"},
    {"architecture": "rare"},
    {"format": "gguf", "store": "ollama"},
    {"store": "ollama"},
    {"never_used": False},
    {"reference": "m7"},
    {"tags": ["chat"]},
)
COUNT = 2_000
LIMIT = 7


async def add_models(catalog: ModelCatalog, database: Database, rng: random.Random, more: int):
    """Add models with many equal values, with and without each value; `more` providers have one."""
    providers = [
        *rng.choices(["hf", "local"], [80, 20], k=COUNT),
        *(f"p{n:02}" for n in range(more)),
    ]
    await catalog.register_models(
        a_model(
            f"m{number // 2}",
            provider=provider,
            version=f"v{number % 2}",
            downloaded_at=moment(rng.randrange(90)),
            size_bytes=rng.choice([None, *range(40)]),
            architecture=rng.choices(["llama", None, "rare"], [60, 39, 1])[0],
            claimed_architecture=rng.choice(["llama", "qwen2", None]),
            format=rng.choice(["gguf", None]),
        )
        for number, provider in enumerate(providers)
    )
    database.run(
        "UPDATE models SET use_count = id % 4, last_used_at = id % 50"
        " WHERE id % 4 > 0 AND id % 5 = 1"
    )
    # Only other programs record these.
    database.run("UPDATE models SET use_count = -id % 3 WHERE id % 100 = 3")
    database.run("UPDATE models SET downloaded_at = NULL WHERE id % 10 = 7")
    database.run("UPDATE models SET store = 'ollama' WHERE id % 3 = 0")
    database.run(
        "INSERT INTO model_tags (model_id, folded, tag)"
        " SELECT id, 'chat', 'Chat' FROM models WHERE id % 6 = 0"
    )


def keys(models: list[Model]) -> list[tuple[str, str, str]]:
    return [(model.provider, model.reference, model.version) for model in models]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "more"),
    [("sqlite", 10), ("sqlite", 40), ("asyncpg", 10), ("psycopg", 40)],
)
async def test_a_page_after_any_model_is_that_part_of_the_listing(catalog, database, more):
    """The whole listing is sorted, and the page is read from an index if one has its order."""
    rng = random.Random(more)
    await add_models(catalog, database, rng, more)

    for filters in FILTERS:
        for sort, descending in ORDERS:
            options = {"sort": sort, "descending": descending, **filters}
            listed = await catalog.list_models(**options)
            first = await catalog.list_models(limit=LIMIT, **options)
            assert keys(first) == keys(listed[:LIMIT]), options
            if listed:
                # No page starts after an invalid count.
                valid = [place for place, model in enumerate(listed) if model.use_count >= 0]
                place = rng.choice([*valid[:1], *valid[-LIMIT:], rng.choice(valid)])
                last = listed[place]
                page = await catalog.list_models(limit=LIMIT, after=last, **options)
                assert keys(page) == keys(listed[place + 1 : place + 1 + LIMIT]), (options, place)


@pytest.mark.parametrize("sort", [Sort.SIZE_BYTES, Sort.FORMAT])
async def test_pages_with_other_values_of_the_same_filters_share_a_statement(catalog, sort):
    """To build the statement of a page takes as long as to execute it."""
    await catalog.register_models(
        a_model(f"m{number}", architecture=architecture, size_bytes=number)
        for number, architecture in enumerate(["llama", "qwen2", "llama"])
    )

    async def references(architecture):
        models = await catalog.list_models(sort=sort, limit=5, architecture=architecture)
        return sorted(each.reference for each in models)

    first = await references("llama")
    built = prepare_page.cache_info().misses
    second = await references("qwen2")

    assert (first, second) == (["m0", "m2"], ["m1"])
    assert prepare_page.cache_info().misses == built


@pytest.mark.slow
async def test_a_page_may_start_after_a_model_of_another_provider(catalog, database):
    """The page has the models of its provider that are after that model in the whole listing."""
    rng = random.Random(5)
    await add_models(catalog, database, rng, 3)
    database.run("UPDATE models SET use_count = 0 WHERE use_count < 0")

    for sort, descending in ORDERS:
        listed = await catalog.list_models(sort=sort, descending=descending)
        for place in (0, *rng.sample(range(len(listed)), 4)):
            for provider in ("hf", "local", "p01"):
                page = await catalog.list_models(
                    sort=sort,
                    descending=descending,
                    after=listed[place],
                    limit=LIMIT,
                    provider=provider,
                )
                later = [each for each in listed[place + 1 :] if each.provider == provider]
                assert keys(page) == keys(later[:LIMIT]), (sort, descending, place, provider)
