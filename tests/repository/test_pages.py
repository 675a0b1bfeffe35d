"""Pages for HTTP: `list_page` and its tokens."""

import base64
import json
import zlib
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest
from conftest import a_model, moment
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import InvalidModelError, Sort, open_catalog
from model_catalog.domain.page_token import Listing, Position


async def all_pages(catalog, **arguments) -> list[list[str]]:
    pages, token = [], None
    while True:
        page = await catalog.list_page(page_token=token, **arguments)
        pages.append([model.reference for model in page.models])
        token = page.next_token
        if token is None:
            return pages


@pytest.mark.parametrize("descending", [True, False], ids=["down", "up"])
@pytest.mark.parametrize(
    "sort", [Sort.DOWNLOADED_AT, Sort.SIZE_BYTES, Sort.ARCHITECTURE, Sort.REFERENCE]
)
async def test_the_pages_are_the_listing(catalog, sort, descending):
    """
    For times, numbers and names, with equal values and values that are not known.
    """
    await catalog.register_models(
        [
            a_model(
                f"m/{number}-模型",
                downloaded_at=moment(number // 2),
                size_bytes=number // 2 if number % 3 else None,
                architecture="llama" if number % 2 else None,
            )
            for number in range(5)
        ]
    )

    pages = await all_pages(catalog, limit=2, sort=sort, descending=descending, provider="hf")

    listed = await catalog.list_models(sort=sort, descending=descending)
    assert [len(page) for page in pages] == [2, 2, 1]
    assert list(chain(*pages)) == [model.reference for model in listed]


async def test_the_last_full_page_has_no_token(on_sqlite):
    """
    A client never fetches an empty page, unless models were removed; nor is there one without
    models.
    """
    assert (await on_sqlite.list_page()).next_token is None
    await on_sqlite.register_models([a_model("a"), a_model("b")])

    assert await all_pages(on_sqlite, limit=2) == [["a", "b"]]


async def test_a_token_is_url_safe_and_the_page_size_may_change(on_sqlite):
    """
    It consists of unreserved characters of RFC 3986, also for names that are not ASCII.
    """
    await on_sqlite.register_models([a_model(f"模型/{number}?&=") for number in range(4)])

    token = (await on_sqlite.list_page(limit=1)).next_token
    rest = await on_sqlite.list_page(limit=100, page_token=token)

    assert token.replace("-", "").replace("_", "").isalnum()
    assert token.isascii()
    assert len(rest.models) == 3


OTHER_LISTINGS = {
    "sort": ({"sort": Sort.SIZE_BYTES}, "sorted by downloaded_at, descending"),
    "direction": ({"descending": False}, "sorted by downloaded_at, descending"),
    "filter": ({"provider": "hf"}, "other filters"),
    "no filter": ({"tags": None}, "other filters"),
}


@pytest.mark.parametrize(("changed", "message"), OTHER_LISTINGS.values(), ids=OTHER_LISTINGS)
async def test_a_token_of_another_listing_is_refused(on_sqlite, changed, message):
    """
    Its position would have no meaning there, and a page would be skipped silently.
    """
    await on_sqlite.register_models([a_model("a"), a_model("b")])
    await on_sqlite.tag_model("hf:a", tags=["chat"])
    await on_sqlite.tag_model("hf:b", tags=["chat"])
    token = (await on_sqlite.list_page(limit=1, tags=["chat"])).next_token

    with pytest.raises(InvalidModelError, match=message) as caught:
        await on_sqlite.list_page(page_token=token, **{"tags": ["chat"], **changed})

    assert caught.value.field == "page_token"


async def test_equal_filters_belong_to_the_same_listing(on_sqlite):
    """
    The order and the type of a list, the time zone of a bound and a filter of None do not matter.
    """
    await on_sqlite.register_models([a_model("a"), a_model("b")])
    before = datetime(2100, 1, 1, tzinfo=UTC)
    token = (
        await on_sqlite.list_page(limit=1, ids=[1, 2], downloaded_before=before, license=None)
    ).next_token

    zone = (before.astimezone(UTC) + timedelta(0)).astimezone()
    page = await on_sqlite.list_page(page_token=token, ids=iter((2, 1, 1)), downloaded_before=zone)

    assert len(page.models) == 1


def forge(content) -> str:
    """Return a token with a correct checksum, as only a client that means it can make."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(zlib.crc32(text).to_bytes(4, "big") + text).decode()


def tokens() -> dict[str, object]:
    listing = Listing("downloaded_at", is_descending=True, is_by_time=True, filters={})
    token = listing.encode_token(Position(moment(0), "hf", "m", ""))
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    head = json.loads(raw[4:])[:4]
    return {
        "empty": "",
        "text": "page 2",
        "cut": token[:-2],
        "changed": token[:20] + "A" + token[21:],
        "longer": token + "AAAA",
        "not ASCII": "模型",
        "bytes": token.encode(),
        "number": 3,
        "JSON without a checksum": base64.urlsafe_b64encode(b'[1,"downloaded_at"]').decode(),
        "another name": base64.urlsafe_b64encode(raw.replace(b'"m"', b'"n"')).decode(),
        "another version": forge([2]),
        "forged and short": forge([1]),
        "forged without a key": forge([*head, [0]]),
        "forged with a long key": forge([*head, [0, "a", "b", "c", "d"]]),
        "forged with a time as text": forge([*head, ["0", "a", "b", "c"]]),
        "forged with a huge time": forge([*head, [10**30, "a", "b", "c"]]),
        "forged with a number as a name": forge([*head, [0, 1, "b", "c"]]),
        "forged with a NUL": forge([*head, [0, "\0", "b", "c"]]),
        "forged with a surrogate": forge([*head, [0, "\ud800", "b", "c"]]),
        "forged with an object": forge({"1": 2}),
        "forged and deep": forge(b"[" * 100_000),
    }


@pytest.mark.parametrize("token", tokens().values(), ids=tokens())
async def test_a_damaged_token_is_refused(on_sqlite, token):
    """
    A client gets words to pass on, and never a page of somewhere else.
    """
    with pytest.raises(InvalidModelError) as caught:
        await on_sqlite.list_page(page_token=token)

    assert caught.value.field == "page_token"


@given(st.text(), st.one_of(st.none(), st.text(), st.integers(0, 2**63 - 1)))
def test_every_position_is_decoded_as_it_was_encoded(text, value):
    """
    Names may contain any character.
    """
    try:
        text.encode()
        f"{value}".encode()
    except UnicodeEncodeError:
        return
    listing = Listing("reference", is_descending=False, is_by_time=False, filters={})
    position = Position(value, text, text, text)

    assert listing.decode_token(listing.encode_token(position)) == position


@pytest.mark.parametrize("limit", [0, -1, None, 2**63, True, "1"])
async def test_an_invalid_page_size_is_refused(on_sqlite, limit):
    """
    A page has at least one model.
    """
    with pytest.raises(InvalidModelError, match="limit"):
        await on_sqlite.list_page(limit=limit)


async def test_the_largest_page_size_is_valid(on_sqlite):
    """
    The statement asks for one row more, which must not overflow.
    """
    await on_sqlite.register_model(a_model("m"))

    assert len((await on_sqlite.list_page(limit=2**63 - 1)).models) == 1


UNINDEXED = [
    Sort.DOWNLOAD_COUNT,
    Sort.CONTEXT_LENGTH,
    Sort.PARAMETER_COUNT,
    Sort.ARCHITECTURE,
    Sort.QUANTIZATION,
    Sort.FORMAT,
]


@pytest.mark.parametrize("sort", UNINDEXED)
async def test_an_order_without_an_index_is_sorted_once_by_an_iteration(on_sqlite, tmp_path, sort):
    """Each page would read and sort all models, so the time would grow with their square."""
    await on_sqlite.register_models(
        a_model(f"m{number}", context_length=number % 7, architecture="llama")
        for number in range(1_600)
    )
    scans: list[str] = []
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'catalog.db'}")
    event.listen(engine.sync_engine, "before_cursor_execute", record_scan(scans))
    async with open_catalog(engine) as catalog:
        listed = [row.reference for row in await on_sqlite.list_rows(sort=sort)]
        scans.clear()

        iterated = [row.reference async for row in catalog.iter_rows(sort=sort)]
    await engine.dispose()

    assert iterated == listed
    assert len(scans) == 1, scans


def record_scan(scans: list[str]):
    """Return a listener that notes each statement that reads all models."""

    def listen(_connection, cursor, text, parameters, _context, _many) -> None:
        if text.startswith("SELECT"):
            cursor.execute(f"EXPLAIN QUERY PLAN {text}", parameters)
            steps = [step[3] for step in cursor.fetchall()]
            scans.extend(step for step in steps if step.startswith("SCAN models"))

    return listen


@pytest.mark.parametrize("sort", [Sort.DOWNLOADED_AT, Sort.FORMAT])
async def test_an_iteration_applies_filters_that_can_be_read_once_to_all_pages(on_sqlite, sort):
    """An iterator is empty when the second page is read."""
    await on_sqlite.register_models(a_model(f"m{number}") for number in range(1_200))
    for number in range(0, 1_200, 2):
        await on_sqlite.tag_model(f"m{number}", "hf", "even")

    found = [row.reference async for row in on_sqlite.iter_rows(sort=sort, tags=iter(["even"]))]

    assert len(found) == 600


async def test_a_model_that_changes_is_yielded_once_in_an_order_without_an_index(catalog):
    """It stays where it was at the start, with its present fields; a removed one is left out."""
    await catalog.register_models(
        a_model(f"m{number:03}", context_length=number) for number in range(1_100)
    )
    found = []
    async for model in catalog.iter_models(sort=Sort.CONTEXT_LENGTH, descending=False):
        if not found:
            await catalog.register_model(a_model("m001", context_length=5_000, license="mit"))
            await catalog.register_model(a_model("m800", context_length=0, license="mit"))
            await catalog.remove_model("m900", "hf")
            await catalog.register_model(a_model("new", context_length=9_000))
        found.append(model)

    names = [model.reference for model in found]
    assert names == [f"m{number:03}" for number in range(1_100) if number != 900]
    assert found[800].license == "mit"
