"""
Target config.json and indexes: read if and only if Python's `json` reads an object, and cheaply.

transformers reads both files with `json`. A text beyond a limit of the catalog is not compared.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from hypothesis import strategies as st

from fuzz.resource_limits import limited_resources
from model_catalog import BadHeaderError, HeaderLimitError
from model_catalog.domain.fields import UPDATABLE_FIELDS
from model_catalog.files.file_names import MAX_NAME_BYTES
from model_catalog.files.model_config import read_config, read_index

IS_RAW: Final = True
_MLX: Final = {"group_size": 64, "bits": 4, "mode": "affine", "q": {"group_size": 32, "bits": 8}}
SEEDS: Final = tuple(
    json.dumps(config).encode()
    for config in (
        {"model_type": "nemotron_h", "time_step_limit": [0.0, float("inf")], "n_positions": 8},
        {"architectures": ["Llama"], "torch_dtype": "float16", "x": float("nan"), "e": "\ud800"},
        {"quantization": _MLX, "quantization_config": _MLX},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}, "text_config": {}},
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            }
        },
        {"metadata": {"total_size": 1}, "weight_map": {"a": "m-1.safetensors", "b": "ä"}},
    )
)
_PIECES: Final = (
    *(b"NaN", b"-Infinity", b"null", b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\ud8"),
    *(b"1e999", b"-0", b"01", b"9" * 30, b"9" * 4301, b"\xff", b"\xef\xbb\xbf", b"\x01", b"\x0b"),
    *(b'"bits":8,', b'"weight_map":{},', b'"n_positions":1,', b"[" * 2000, b" "),
)


def _mutate(choice: random.Random) -> bytes:
    raw = bytearray(choice.choice(SEEDS))
    for _ in range(choice.randint(1, 3)):
        at = choice.randint(0, len(raw))
        raw[at : at + choice.choice([0, 0, 1, choice.randint(0, 20)])] = choice.choice(_PIECES)
    return bytes(raw)


_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["bits", "group_size", "quant_method", "weights", "num_bits", "mode"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
_OBJECTS: Final = st.dictionaries(
    st.sampled_from(
        ["quantization", "quantization_config", "weight_map", "model_type", "text_config", "dtype"]
    ),
    _JSON,
).map(lambda value: json.dumps(value).encode())
# The choices are made by `random`: Hypothesis takes ten times as long for each.
INPUTS: Final = st.one_of(st.integers(0, 2**64 - 1).map(random.Random).map(_mutate), _OBJECTS)


@contextmanager
def open_check() -> Iterator[Callable[[bytes], str]]:
    # A file in memory, because a disk is slow.
    file = os.memfd_create("config")
    path = f"/proc/self/fd/{file}"

    def check(raw: bytes) -> str:
        os.ftruncate(file, 0)
        os.pwrite(file, raw, 0)
        return _check(path, raw)

    try:
        yield check
    finally:
        os.close(file)


def _check(path: str, raw: bytes) -> str:
    expected = _read_with_json(raw)
    try:
        with limited_resources():
            config = read_config(path)
    except HeaderLimitError:
        return "beyond a limit"
    except BadHeaderError as error:
        assert str(error).isprintable(), error
        assert not isinstance(expected, dict), error
        return "refused"
    assert isinstance(expected, dict) or "9" * 4301 in raw.decode(), expected
    for name in ("architecture", "context_length", "quantization"):
        value = getattr(config, name)
        assert UPDATABLE_FIELDS[f"claimed_{name}"](name, value) == value, (name, value)
    try:
        with limited_resources():
            index = read_index(path)
    except BadHeaderError:
        return "read, not an index"
    weights = (expected or {}).get("weight_map", {})
    names = {name[: MAX_NAME_BYTES + 1] for name in weights.values()}
    assert names <= {*index.file_names, *index.invalid_names}, index
    return "read"


def _read_with_json(raw: bytes) -> Any:
    """Return the value, or None if Python's `json` refuses the text."""
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
