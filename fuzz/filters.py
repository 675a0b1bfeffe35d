"""Target filters: InvalidModelError, or the models that a reference implementation returns."""

from __future__ import annotations

import asyncio
import io
import json
import operator
import random
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, TypeAlias

from hypothesis import strategies as st

from model_catalog import InvalidModelError, ModelCatalog, Sort, open_catalog
from model_catalog.domain.fields import HEADER_FIELDS
from model_catalog.domain.ndjson import HEADER
from model_catalog.repository.statements.filters import Filters

IS_RAW: Final = False
SEEDS: Final = ()

Row: TypeAlias = Mapping[str, Any]

_WORDS: Final = (
    *("gguf", "GGUF", "llama", "é", "e\u0301", "Straße", "STRASSE", "ΟΔΟΣ", "İ"),
    *("%", "_", "a'b\\"),
)
_DIGESTS: Final = tuple("sha256:" + digit * 64 for digit in "0af")
_NUMBERS: Final = (0, 1, 7, 2**31, 2**53 + 1, 2**63 - 1)
_STATES: Final = ("unchecked", "present", "missing", "changed", "offline", "unreadable")
_KINDS: Final = ("model", "adapter", "draft", "unknown")
_TIMES: Final = (
    *(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second) for second in range(4)),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
)


def _make_models() -> list[dict[str, Any]]:
    """Return the sixty models of the catalog; their values come from small sets, so they repeat."""
    choice = random.Random(20260101)

    def value_or_none(values: tuple[Any, ...]) -> Any:
        return choice.choice(values) if choice.random() < 0.6 else None

    models = []
    for number in range(60):
        model = {name: value_or_none(_WORDS) for name in HEADER_FIELDS}
        model |= {f"claimed_{name}": value_or_none(_WORDS) for name in HEADER_FIELDS}
        for name in ("context_length", "parameter_count"):
            model |= {name: value_or_none(_NUMBERS), f"claimed_{name}": value_or_none(_NUMBERS)}
        model |= {name: value_or_none(_KINDS) for name in ("kind", "claimed_kind")}
        model |= {name: value_or_none(_DIGESTS) for name in ("digest", "found_digest")}
        times = ("downloaded_at", "last_used_at", "pinned_at", "inventoried_at")
        model |= {name: value_or_none(_TIMES) for name in times}
        models.append(
            model
            | {
                "provider": choice.choice(_WORDS[:3]),
                "reference": choice.choice(_WORDS),
                "version": str(number),
                "local_path": "/m",
                "size_bytes": value_or_none(_NUMBERS),
                "use_count": choice.choice(_NUMBERS),
                "download_count": choice.choice(_NUMBERS),
                "description": value_or_none((*_WORDS, "", "x" * 2000)),
                "state": choice.choice(_STATES),
                "incomplete_reason": value_or_none(("", "a shard is missing")),
                "tags": choice.sample(_WORDS[4:], choice.randint(0, 4)),
                "files": [
                    {"path": "a", "size_bytes": 1, "digest": digest}
                    for digest in [value_or_none(_DIGESTS)]
                ],
            }
        )
    return models


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _effective(row: Row, name: str) -> Any:
    return row.get(f"claimed_{name}") if row[name] is None else row[name]


def _compare(name: str, compare: Callable[[Any, Any], bool]) -> Callable[[Row, Any], bool]:
    """Return a condition that compares the value of a row with a bound; unknown is False."""
    return lambda row, bound: (
        _effective(row, name) is not None and compare(_effective(row, name), bound)
    )


def _is_set(name: str) -> Callable[[Row, Any], bool]:
    return lambda row, yes: (row[name] is not None) is yes


def _is_later(at: datetime, bound: datetime) -> bool:
    # Rows and lower bounds have whole seconds: a time within the second of the bound is not later.
    return at > bound.astimezone(UTC).replace(microsecond=0)


def _has_digest(row: Row, digest: str) -> bool:
    of_files = {file["digest"] for file in row["files"]} if row["inventoried_at"] else set()
    wanted = digest.lower()
    return (wanted if ":" in wanted else f"sha256:{wanted}") in {row["digest"], *of_files}


def _has_all(row: Row, tags: list[str]) -> bool:
    return {_fold(tag) for tag in tags} <= {_fold(tag) for tag in row["tags"]}


def _has_any(row: Row, tags: list[str]) -> bool:
    return bool({_fold(tag) for tag in tags} & {_fold(tag) for tag in row["tags"]})


def _contains_text(row: Row, text: str) -> bool:
    texts = [row["reference"], row["description"] or "", *row["tags"]]
    return any(_fold(text) in _fold(each) for each in texts)


_EXACT: Final = (
    *("provider", "reference", "version", "state"),
    *("format", "architecture", "quantization", "license"),
)
_CONDITIONS: Final[Mapping[str, Callable[[Row, Any], bool]]] = {
    **{name: _compare(name, operator.eq) for name in _EXACT},
    "search": _contains_text,
    "tags": _has_all,
    "any_tags": _has_any,
    "min_size_bytes": _compare("size_bytes", operator.ge),
    "max_size_bytes": _compare("size_bytes", operator.le),
    "min_context_length": _compare("context_length", operator.ge),
    "downloaded_after": _compare("downloaded_at", _is_later),
    "downloaded_before": _compare("downloaded_at", operator.lt),
    "used_after": _compare("last_used_at", _is_later),
    "used_before": _compare("last_used_at", operator.lt),
    "never_used": lambda row, yes: (row["last_used_at"] is None) is yes,
    "pinned": _is_set("pinned_at"),
    "digest": _has_digest,
    "damaged": _is_set("found_digest"),
    "incomplete": _is_set("incomplete_reason"),
}
_TEXT_SORTS: Final = {"provider", "reference", "architecture", "quantization", "format"}


def _expected(
    rows: Sequence[Row], filters: Mapping[str, Any], sort: str, *, descending: bool | None
) -> list[str]:
    """Return the expected models, in order, by their versions; each version is one model."""
    applied = {name: value for name, value in filters.items() if value is not None}
    matching = [
        row for row in rows if all(_CONDITIONS[name](row, applied[name]) for name in applied)
    ]
    keys = ("provider", "reference", "version")
    matching.sort(key=lambda row: [row[name].encode() for name in keys])

    def sort_value(row: Row) -> Any:
        found = _effective(row, sort)
        return found.encode() if isinstance(found, str) else found

    known = [row for row in matching if sort_value(row) is not None]
    known.sort(
        key=sort_value, reverse=sort not in _TEXT_SORTS if descending is None else descending
    )
    return [row["version"] for row in known + [row for row in matching if sort_value(row) is None]]


_ARBITRARY_VALUES: Final = st.one_of(
    st.none() | st.booleans() | st.integers(-1, 2**64) | st.floats() | st.text(max_size=9),
    st.sampled_from(["\0", "\ud800", "x" * 1001, "", " "]),
    st.lists(st.text(max_size=5) | st.integers(), max_size=3),
)
_TIME_INPUTS: Final = st.builds(
    lambda number, microseconds, hours: {"at": (number, microseconds, hours)},
    st.integers(0, len(_TIMES) - 1),
    st.sampled_from([0, 1, 999_999]),
    st.sampled_from([0, -9, 14]),
)
_TEXT: Final = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)
_VALID_VALUES: Final = {
    **dict.fromkeys(_EXACT, st.sampled_from(_WORDS) | _TEXT),
    "version": st.integers(0, 60).map(str),
    "search": st.sampled_from([*_WORDS, "", "ss", "S", "x" * 1000]) | _TEXT,
    **dict.fromkeys(("tags", "any_tags"), st.lists(st.sampled_from(_WORDS), max_size=3)),
    **dict.fromkeys(
        ("min_size_bytes", "max_size_bytes", "min_context_length"), st.sampled_from(_NUMBERS)
    ),
    **dict.fromkeys(("downloaded_after", "downloaded_before"), _TIME_INPUTS),
    **dict.fromkeys(("used_after", "used_before"), _TIME_INPUTS),
    **dict.fromkeys(("never_used", "pinned", "damaged", "incomplete"), st.booleans()),
    "state": st.sampled_from(_STATES),
    "digest": st.sampled_from(_DIGESTS) | st.sampled_from(_DIGESTS).map(str.upper),
}
_VALID_FILTERS: Final = st.lists(
    st.sampled_from(sorted(_VALID_VALUES)), max_size=4, unique=True
).flatmap(lambda names: st.fixed_dictionaries({name: _VALID_VALUES[name] for name in names}))
INPUTS: Final = st.fixed_dictionaries(
    {
        "filters": _VALID_FILTERS,
        "arbitrary": st.just({})
        | st.dictionaries(st.sampled_from(sorted(_VALID_VALUES)), _ARBITRARY_VALUES, max_size=1),
        "sort": st.sampled_from(list(Sort)),
        "descending": st.none() | st.booleans(),
    }
).map(lambda query: json.dumps(query).encode())


def _decode_value(value: Any) -> Any:
    """Return a JSON value as it is, or the time that an object names by its index in `_TIMES`."""
    if not isinstance(value, dict):
        return value
    number, microseconds, hours = value["at"]
    moment = _TIMES[number]
    try:
        return (moment + timedelta(microseconds=microseconds)).astimezone(
            timezone(timedelta(hours=hours))
        )
    except OverflowError:
        return moment


@contextmanager
def open_check() -> Iterator[Callable[[bytes], str]]:
    rows = _make_models()
    lines = (json.dumps(row, default=datetime.isoformat) for row in rows)
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        opening = open_catalog(Path(folder, "catalog.db"))
        catalog = runner.run(opening.__aenter__())
        stream = io.StringIO(HEADER + "\n".join(lines))
        runner.run(catalog.import_catalog(stream, trust_source=True))
        try:
            yield lambda raw: runner.run(_check(json.loads(raw), catalog, rows))
        finally:
            runner.run(opening.__aexit__(None, None, None))


async def _check(query: dict[str, Any], catalog: ModelCatalog, rows: Sequence[Row]) -> str:
    values = {**query["filters"], **query["arbitrary"]}
    filters: Filters = {name: _decode_value(value) for name, value in values.items()}
    sort, descending = Sort(query["sort"]), query["descending"]
    try:
        found = await catalog.list_models(sort=sort, descending=descending, **filters)
    except InvalidModelError as error:
        assert query["arbitrary"], f"these valid filters were refused: {filters}"
        assert str(error).isprintable(), error
        return "refused"
    expected = _expected(rows, filters, str(sort), descending=descending)
    assert [model.version for model in found] == expected, (filters, sort, descending)
    assert await catalog.count_models(**filters) == len(expected), filters
    return "some models" if expected else "no models"
