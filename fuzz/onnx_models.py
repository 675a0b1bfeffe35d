"""
Target the external files of ONNX models: named or refused, cheaply, and as the onnx package reads.

A name that the catalog finds is one that the package finds, if the package can parse the file.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fuzz.resource_limits import limited_resources
from model_catalog import BadHeaderError
from model_catalog.files.file_names import is_plain_file_name
from model_catalog.files.model_config import read_onnx_index

IS_RAW: Final = True


def _model(locations: list[str]) -> bytes:
    """Return a model with one external tensor in each of these files, and one tensor of its own."""
    tensors = [helper.make_tensor("own", TensorProto.FLOAT, [2], [1.0, 2.0])]
    for number, location in enumerate(locations):
        tensor = TensorProto(name=f"t{number}", data_type=TensorProto.FLOAT, dims=[4])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    nodes = [helper.make_node("Identity", ["own"], ["y"])]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    model = helper.make_model(helper.make_graph(nodes, "g", [], [output], tensors))
    return bytes(model.SerializeToString())


SEEDS: Final = (_model([]), _model(["model.onnx_data"]), _model(["a/b", "../c", "ä"]))
_PIECES: Final = (
    b"\x3a",
    b"\x2a",
    b"\x6a",
    b"\x0a\x08location",
    b"\x12",
    b"\xff" * 9 + b"\x01",
    b"\0",
)


def _mutate(choice: random.Random) -> bytes:
    """Return a valid file with some bytes replaced, removed or inserted."""
    raw = bytearray(choice.choice(SEEDS))
    for _ in range(choice.randint(0, 4)):
        at = choice.randint(0, len(raw))
        piece = choice.choice([choice.randbytes(choice.randint(0, 3)), choice.choice(_PIECES)])
        raw[at : at + choice.choice([0, 1, len(piece)])] = piece
    return bytes(raw)


INPUTS: Final = st.integers(0, 2**64 - 1).map(random.Random).map(_mutate)


@contextmanager
def open_check() -> Iterator[Callable[[bytes], str]]:
    # A file in memory, because a disk is slow.
    file = os.memfd_create("model")
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
    try:
        with limited_resources():
            index = read_onnx_index(path)
    except BadHeaderError as error:
        assert str(error).isprintable(), error
        return "refused"
    assert all(is_plain_file_name(part) for name in index.file_names for part in name.split("/"))
    try:
        model = onnx.load_model_from_string(raw)
    except DecodeError:
        return "not a model"
    expected = {
        # The package returns a text that is not UTF-8 as bytes.
        entry.value if isinstance(entry.value, str) else os.fsdecode(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found = {*index.file_names, *index.invalid_names}
    assert found <= expected, (found, expected)
    return "read" if found else "no external files"
