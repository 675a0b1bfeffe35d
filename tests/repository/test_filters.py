"""Filters, order, pages and statistics of listings, the same on every database."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import postgres
import pytest
from conftest import Database, a_model, moment, postgresql_database

from model_catalog import InvalidModelError, Model, ModelTotals, Sort, open_catalog, upgrade
from model_catalog.repository.statements.pagination import Page, SortOrder
from model_catalog.repository.statements.row_conversion import select_models

HUGE = 2**63 - 1

# Models with their download times, sizes and fields, set by the user or stated by a header.
CORPUS = {
    "Llama-3-8B": {
        "fields": {
            "downloaded_at": moment(10),
            "size_bytes": 100,
            "context_length": 8192,
            "claimed_context_length": 1,
            "parameter_count": 8,
            "kind": "model",
            "claimed_kind": "adapter",
            "format": "gguf",
            "claimed_architecture": "llama",
            "quantization": "Q4_K_M",
            "license": "llama3",
            "description": "Answers 100% of questions; Straße",
        },
        "tags": ["Chat", "Größe"],
        "uses": 3,
    },
    "mixtral": {
        "fields": {
            "provider": "ollama",
            "downloaded_at": moment(20),
            "size_bytes": 200,
            "claimed_context_length": 32768,
            "format": "safetensors",
            "architecture": "mixtral",
            "claimed_architecture": "llama",
            "claimed_quantization": "Q4_K_M",
            "claimed_kind": "adapter",
            "description": r"a\b c'd \"e\" f_g",
        },
        "tags": ["chat", "MoE"],
    },
    "qwen2": {
        "fields": {
            "downloaded_at": moment(20),
            "size_bytes": 0,
            "context_length": 0,
            "format": "gguf",
            "architecture": "qwen2",
            "quantization": "q4_k_m",
            "claimed_license": "apache-2.0",
            "claimed_kind": "unknown",
        },
        "tags": ["moe"],
        "pinned": True,
    },
    "ΟΔΟΣ": {
        "fields": {"downloaded_at": moment(30), "size_bytes": 2**33 + 7},
        "uses": 1,
        "pinned": True,
    },
    "undated": {"fields": {"description": ""}},
}
EVERYTHING = set(CORPUS)


def of_the_corpus(reference):
    return a_model(reference, **CORPUS[reference]["fields"])


async def fill(database):
    """Record the corpus; some of its models were used, at second 100 and at second 200."""
    await upgrade(database.target)
    async with open_catalog(database.target) as catalog:
        await catalog.register_models(of_the_corpus(reference) for reference in CORPUS)
        for reference, entry in CORPUS.items():
            provider = entry["fields"].get("provider", "hf")
            await catalog.tag_model(reference, provider, *entry.get("tags", ()))
            if "uses" in entry:
                await catalog.record_use(reference, provider, count=entry["uses"])
            if "pinned" in entry:
                await catalog.pin_model(reference, provider)
    used = int(moment(100).timestamp())
    database.run("UPDATE models SET last_used_at = ? WHERE reference = 'Llama-3-8B'", used)
    database.run("UPDATE models SET last_used_at = ? WHERE reference = 'ΟΔΟΣ'", used + 100)
    database.run("UPDATE models SET downloaded_at = NULL WHERE reference = 'undated'")


@pytest.fixture(scope="module")
def corpus_on_sqlite(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "catalog.db"
    found = Database("sqlite", str(path), path=path)
    asyncio.run(fill(found))
    return found


@pytest.fixture(scope="module")
def corpus_on_postgresql(pg_server):
    with postgres.database(pg_server, "corpus") as url:
        asyncio.run(fill(postgresql_database("asyncpg", url)))
        yield url


@pytest.fixture
def corpus_database(backend, request):
    if backend == "sqlite":
        return request.getfixturevalue("corpus_on_sqlite")
    return postgresql_database(backend, request.getfixturevalue("corpus_on_postgresql"))


@pytest.fixture
async def corpus(corpus_database):
    """A catalog with the corpus, which tests only read."""
    async with open_catalog(corpus_database.target) as catalog:
        yield catalog


def in_zone(second, hours):
    return moment(second).astimezone(timezone(timedelta(hours=hours)))


CUT = timedelta(microseconds=500_000)

FILTERS = {
    "no filters": ({}, EVERYTHING),
    "all filters None": ({"provider": None, "tags": None, "pinned": None}, EVERYTHING),
    "provider": ({"provider": "ollama"}, {"mixtral"}),
    "provider's case": ({"provider": "Ollama"}, set()),
    "reference": ({"reference": "qwen2"}, {"qwen2"}),
    "reference's case": ({"reference": "QWEN2"}, set()),
    "part of a reference": ({"reference": "qwen"}, set()),
    "kind of the user": ({"kind": "model"}, {"Llama-3-8B"}),
    "kind of the files": ({"kind": "adapter"}, {"mixtral"}),
    "unknown kind": ({"kind": "unknown"}, EVERYTHING - {"Llama-3-8B", "mixtral"}),
    "format": ({"format": "gguf"}, {"Llama-3-8B", "qwen2"}),
    "architecture": ({"architecture": "mixtral"}, {"mixtral"}),
    "architecture from a header": ({"architecture": "llama"}, {"Llama-3-8B"}),
    "quantization": ({"quantization": "Q4_K_M"}, {"Llama-3-8B", "mixtral"}),
    "license": ({"license": "apache-2.0"}, {"qwen2"}),
    "minimum size": ({"min_size_bytes": 100}, {"Llama-3-8B", "mixtral", "ΟΔΟΣ"}),
    "minimum size 0": ({"min_size_bytes": 0}, EVERYTHING - {"undated"}),
    "maximum size": ({"max_size_bytes": 100}, {"Llama-3-8B", "qwen2"}),
    "range of sizes": ({"min_size_bytes": 1, "max_size_bytes": 199}, {"Llama-3-8B"}),
    "empty range": ({"min_size_bytes": 2, "max_size_bytes": 1}, set()),
    "greatest integer": ({"min_size_bytes": HUGE}, set()),
    "minimum context length": ({"min_context_length": 8192}, {"Llama-3-8B", "mixtral"}),
    "minimum context length 0": ({"min_context_length": 0}, {"Llama-3-8B", "mixtral", "qwen2"}),
    "downloaded after": ({"downloaded_after": moment(20)}, {"ΟΔΟΣ"}),
    "downloaded after a fraction of a second": (
        {"downloaded_after": moment(20) - CUT},
        {"mixtral", "qwen2", "ΟΔΟΣ"},
    ),
    "downloaded before": ({"downloaded_before": moment(20)}, {"Llama-3-8B"}),
    "downloaded before a fraction of a second": (
        {"downloaded_before": moment(20) + CUT},
        {"Llama-3-8B", "mixtral", "qwen2"},
    ),
    "downloaded between": (
        {"downloaded_after": moment(10), "downloaded_before": moment(30)},
        {"mixtral", "qwen2"},
    ),
    "downloaded before, in another time zone": (
        {"downloaded_before": in_zone(20, -9)},
        {"Llama-3-8B"},
    ),
    "downloaded before the greatest time": (
        {"downloaded_before": datetime.max.replace(tzinfo=UTC)},
        EVERYTHING - {"undated"},
    ),
    "downloaded after the greatest time": (
        {"downloaded_after": datetime.max.replace(tzinfo=UTC)},
        set(),
    ),
    "downloaded before the least time": (
        {"downloaded_before": datetime.min.replace(tzinfo=UTC)},
        set(),
    ),
    "used after": ({"used_after": moment(100)}, {"ΟΔΟΣ"}),
    "used before": ({"used_before": moment(200)}, {"Llama-3-8B"}),
    "used before a fraction of a second": (
        {"used_before": moment(200) + CUT},
        {"Llama-3-8B", "ΟΔΟΣ"},
    ),
    "never used": ({"never_used": True}, {"mixtral", "qwen2", "undated"}),
    "used": ({"never_used": False}, {"Llama-3-8B", "ΟΔΟΣ"}),
    "pinned": ({"pinned": True}, {"qwen2", "ΟΔΟΣ"}),
    "not pinned": ({"pinned": False}, {"Llama-3-8B", "mixtral", "undated"}),
    "one tag": ({"tags": ["CHAT"]}, {"Llama-3-8B", "mixtral"}),
    "all tags": ({"tags": ["chat", "moe"]}, {"mixtral"}),
    "one tag in two spellings": ({"tags": ["moe", "MOE"]}, {"mixtral", "qwen2"}),
    "empty list of tags": ({"tags": []}, EVERYTHING),
    "tag that no model has": ({"tags": ["chat", "none"]}, set()),
    "part of a tag": ({"tags": ["cha"]}, set()),
    "tag with a decomposed umlaut": ({"tags": ["GRO\u0308SSE"]}, {"Llama-3-8B"}),
    "any_tags": ({"any_tags": ("größe", "moe")}, {"Llama-3-8B", "mixtral", "qwen2"}),
    "empty any_tags": ({"any_tags": set()}, set()),
    "a thousand tags": ({"tags": ["chat", *map(str, range(999))]}, set()),
    "a thousand any_tags": (
        {"any_tags": ["chat", *map(str, range(999))]},
        {"Llama-3-8B", "mixtral"},
    ),
    "search in a reference": ({"search": "LAMA-3"}, {"Llama-3-8B"}),
    "search in a description": ({"search": "QUESTION"}, {"Llama-3-8B"}),
    "search in a tag": ({"search": "hat"}, {"Llama-3-8B", "mixtral"}),
    "search in reference, description and tag": (
        {"search": "M"},
        {"Llama-3-8B", "mixtral", "qwen2"},
    ),
    "empty search": ({"search": ""}, EVERYTHING),
    "search across fields": ({"search": "8bAnswers"}, set()),
    "search for a provider": ({"search": "ollama"}, set()),
    "search and format": ({"search": "moe", "format": "gguf"}, {"qwen2"}),
    "provider and tag": ({"provider": "hf", "tags": ["chat"]}, {"Llama-3-8B"}),
    "tags and any_tags": ({"tags": ["moe"], "any_tags": ["chat", "x"]}, {"mixtral"}),
    "all filters": (
        {
            "provider": "hf",
            "reference": "Llama-3-8B",
            "search": "straße",
            "tags": ["chat"],
            "any_tags": ["größe", "x"],
            "format": "gguf",
            "architecture": "llama",
            "quantization": "Q4_K_M",
            "license": "llama3",
            "min_size_bytes": 100,
            "max_size_bytes": 100,
            "min_context_length": 1,
            "downloaded_after": moment(9),
            "downloaded_before": moment(11),
            "used_after": moment(99),
            "used_before": moment(101),
            "never_used": False,
            "pinned": False,
        },
        {"Llama-3-8B"},
    ),
    "contradiction": ({"never_used": True, "used_before": moment(999)}, set()),
}


@pytest.mark.parametrize(("filters", "expected"), FILTERS.values(), ids=FILTERS)
async def test_every_operation_has_the_same_filters(corpus, filters, expected):
    """
    List, iteration, count, total size, statistics and the list of tags select the same models.
    """
    sizes = [CORPUS[reference]["fields"].get("size_bytes", 0) for reference in expected]
    tags = Counter(tag.casefold() for name in expected for tag in CORPUS[name].get("tags", ()))

    listed = await corpus.list_models(**filters)
    stats = await corpus.stats(**filters)

    assert {model.reference for model in listed} == expected
    assert [m.ref async for m in corpus.iter_models(**filters)] == [m.ref for m in listed]
    assert await corpus.count_models(**filters) == len(expected)
    assert await corpus.get_total_size(**filters) == sum(sizes)
    # All models have the same path and no list of files, so their bytes are counted once.
    assert stats.total == ModelTotals(len(expected), sum(sizes), max(sizes, default=0))
    counts = await corpus.list_tags(**filters)
    assert {count.tag.casefold(): count.model_count for count in counts} == tags


async def test_a_filter_compares_the_header_value_unless_the_user_set_one(catalog):
    """
    The value that the header states counts while the user's field is None.
    """
    await catalog.register_model(
        a_model("m", claimed_architecture="llama", claimed_context_length=4096)
    )

    async def known(**filters):
        return await catalog.count_models(**filters) == 1

    assert await known(architecture="llama", min_context_length=4096)
    await catalog.update_model("m", "hf", architecture="qwen2", context_length=2048)
    assert not await known(architecture="llama")
    assert not await known(min_context_length=4096)
    assert await known(architecture="qwen2", min_context_length=2048)
    await catalog.update_model("m", "hf", architecture=None, context_length=None)
    assert await known(architecture="llama", min_context_length=4096)


@pytest.mark.parametrize(
    ("text", "search", "found"),
    [
        ("Straße", "STRASSE", True),
        ("STRASSE", "straße", True),
        ("STRAẞE", "strasse", True),
        ("M\u00c4RZ", "ma\u0308rz", True),
        ("Ma\u0308rz", "m\u00e4R", True),
        ("März", "marz", False),
        ("ΟΔΟΣ", "οδος", True),
        ("οδός", "ΟΔΌΣ", True),
        ("\u03c3", "\u03c2", True),
        ("DİL", "di\u0307l", True),
        ("DİL", "DIL", False),
        ("\u0131l\u0131k", "ILIK", False),
        ("\u0131l\u0131k", "\u0131L\u0131K", True),
        ("ПРИВЕТ", "привет", True),
        ("\ufb01ne", "FINE", True),
        ("A\u030angstr\u00f6m", "\u212bNGSTRO\u0308M", True),
        ("\U00010400", "\U00010428", True),
        ("\U0001f999 model", "\U0001f999 M", True),
        ("ǆ", "ǅ", True),
        ("한국", "\u1112\u1161\u11ab", True),
    ],
    ids=[
        "sharp s found by two letters",
        "two letters found by sharp s",
        "capital sharp s",
        "composed umlaut found by a decomposed one",
        "decomposed umlaut found by a composed one",
        "umlaut not found by its letter",
        "final sigma",
        "final sigma in the search",
        "sigma alone",
        "dotted I is an i and a dot",
        "dotted I is not an I",
        "dotless i is not an I",
        "dotless i is itself",
        "Cyrillic",
        "ligature",
        "Angstrom sign",
        "Deseret beyond 16 bits",
        "emoji",
        "title case",
        "decomposed Hangul",
    ],
)
async def test_search_ignores_case_in_any_script(catalog, text, search, found):
    """
    Search compares by Unicode's default case folding of composed text, without the rules of a
    language. The result is the same on every database.
    """
    await catalog.register_model(a_model(f"<{text}>"))
    await catalog.register_model(a_model("described", description=f"is {text} there"))
    await catalog.register_model(a_model("tagged"))
    await catalog.tag_model("tagged", "hf", f"#{text}")

    listed = await catalog.list_models(search=search, sort=Sort.REFERENCE)

    expected = [f"<{text}>", "described", "tagged"] if found else []
    assert [model.reference for model in listed] == expected


@pytest.mark.parametrize(
    "text",
    ["%", "_", "\\", "'", '"', "\\%", ".*", "[a-z]", "*", "?", "'; --", "$1", ":p", "%s", "\n"],
    ids=[
        "percent",
        "underscore",
        "backslash",
        "quote",
        "double quote",
        "escaped percent",
        "regular expression",
        "character class",
        "asterisk",
        "question mark",
        "semicolon",
        "numbered parameter",
        "named parameter",
        "format",
        "line break",
    ],
)
async def test_search_has_no_wildcards(catalog, text):
    """
    A character that has a meaning in LIKE, in a regular expression or in SQL matches only itself.
    """
    await catalog.register_model(a_model("with", description=f"a{text}b"))
    await catalog.register_model(a_model("without", description="axyzb"))

    found = await catalog.list_models(search=f"A{text}B")

    assert [model.reference for model in found] == ["with"]
    assert await catalog.count_models(search=text) == 1


async def test_search_finds_the_current_description_and_tags(catalog):
    """
    A description is found until it is changed or cleared, and so is a tag.
    """

    async def found(text):
        return await catalog.count_models(search=text) == 1

    await catalog.register_model(a_model("m", description="First"))
    assert await found("first")
    await catalog.register_model(a_model("m"))
    assert await found("first")
    await catalog.update_model("m", "hf", description="SECOND")
    assert (await found("first"), await found("second")) == (False, True)
    await catalog.register_model(a_model("m", description="Third"))
    assert (await found("second"), await found("third")) == (False, True)
    await catalog.register_models([a_model("m", description="Fourth")])
    assert (await found("third"), await found("fourth")) == (False, True)
    await catalog.update_model("m", "hf", description=None)
    assert not await found("fourth")
    await catalog.tag_model("m", "hf", "Fifth")
    assert await found("fifth")
    await catalog.untag_model("m", "hf", "FIFTH")
    assert not await found("fifth")


@pytest.mark.parametrize(
    ("text", "matched"),
    [("x" * 1000, True), ("x" * 999 + "y", False)],
    ids=["found", "not found"],
)
async def test_the_longest_search_is_exact(catalog, text, matched):
    """
    A text of 1,000 characters is searched in the longest description.
    """
    await catalog.register_model(a_model("m", description="x" * 64 * 1024))

    assert await catalog.count_models(search=text) == matched


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"search": "x" * 10_000}, "is 10000 characters long"),
        ({"search": "a\0b"}, "NUL"),
        ({"search": "\ud800"}, "surrogate"),
        ({"search": b"abc"}, "bytes"),
        ({"provider": 1}, "int"),
        ({"reference": "\ud800"}, "surrogate"),
        ({"architecture": ["llama"]}, "list"),
        ({"tags": "abc"}, "give a list of str"),
        ({"any_tags": "abc"}, "give a list of str"),
        ({"tags": [1]}, "int"),
        ({"tags": [" "]}, "blank"),
        ({"tags": 5}, "not a list"),
        ({"tags": list(map(str, range(1001)))}, "at most 1000"),
        ({"any_tags": list(map(str, range(100_000)))}, "at most 1000"),
        ({"min_size_bytes": -1}, "out of range"),
        ({"max_size_bytes": 2**63}, "out of range"),
        ({"max_size_bytes": 1.5}, "float"),
        ({"min_context_length": True}, "bool"),
        ({"min_context_length": "4096"}, "str"),
        ({"downloaded_after": datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001 - it is refused
        ({"used_before": datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001 - it is refused
        ({"used_after": "2026-01-01"}, "str"),
        ({"downloaded_before": 1767225600}, "int"),
        ({"never_used": 1}, "neither True nor False"),
        ({"pinned": "yes"}, "neither True nor False"),
    ],
    ids=[
        "search too long",
        "search with a NUL",
        "search with a surrogate",
        "search for bytes",
        "provider a number",
        "reference not a text",
        "architecture a list",
        "tags a bare string",
        "any_tags a bare string",
        "tag a number",
        "tag blank",
        "tags not a list",
        "too many tags",
        "too many any_tags",
        "size below zero",
        "size too large",
        "size a fraction",
        "context a bool",
        "context a text",
        "time without a zone",
        "time of use without a zone",
        "time a text",
        "time a number",
        "never used a number",
        "pinned a text",
    ],
)
@pytest.mark.slow_with("asyncpg")
async def test_an_invalid_filter_value_is_refused(catalog, filters, message):
    """
    Every operation raises an error for a filter of the wrong kind, and never returns an empty
    result.
    """
    (field,) = filters

    for ask in (
        catalog.list_models,
        catalog.count_models,
        catalog.get_total_size,
        catalog.stats,
        catalog.list_tags,
    ):
        with pytest.raises(InvalidModelError, match=message) as caught:
            await ask(**filters)
        assert caught.value.field == field
    with pytest.raises(InvalidModelError, match=message):
        await anext(catalog.iter_models(**filters))


async def test_an_unknown_filter_raises_type_error(catalog):
    """
    The error names the filters that exist.
    """
    asked = [
        catalog.list_models(size=1),
        catalog.count_models(size=1),
        catalog.get_total_size(size=1),
        catalog.stats(size=1),
        catalog.list_tags(size=1),
        anext(catalog.iter_models(size=1)),
    ]

    for call in asked:
        with pytest.raises(TypeError, match=r"no filter 'size': use one of provider, .*, pinned"):
            await call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort": "size_bytes"}, "is not a Sort: use one of downloaded_at, "),
        ({"sort": "size_bytes; DROP TABLE models"}, "is not a Sort"),
        ({"sort": None}, "is not a Sort"),
        ({"limit": -1}, "out of range"),
        ({"limit": 2**63}, "out of range"),
        ({"limit": 1.5}, "float"),
        ({"limit": "5"}, "str"),
        ({"limit": True}, "bool"),
        ({"after": "m"}, "is a str: pass a Model"),
    ],
    ids=[
        "sort by a text",
        "sort by SQL",
        "sort by None",
        "limit below zero",
        "limit too large",
        "limit a fraction",
        "limit a text",
        "limit a bool",
        "after a text",
    ],
)
@pytest.mark.slow_with("asyncpg")
async def test_an_invalid_order_or_page_is_refused(catalog, options, message):
    """
    The order is a member of an enumeration and never a text; a page is a number and a model.
    """
    (field,) = options

    with pytest.raises(InvalidModelError, match=message) as caught:
        await catalog.list_models(**options)

    assert caught.value.field == field


# Locales sort case, accents and punctuation differently from bytes; UTF-16 sorts the last two so.
NAMES = ["B", "a", "Z", "_", "ä", "a\u0308", "é", "É", "a-b", "ab", "a b", "A b", "~"]
NAMES += ["\u4e2d", "\uffff", "\U0001f999"]


def some_models(rng, names):
    """Return models with few different values, many of them None, so that most are equal."""

    def some(*values):
        return rng.choice([None, *values])

    return [
        a_model(
            name,
            provider=rng.choice(NAMES),
            version=rng.choice(["", *NAMES]),
            downloaded_at=moment(rng.randrange(3)),
            size_bytes=some(0, 1, 2**53 + 1, 2**53, HUGE),
            context_length=some(4096, 8192),
            claimed_context_length=some(1, 8192),
            parameter_count=some(1, HUGE),
            architecture=some(*NAMES),
            claimed_architecture=some("a", "B", "\U0001f999"),
            quantization=some("q4", "Q4"),
            claimed_format=some(*NAMES),
        )
        for name in names
    ]


def use_some(rng, database):
    """Set the columns that only uses, time and older catalogs set."""
    for (number,) in database.run("SELECT id FROM models ORDER BY id"):
        database.run(
            "UPDATE models SET use_count = ?, download_count = ? WHERE id = ?",
            *(rng.randrange(3), rng.randrange(3), number),
        )
    database.run("UPDATE models SET last_used_at = id % 5 WHERE id % 2 = 0")
    database.run("UPDATE models SET downloaded_at = NULL WHERE id % 7 = 0")


def in_order(models, sort, descending):
    """Sort models in Python as a listing has to sort them."""

    def value(model):
        found = getattr(model, sort.value)
        return found.encode() if isinstance(found, str) else found

    models = sorted(
        models, key=lambda m: (m.provider.encode(), m.reference.encode(), m.version.encode())
    )
    known = [model for model in models if value(model) is not None]
    known.sort(key=value, reverse=descending)
    return known + [model for model in models if value(model) is None]


def refs(models):
    return [model.ref for model in models]


async def pages_after(catalog, last, **options):
    """Return the pages after a model; fail if a model occurs twice."""
    pages = []
    while page := await catalog.list_models(after=last, **options):
        seen = {last.ref}.union(*map(refs, pages))
        assert not seen.intersection(refs(page)), options
        pages.append(page)
        last = page[-1]
    return pages


ORDERS = list(product(Sort, [False, True]))


@pytest.mark.slow_with("asyncpg")
async def test_every_order_is_total_and_by_bytes(catalog, database):
    """
    For each sort in both directions: texts by bytes, NULL last, ties by provider, reference and
    version.
    """
    rng = random.Random(1)
    await catalog.register_models(some_models(rng, NAMES * 4))
    use_some(rng, database)
    models = await catalog.list_models()

    for sort, descending in ORDERS:
        listed = await catalog.list_models(sort=sort, descending=descending)
        assert refs(listed) == refs(in_order(models, sort, descending)), (sort, descending)
        iterated = [m async for m in catalog.iter_models(sort=sort, descending=descending)]
        assert refs(iterated) == refs(listed), (sort, descending)


async def test_numbers_and_times_are_descending_by_default_and_names_ascending(catalog):
    """
    Without `descending` each sort has its usual direction.
    """
    await catalog.register_models(
        a_model(
            name,
            provider=name,
            downloaded_at=moment(number),
            size_bytes=number,
            context_length=number,
            parameter_count=number,
            architecture=name,
            quantization=name,
            format=name,
        )
        for number, name in enumerate(["a", "b"])
    )
    await catalog.register_model(a_model("b", provider="b", downloaded_at=moment(1)))
    await catalog.record_use("a", "a", count=1)
    await catalog.record_use("b", "b", count=2)
    names = {"provider", "reference", "architecture", "quantization", "format"}

    for sort in set(Sort) - {Sort.LAST_USED_AT}:
        expected = ["a", "b"] if sort.value in names else ["b", "a"]
        listed = await catalog.list_models(sort=sort)
        assert [model.reference for model in listed] == expected, sort
    assert Sort.LAST_USED_AT.descending_by_default


@pytest.mark.slow_with("asyncpg")
async def test_the_pages_of_a_listing_make_up_the_listing(catalog, database):
    """
    In every order, and with a filter, the pages of `limit` and `after` give the whole list.
    """
    rng = random.Random(2)
    await catalog.register_models(some_models(rng, NAMES * 2))
    use_some(rng, database)

    for (sort, descending), filters in product(ORDERS, [{}, {"never_used": True}]):
        options = {"sort": sort, "descending": descending, **filters}
        first = await catalog.list_models(limit=7, **options)
        pages = [first, *await pages_after(catalog, first[-1], limit=7, **options)]

        assert {len(page) for page in pages[:-1]} == {7}, options
        paged = [model.ref for page in pages for model in page]
        assert paged == refs(await catalog.list_models(**options)), options


@pytest.mark.parametrize("where", ["at the front", "in the middle", "among the undated"])
def test_a_page_of_the_default_order_is_read_from_the_index(database, where):
    """
    Wherever a page starts, the database reads only the rows of the page.
    """
    numbers = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 30000)"
        if database.path is not None
        else "WITH numbers AS (SELECT generate_series(1, 30000) AS n)"
    )
    database.run(
        f"INSERT INTO models (provider, reference, local_path, downloaded_at) {numbers}"
        " SELECT CASE WHEN n % 10 > 0 THEN 'hf' ELSE 'local' END, 'm' || n, '/m',"
        " CASE WHEN n % 3 > 0 THEN n / 7 END FROM numbers"
    )
    database.run("ANALYZE models")
    order = SortOrder.validated(Sort.DOWNLOADED_AT, None)
    last = {
        "at the front": None,
        "in the middle": a_model("m2503", version="", downloaded_at=moment(357)),
        "among the undated": a_model("m2502", version="", downloaded_at=None),
    }[where]
    window, values = Page.validated(order, last and order.position_of(last), 50)
    dialect = database.target_url.get_dialect()()
    query = window.apply_to(select_models(dialect.name), [Model.host == ""]).params(values)
    sql = query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})

    if database.path is not None:
        plan = [row[3] for row in database.run(f"EXPLAIN QUERY PLAN {sql}")]
        assert not [step for step in plan if step.startswith("SCAN models")], plan
    else:
        plan = [row[0] for row in database.run(f"EXPLAIN {sql}".replace("%%", "%"))]
        assert not [step for step in plan if "Seq Scan on models" in step], plan
    assert any("ix_models_newest_first" in step for step in plan), plan


async def test_a_limit_of_zero_is_an_empty_page(catalog):
    """
    limit=0 is a page without models, and the greatest limit lists all models.
    """
    await catalog.register_model(a_model("m"))

    assert await catalog.list_models(limit=0) == []
    assert len(await catalog.list_models(limit=HUGE)) == 1


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_rows_written_between_two_pages_do_not_shift_the_next(catalog, database):
    """
    Rows are added and removed before and after the cursor, and the cursor's own row is removed.
    The next pages have each row after the cursor once.
    """
    rng = random.Random(3)
    await catalog.register_models(some_models(rng, NAMES * 2))
    use_some(rng, database)
    async with open_catalog(database.target) as others:
        for turn, (sort, descending) in enumerate(ORDERS):
            options = {"sort": sort, "descending": descending}
            page = await catalog.list_models(limit=rng.randrange(1, 20), **options)
            cursor = page[-1]

            known = await others.list_models()
            for model in [cursor, *rng.sample(known, 5)]:
                await others.remove_model(model.reference, model.provider, model.version)
            await others.register_models(some_models(rng, [f"{name}{turn}" for name in NAMES[:6]]))
            behind = in_order([*await others.list_models(), cursor], sort, descending)
            behind = behind[behind.index(cursor) + 1 :]
            pages = await pages_after(catalog, cursor, limit=5, **options)

            assert [model.ref for page in pages for model in page] == refs(behind), options


async def test_a_model_that_is_registered_again_is_not_listed_twice(catalog):
    """
    In the default order a model that is registered between two pages moves to the front.
    """
    await catalog.register_models(a_model(f"m{n}", downloaded_at=moment(n)) for n in range(9))

    first = await catalog.list_models(limit=4)
    for model in first:
        await catalog.register_model(a_model(model.reference, downloaded_at=moment(100)))
    rest = await catalog.list_models(after=first[-1])

    assert [model.reference for model in first + rest] == [f"m{n}" for n in reversed(range(9))]


async def test_stats_equal_the_sums_of_the_listed_models(catalog, database):
    """
    Each group has its number of models and of bytes, exact beyond 2**63. The group None has the
    models without a value, and the largest group is first.
    """
    rng = random.Random(4)
    await catalog.register_models(some_models(rng, NAMES * 3))
    await catalog.register_models(a_model(f"huge {n}", size_bytes=HUGE) for n in range(3))
    models = await catalog.list_models()

    stats = await catalog.stats()

    kinds = {
        "provider": stats.by_provider,
        "format": stats.by_format,
        "architecture": stats.by_architecture,
        "quantization": stats.by_quantization,
    }
    for kind, found in kinds.items():
        members = {}
        for model in models:
            members.setdefault(getattr(model, kind), []).append(model.size_bytes or 0)
        # All models have the same path and no list of files, so their bytes are counted once.
        expected = {key: ModelTotals(len(own), sum(own), max(own)) for key, own in members.items()}
        assert found == expected, kind
        sizes = [tally.size_bytes for tally in found.values()]
        assert sizes == sorted(sizes, reverse=True), kind
    sizes = [model.size_bytes or 0 for model in models]
    assert stats.total == ModelTotals(len(models), sum(sizes), max(sizes))
    assert stats.total.size_bytes > 2**64
    assert None in stats.by_format
    assert type(stats.total.size_bytes) is int


async def test_groups_of_equal_size_are_sorted_by_count_and_name(catalog):
    """
    Groups with equal sizes are sorted by their number of models, then by name, None last.
    """
    await catalog.register_models(
        a_model(f"m{number}", format=kind)
        for number, kind in enumerate(["b", None, "B", "None", "two", "two", "zz"])
    )

    stats = await catalog.stats()

    assert list(stats.by_format) == ["two", "B", "None", "b", "zz", None]


async def test_stats_are_of_one_snapshot(catalog, database):
    """
    While another task writes, the groups of each kind add up to the same total.
    """
    seen = []

    async def write(others):
        for number in range(40):
            await others.register_model(a_model(f"m{number}", size_bytes=1))

    async with open_catalog(database.target) as others:
        writing = asyncio.create_task(write(others))
        while not writing.done():
            seen.append(await catalog.stats())
        await writing
    seen.append(await catalog.stats())

    for stats in seen:
        for kinds in (stats.by_provider, stats.by_format, stats.by_quantization):
            assert sum(tally.model_count for tally in kinds.values()) == stats.total.model_count
    assert seen[-1].total.model_count == 40


@pytest.mark.parametrize(
    ("sort", "changes"),
    [
        (Sort.SIZE_BYTES, {"size_bytes": 2**70}),
        (Sort.SIZE_BYTES, {"size_bytes": "1"}),
        (Sort.REFERENCE, {"reference": "\ud800"}),
        (Sort.REFERENCE, {"reference": "a\0b"}),
        (Sort.DOWNLOADED_AT, {"reference": 5}),
        (Sort.DOWNLOADED_AT, {"downloaded_at": "yesterday"}),
        (Sort.DOWNLOADED_AT, {"downloaded_at": datetime(2026, 1, 1)}),  # noqa: DTZ001
        (Sort.USE_COUNT, {}),
    ],
    ids=repr,
)
@pytest.mark.slow_with("asyncpg")
async def test_an_after_with_invalid_values_is_refused(catalog, sort, changes):
    """
    `after` may be a model that was made by hand, so its values are validated.
    """
    last = a_model("m", **changes) if "reference" not in changes else a_model(**changes)

    with pytest.raises(InvalidModelError):
        await catalog.list_models(sort=sort, after=last)


async def test_descending_must_be_a_bool_or_none(catalog):
    """
    A text is refused, although it is true.
    """
    with pytest.raises(InvalidModelError, match="descending 'no'"):
        await catalog.list_models(descending="no")
