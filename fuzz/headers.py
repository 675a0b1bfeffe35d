"""
Target headers of GGUF and safetensors: read or refused, cheaply, and with storable claims.

A file is a whole safetensors file if and only if the safetensors package opens it.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import safetensors as safetensors_package
from hypothesis import strategies as st

from fuzz.resource_limits import limited_resources
from model_catalog import BadHeaderError, HeaderLimitError
from model_catalog.domain.fields import HEADER_FIELDS, UPDATABLE_FIELDS
from model_catalog.files.formats.header_reader import Header, read_header
from model_catalog.files.formats.safetensors import BITS_PER_ELEMENT

sys.path.append(str(Path(__file__).parent.parent / "tests" / "files"))

from builders import LLAMA, Gguf, gguf, gguf_shard, raw_safetensors, safetensors

IS_RAW: Final = True
_TEXTS: Final = Gguf().array(8, [Gguf().text(f"t{number}") for number in range(5)])
SEEDS: Final = (
    *(gguf(version=version, order=order) for version in (1, 2, 3) for order in "<>"),
    gguf((*LLAMA, ("tokens", "array", _TEXTS))),
    gguf_shard(1, 2),
    safetensors(),
    safetensors([("a", "F4", (6,)), ("b.ä", "BF16", (0, 3))], {"format": "pt", "license": "mit"}),
    b"\x80\x04\x95",
)
_EXTENDED_BYTES: Final = 256 * 2**20
"""A file that was too short is extended with zeros to this size, so that its claims fit."""


_EXTREMES: Final = (0, 1, 2, 8, 9, 12, 2**16, 2**31, 2**32 - 1, 4_000_001, 2**63, 2**64 - 1)
_JSON_PIECES: Final = (
    b'"',
    b"null",
    b"-0",
    b"\\ud800",
    b"\\",
    b"\x01",
    b"[" * 126,
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 30,
)
_NAMES: Final = (
    *(b"general.alignment", b"general.architecture", b"general.file_type", b"general.license"),
    *(b"llama", b"llama.context_length", b"split.no", b"split.count", b"a.weight", b"\xff"),
)


def _mutate(choice: random.Random) -> bytes:
    """Return a valid file with some bytes replaced, removed or inserted."""
    raw = bytearray(choice.choice(SEEDS))
    for _ in range(choice.randint(1, 4)):
        at = choice.randint(0, len(raw))
        pieces = choice.randbytes(choice.randint(0, 9)), choice.choice(_JSON_PIECES)
        piece = choice.choice([*pieces, _uint64(choice.choice(_EXTREMES))])
        raw[at : at + choice.choice([0, 1, len(piece), choice.randint(0, 50)])] = piece
    if choice.random() < 0.5 and b"}" in raw:
        # The correct header length, so that the reader gets past the check of the length.
        raw[:8] = _uint64(max(raw.rfind(b"}") - 7, 0))
    return bytes(raw)


def _combine_gguf_parts(choice: random.Random) -> bytes:
    """Return the parts of a GGUF file in any order and number."""
    builder = Gguf(choice.choice([1, 2, 3]), choice.choice("<>"))

    def length() -> bytes:
        number = choice.choice([choice.randint(0, 12), choice.choice(_EXTREMES)])
        return builder.length(min(number, 2**32 - 1 if builder.version == 1 else number))

    def kind() -> bytes:
        return builder.number("I", choice.randint(0, 13))

    def text() -> bytes:
        return builder.text(choice.choice(_NAMES))

    def key() -> bytes:
        array = builder.number("I", 9) + kind() + length()
        return text() + choice.choice([kind() + length(), builder.number("I", 8) + text(), array])

    def tensor() -> bytes:
        sizes = [length() for _ in range(choice.randint(0, 4))]
        return (
            text()
            + builder.number("I", len(sizes))
            + b"".join(sizes)
            + kind()
            + choice.randbytes(8)
        )

    head = builder.head(choice.randint(0, 3), choice.randint(0, 6))
    return head + b"".join(choice.choice([key, key, tensor, text, length])() for _ in range(9))


def _uint64(number: int) -> bytes:
    return struct.pack("<Q", number)


# The choices are made by `random`: Hypothesis takes ten times as long for each.
_CHOICES: Final = st.integers(0, 2**64 - 1).map(random.Random)
_NUMBERS: Final = st.integers(0, 12) | st.sampled_from(_EXTREMES)
_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**64) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
_ENTRY: Final = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F16", "F4", "BF16", "X"]) | _JSON,
        "shape": st.lists(_NUMBERS, max_size=3) | _JSON,
        "data_offsets": st.lists(_NUMBERS, min_size=2, max_size=2) | _JSON,
    }
)
_METADATA: Final = st.dictionaries(
    st.sampled_from(["modelspec.architecture", "license", "modelspec.title", "x"]),
    st.text(max_size=9) | _JSON,
)
_SAFETENSORS: Final = st.fixed_dictionaries(
    {}, optional={"a": _ENTRY, "b": _ENTRY | _JSON, "__metadata__": _METADATA | _JSON}
).map(lambda header: raw_safetensors(json.dumps(header).encode(), b"\0" * 16))
INPUTS: Final = st.one_of(
    _CHOICES.map(_mutate), _CHOICES.map(_combine_gguf_parts), _SAFETENSORS, st.binary(max_size=40)
)


@contextmanager
def open_check() -> Iterator[Callable[[bytes], str]]:
    # A file in memory, because a disk is slow.
    file = os.memfd_create("model")
    path = f"/proc/self/fd/{file}"

    def check(raw: bytes) -> str:
        os.ftruncate(file, 0)
        os.pwrite(file, raw, 0)
        outcome = _read(path)
        if outcome == "cut off":
            os.ftruncate(file, _EXTENDED_BYTES)
            outcome = f"cut off, then {_read(path)}"
        return outcome

    try:
        yield check
    finally:
        os.close(file)


def _read(path: str) -> str:
    try:
        with limited_resources():
            header = read_header(path)
    except BadHeaderError as error:
        assert str(error).isprintable(), error
        outcome = "cut off" if "ends within the header" in error.reason else "refused"
        if isinstance(error, HeaderLimitError):
            return f"{outcome}, beyond a limit"
        assert not _opens_as_safetensors(path), error
        return outcome
    hash(header)
    _check_claims(header)
    if header.format == "safetensors":
        types = {dtype for _, dtype, _ in header.tensor_counts or ()}
        # A type that the package does not know may be newer.
        is_known = types <= set(BITS_PER_ELEMENT)
        opens = _opens_as_safetensors(path)
        assert opens == (header.is_complete and is_known), (opens, header, types)
    return "read"


def _opens_as_safetensors(path: str) -> bool:
    try:
        with safetensors_package.safe_open(path, "np"):
            return True
    except (safetensors_package.SafetensorError, OSError):
        return False


def _check_claims(header: Header) -> None:
    """Check that all values of a header can be recorded as claims."""
    for name in HEADER_FIELDS:
        # The header does not state every field.
        value = getattr(header, name, None)
        assert UPDATABLE_FIELDS[f"claimed_{name}"](name, value) == value, (name, value)
