"""Target `ModelRef`: a parsed text is written back unchanged; other texts raise our error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from hypothesis import strategies as st

from model_catalog import InvalidModelError, ModelRef
from model_catalog.domain.key_validation import MAX_VERSION

IS_RAW: Final = True
SEEDS: Final = (b"hf:TheBloke/TinyLlama@v1", b"hf:org/repo:Q4_K_M@", b"a\nb\nc", "ü:模@🦙".encode())

_PARTS: Final = st.one_of(
    st.sampled_from([":", "@", "%40", "%25", "%"]),
    st.sampled_from(["\n", " ", "hf", "m", "\u3000", "\u202e", "\U0001f999"]),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=3),
    st.text(st.characters(), max_size=3),
)
INPUTS: Final = st.one_of(
    st.lists(_PARTS, max_size=9).map("".join),
    st.tuples(*(st.lists(_PARTS, min_size=1, max_size=3).map("".join),) * 3).map(
        "{0[0]}:{0[1]}@{0[2]}".format
    ),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


@contextmanager
def open_check() -> Iterator[Callable[[bytes], str]]:
    yield check


def check(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    _check_parts(text)
    try:
        name = ModelRef.parse(text)
    except InvalidModelError as error:
        assert str(error).isprintable(), error
        return "refused"
    assert str(name) == text, name
    assert ModelRef.parse(str(name)) == name, name
    assert name.provider.strip(), name
    assert name.reference.strip(), name
    return "parsed"


def _check_parts(text: str) -> None:
    """Check a `ModelRef` that is made from the lines of a text, not parsed."""
    parts = text.split("\n", 2)
    try:
        name = ModelRef(*parts)
    except (InvalidModelError, TypeError):
        assert len(parts) == 1 or not _is_plain(parts)
        return
    # The docstring of ModelRef.__str__ lists the names whose text does not parse back.
    if ":" in name.provider or len(name.version or "") > MAX_VERSION:
        return
    if name.version is not None or "@" not in name.reference:
        assert ModelRef.parse(str(name)) == name, name


def _is_plain(parts: list[str]) -> bool:
    return all(part.isascii() and part.isalnum() for part in parts)
