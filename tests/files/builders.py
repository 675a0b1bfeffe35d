"""Build model files byte by byte, valid and invalid."""

import json
import os
import struct
from pathlib import Path

import pytest

SCALARS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
STRING, ARRAY = 8, 9
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34)}


class Gguf:
    """Builds GGUF files of one version and one byte order."""

    def __init__(self, version=3, order="<"):
        self.version = version
        self.order = order
        self.length_code = "I" if version == 1 else "Q"

    def number(self, code, value):
        return struct.pack(self.order + code, value)

    def length(self, value):
        return self.number(self.length_code, value)

    def text(self, value):
        raw = value.encode() if isinstance(value, str) else value
        return self.length(len(raw)) + raw

    def head(self, tensors, keys):
        return b"GGUF" + self.number("I", self.version) + self.length(tensors) + self.length(keys)

    def array(self, kind, items):
        """The value of an array. The items are raw bytes."""
        return self.number("I", kind) + self.length(len(items)) + b"".join(items)

    def key(self, name, kind, value):
        """A key and its value. The value of an array is given as bytes."""
        start = self.text(name)
        if kind == "text":
            return start + self.number("I", STRING) + self.text(value)
        if kind == "array":
            return start + self.number("I", ARRAY) + value
        number, code = SCALARS[kind]
        return start + self.number("I", number) + self.number(code, value)

    def tensor(self, name, dimensions, kind, offset):
        return (
            self.text(name)
            + self.number("I", len(dimensions))
            + b"".join(self.length(size) for size in dimensions)
            + self.number("I", kind)
            + self.number("Q", offset)
        )

    def file(self, keys=(), tensors=(), alignment=32):
        """A complete file from keys (name, kind, value) and tensors (name, dimensions, type)."""
        infos, data = [], b""
        for name, dimensions, kind in tensors:
            data += b"\0" * (-len(data) % alignment)
            infos.append(self.tensor(name, dimensions, kind, len(data)))
            elements = 1
            for size in dimensions:
                elements *= size
            block, block_bytes = BLOCKS[kind]
            data += b"\x5a" * (elements // block * block_bytes)
        header = self.head(len(infos), len(keys)) + b"".join(self.key(*key) for key in keys)
        header += b"".join(infos)
        return header + b"\0" * (-len(header) % alignment) + data


LLAMA = (
    ("general.architecture", "text", "llama"),
    ("general.name", "text", "Tiny"),
    ("general.license", "text", "apache-2.0"),
    ("general.file_type", "u32", 15),
    ("llama.context_length", "u32", 4096),
)
WEIGHTS = (("a.weight", (32, 4), Q4_0), ("b.weight", (32,), F32), ("c.weight", (64, 2), Q8_0))
PARAMETERS = 32 * 4 + 32 + 64 * 2


def gguf(keys=LLAMA, tensors=WEIGHTS, version=3, order="<", alignment=32):
    return Gguf(version, order).file(keys, tensors, alignment)


def gguf_shard(index, count, tensors=WEIGHTS):
    """A shard as gguf-split writes it: only the first one has other keys than the split keys."""
    split = (("split.no", "u16", index - 1), ("split.count", "u16", count))
    return gguf((LLAMA if index == 1 else ()) + split, tensors)


BITS = {"F16": 16, "BF16": 16, "F32": 32, "I32": 32, "F4": 4}


def safetensors(tensors=(("a", "F16", (4, 8)), ("b", "F32", (2,))), metadata=None):
    """A safetensors file with tensors given as (name, type, shape)."""
    header, end = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, dtype, shape in tensors:
        elements = 1
        for size in shape:
            elements *= size
        start, end = end, end + elements * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return raw_safetensors(json.dumps(header).encode(), b"\x5a" * end)


def raw_safetensors(header, data=b""):
    """A safetensors file with any bytes as its header: length, header, data."""
    return struct.pack("<Q", len(header)) + header + data


def index(files):
    """The text of an index that assigns one weight to each of the files."""
    return json.dumps({"metadata": {}, "weight_map": {f"w{i}": f for i, f in enumerate(files)}})


CONFIG = {"model_type": "qwen2", "max_position_embeddings": 32768, "torch_dtype": "bfloat16"}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fill(folder, **files):
    """Write files with these contents; in their names `__` stands for `.` and `___` for `/`."""
    for name, content in files.items():
        write(folder / name.replace("___", "/").replace("__", "."), content)
    return folder


def shards(folder, *numbers, of=3):
    """Write some shards of a GGUF set and return the path of the first."""
    for number in numbers:
        write(folder / f"m-{number:05}-of-{of:05}.gguf", gguf_shard(number, of))
    return folder / f"m-{numbers[0]:05}-of-{of:05}.gguf"


def fixtures():
    """The folder of real model files, which are not part of the project; skips without it."""
    named = os.environ.get("MODEL_CATALOG_TEST_FIXTURES")
    folder = Path(named) if named else Path(__file__).parents[2].parent / "shared" / "fixtures"
    if not folder.is_dir():
        pytest.skip("no real model files: set MODEL_CATALOG_TEST_FIXTURES to a folder of them")
    return folder
