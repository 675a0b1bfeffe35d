"""Target imports: all or nothing, only our error, and an export imports and exports the same."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from model_catalog import InvalidImportError, ModelCatalog, open_catalog
from model_catalog.domain.fields import IMPORT_FIELDS
from model_catalog.domain.ndjson import HEADER

IS_RAW: Final = True

_MAX_MESSAGE_LENGTH: Final = 1000
_HEADER_BYTES: Final = HEADER.encode()
_DIGEST: Final = "sha256:" + "0aF9" * 16
_TEXTS: Final = (
    *("", " ", "m", "hf", "M", "\0", "\n", "\x1f", "\ud800", "\udcff", "\u202e", "\U0001f999"),
    *("é", "e\u0301", "x" * 129, "€" * 300, "z" * 3000, "bytes:%FF", "/m/\udcfe", "@", ":"),
    *("unchecked", "missing", "valid", "weights", "../m", "1:2:3:4", _DIGEST, "9999-12-31"),
    *("2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "2026-W01-1", "20260101T1"),
)
_NUMBERS: Final = (0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, 1.0, 1e308, 0.5)
_OTHERS: Final = (None, True, False, [], {}, [[]], [1], ["a", "A"], {"a": 1})
_NAMES: Final = (*IMPORT_FIELDS, "tags", "aliases", "files", "id", "nothing")
_FILE: Final = {"path": "a/b.gguf", "size_bytes": 7, "role": "weights", "digest": _DIGEST}
_MODEL: Final = {
    "provider": "hf",
    "reference": "m",
    "version": "v1",
    "local_path": "/m",
    "size_bytes": 7,
    "downloaded_at": "2026-01-01T00:00:00Z",
    "description": "one\nß",
    "digest": _DIGEST,
    "tags": ["Chat", "größe"],
    "aliases": ["main"],
    "use_count": 3,
    "pin_reason": "",
    "inventoried_at": "2026-01-01T00:00:00Z",
    "files": [_FILE],
    "claimed_format": "gguf",
}


def _line(**changed: Any) -> bytes:
    return json.dumps({**_MODEL, **changed}).encode() + b"\n"


SEEDS: Final = (
    _HEADER_BYTES + _line(),
    _HEADER_BYTES + _line(version="", files=[], tags=[]) + b"\n" + _line(local_path="/\udcff"),
    _HEADER_BYTES + b'{"provider": "hf", "reference": "m", "local_path": "/m"}\n{}\n',
    _HEADER_BYTES,
)


def _any_value(choice: random.Random) -> Any:
    return choice.choice(choice.choice([_TEXTS, _TEXTS, _NUMBERS, _OTHERS]))


def _make_model(choice: random.Random) -> dict[str, Any]:
    """Return a model with one of a few keys, so that keys repeat, and some arbitrary values."""
    model: dict[str, Any] = {name: value for name, value in _MODEL.items() if choice.random() < 0.8}
    if choice.random() < 0.05:
        model[choice.choice(_TEXTS)] = 1
    model["provider"] = choice.choice(["hf", "hf", "ü"])
    model["version"] = choice.choice(["", "v1", "v2"])
    model["aliases"] = choice.sample(["main", "v1", "old"], choice.randint(0, 2))
    model["tags"] = [
        choice.choice(("Chat", "chat", "é", "e\u0301")) for _ in range(choice.randint(0, 3))
    ]
    for _ in range(choice.choice([0, 0, 1, 2])):
        model[choice.choice(_NAMES)] = _any_value(choice)
    if choice.random() < 0.2:
        model["files"] = [{**_FILE, choice.choice([*_FILE, "hashed_at", "x"]): _any_value(choice)}]
    return model


def _make_stream(choice: random.Random) -> bytes:
    """Return an export of a few lines, sometimes with bytes replaced, removed or inserted."""
    lines = [json.dumps(_make_model(choice)).encode() for _ in range(choice.randint(0, 5))]
    raw = bytearray(b"\n".join([_HEADER_BYTES.strip(), *lines]))
    for _ in range(choice.choice([0, 0, 0, 1, 3])):
        at = choice.randint(0, len(raw))
        piece = choice.choice([b"", b"\n", b'"', b"[", b"}", b"\xff", b"\\ud800", b"NaN", b"1e999"])
        raw[at : at + choice.choice([0, 1, 1, 9])] = piece
    return bytes(raw)


# The choices are made by `random`: Hypothesis takes ten times as long for each.
_CHOICES: Final = st.integers(0, 2**64 - 1).map(random.Random)
INPUTS: Final = st.one_of(
    _CHOICES.map(_make_stream),
    _CHOICES.map(_make_stream),
    st.lists(st.dictionaries(st.sampled_from(_NAMES), st.sampled_from(_TEXTS + _NUMBERS))).map(
        lambda models: _HEADER_BYTES + b"".join(_line(**model) for model in models)
    ),
)


@contextmanager
def open_check() -> Iterator[Callable[[bytes], str]]:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        exits = AsyncExitStack()

        async def open_one(name: str) -> ModelCatalog:
            return await exits.enter_async_context(open_catalog(Path(folder, name)))

        first, second = runner.run(open_one("first.db")), runner.run(open_one("second.db"))
        runner.run(first.import_catalog(io.BytesIO(SEEDS[0]), trust_source=True))
        try:
            yield lambda raw: runner.run(_check(raw, first, second))
        finally:
            runner.run(exits.aclose())


async def _check(raw: bytes, first: ModelCatalog, second: ModelCatalog) -> str:
    # The options depend on the input, so that the saved input is enough to repeat a finding.
    digest = hashlib.sha256(raw).digest()
    on_conflict = ("keep", "replace", "newer")[digest[0] % 3]
    skip_broken = digest[1] % 2 == 0
    trust_source = digest[2] % 2 == 0
    async with _rolled_back(first) as catalog:
        before = await _export(catalog)
        try:
            result = await catalog.import_catalog(
                io.BytesIO(raw),
                on_conflict,
                skip_broken=skip_broken,
                trust_source=trust_source,
            )
        except InvalidImportError as error:
            assert str(error).isprintable(), error
            assert len(str(error)) < _MAX_MESSAGE_LENGTH, error
            assert await _export(catalog) == before, "a part of the input was imported"
            return "refused"
        line_count = sum(
            1 for line in raw.split(b"\n")[1:] if line.decode(errors="replace").strip()
        )
        counted = result.written + result.kept + len(result.problems)
        assert counted == line_count, (result, line_count)
        after = await _export(catalog)
    async with _rolled_back(second) as other:
        again = await other.import_catalog(io.StringIO(after), trust_source=True)
        assert (again.kept, again.problems) == (0, ()), again
        assert await _export(other) == after, "the export of the imported export differs"
    return "skipped lines" if result.problems else "imported"


class _RollbackError(Exception):
    """Raised to roll a transaction back."""


@asynccontextmanager
async def _rolled_back(catalog: ModelCatalog) -> AsyncIterator[ModelCatalog]:
    """Open a transaction that is always rolled back, so that each input sees the same catalog."""
    try:
        async with catalog.transaction() as inner:
            yield inner
            raise _RollbackError
    except _RollbackError:
        pass


async def _export(catalog: ModelCatalog) -> str:
    stream = io.StringIO()
    await catalog.export_catalog(stream)
    return stream.getvalue()
