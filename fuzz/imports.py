"""Imports: all or nothing, only our error, and what came in goes out, and comes in, the same."""

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

_LONGEST_MESSAGE: Final = 1000
_HEAD: Final = HEADER.encode()
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
    _HEAD + _line(),
    _HEAD + _line(version="", files=[], tags=[]) + b"\n" + _line(local_path="/\udcff"),
    _HEAD + b'{"provider": "hf", "reference": "m", "local_path": "/m"}\n{}\n',
    _HEAD,
)


def _value(choice: random.Random) -> Any:
    return choice.choice(choice.choice([_TEXTS, _TEXTS, _NUMBERS, _OTHERS]))


def _model(choice: random.Random) -> dict[str, Any]:
    """A model of few names, so that they meet, with some values of any kind."""
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
        model[choice.choice(_NAMES)] = _value(choice)
    if choice.random() < 0.2:
        model["files"] = [{**_FILE, choice.choice([*_FILE, "hashed_at", "x"]): _value(choice)}]
    return model


def _stream(choice: random.Random) -> bytes:
    """A catalog of a few lines, perhaps with bytes replaced, left out or put in."""
    lines = [json.dumps(_model(choice)).encode() for _ in range(choice.randint(0, 5))]
    raw = bytearray(b"\n".join([_HEAD.strip(), *lines]))
    for _ in range(choice.choice([0, 0, 0, 1, 3])):
        at = choice.randint(0, len(raw))
        piece = choice.choice([b"", b"\n", b'"', b"[", b"}", b"\xff", b"\\ud800", b"NaN", b"1e999"])
        raw[at : at + choice.choice([0, 1, 1, 9])] = piece
    return bytes(raw)


# The choices are random's: Hypothesis takes ten times as long to make each.
_CHOICES: Final = st.integers(0, 2**64 - 1).map(random.Random)
INPUTS: Final = st.one_of(
    _CHOICES.map(_stream),
    _CHOICES.map(_stream),
    st.lists(st.dictionaries(st.sampled_from(_NAMES), st.sampled_from(_TEXTS + _NUMBERS))).map(
        lambda models: _HEAD + b"".join(_line(**model) for model in models)
    ),
)


@contextmanager
def checking() -> Iterator[Callable[[bytes], str]]:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        exits = AsyncExitStack()

        async def opened(name: str) -> ModelCatalog:
            return await exits.enter_async_context(open_catalog(Path(folder, name)))

        first, second = runner.run(opened("first.db")), runner.run(opened("second.db"))
        runner.run(first.import_catalog(io.BytesIO(SEEDS[0])))
        try:
            yield lambda raw: runner.run(_check(raw, first, second))
        finally:
            runner.run(exits.aclose())


async def _check(raw: bytes, first: ModelCatalog, second: ModelCatalog) -> str:
    # Of the input itself, so that an input alone says what is to be repeated.
    chance = hashlib.sha256(raw).digest()
    on_conflict = ("keep", "replace", "newer")[chance[0] % 3]
    skips = chance[1] % 2 == 0
    async with _undone(first) as catalog:
        before = await _exported(catalog)
        try:
            done = await catalog.import_catalog(
                io.BytesIO(raw),
                on_conflict,
                skip_broken=skips,
            )
        except InvalidImportError as error:
            assert str(error).isprintable(), error
            assert len(str(error)) < _LONGEST_MESSAGE, error
            assert await _exported(catalog) == before, "a part of it was imported"
            return "refused"
        said = sum(1 for line in raw.split(b"\n")[1:] if line.decode(errors="replace").strip())
        assert done.written + done.kept + len(done.problems) == said, (done, said)
        after = await _exported(catalog)
    async with _undone(second) as other:
        again = await other.import_catalog(io.StringIO(after))
        assert (again.kept, again.problems) == (0, ()), again
        assert await _exported(other) == after, "what came out came out otherwise"
    return "skipped a part" if done.problems else "imported"


class _UndoError(Exception):
    """Rolls a transaction back."""


@asynccontextmanager
async def _undone(catalog: ModelCatalog) -> AsyncIterator[ModelCatalog]:
    """A transaction of which nothing is kept, so that every input meets the same catalog."""
    try:
        async with catalog.transaction() as inner:
            yield inner
            raise _UndoError
    except _UndoError:
        pass


async def _exported(catalog: ModelCatalog) -> str:
    stream = io.StringIO()
    await catalog.export_catalog(stream)
    return stream.getvalue()
