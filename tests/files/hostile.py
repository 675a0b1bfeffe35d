"""Hostile model files, made to cost a header reader much time or memory."""

import json
import struct

from builders import STRING, Gguf, raw_safetensors

GGUF = Gguf()
KEY = GGUF.text("k")
ARRAY = GGUF.number("I", 9)


def array(kind, count, items=b""):
    """An array that declares `count` items and contains only the given ones."""
    return ARRAY + GGUF.number("I", kind) + GGUF.length(count) + items


def one_array(kind, count, items=b""):
    return GGUF.head(0, 1) + KEY + array(kind, count, items)


def one_key(name, kind, value):
    return GGUF.head(0, 1) + GGUF.key(name, kind, value)


def entry(**changed):
    return {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], **changed}


def tensors(**entries):
    return raw_safetensors(json.dumps(entries).encode(), bytes(4))


SCALAR = b'{"dtype":"X","shape":[],"data_offsets":[0,0],"more":['

REFUSED = {
    "array of 2**40 bytes in 51": lambda: one_array(0, 2**40)[:51],
    "array of 2**40 texts": lambda: one_array(STRING, 2**40),
    "array of 2**64 - 1 numbers": lambda: one_array(10, 2**64 - 1),
    "array of 40 million texts": lambda: one_array(STRING, 40_000_000),
    "text of an array that exceeds the file": lambda: one_array(STRING, 1, GGUF.length(2**63)),
    "5000 nested arrays": lambda: (
        GGUF.head(0, 1) + KEY + ARRAY + (GGUF.number("I", 9) + GGUF.length(1)) * 5000
    ),
    "array of a million arrays": lambda: one_array(9, 1_000_000),
    "text of a gibibyte": lambda: (
        GGUF.head(0, 1) + GGUF.text("k") + GGUF.number("I", 8) + GGUF.length(2**30)
    ),
    "text of 2**64 - 1": lambda: (
        GGUF.head(0, 1) + GGUF.text("k") + GGUF.number("I", 8) + GGUF.length(2**64 - 1)
    ),
    "key of 2**63": lambda: GGUF.head(0, 1) + GGUF.length(2**63),
    "key of 65536 bytes": lambda: one_key("k" * 65_536, "u8", 1),
    "2**63 keys": lambda: GGUF.head(0, 2**63),
    "2**63 tensors": lambda: GGUF.head(2**63, 0),
    "65,537 keys": lambda: GGUF.head(0, 65_537) + bytes(9 * 65_537),
    "262,145 tensors": lambda: GGUF.head(262_145, 0) + bytes(20 * 262_145),
    "alignment of 64 bits": lambda: one_key("general.alignment", "u64", 32),
    "alignment of 0": lambda: one_key("general.alignment", "u32", 0),
    "alignment of 3": lambda: one_key("general.alignment", "u32", 3),
    "alignment as text": lambda: one_key("general.alignment", "text", "x"),
    "alignment of true": lambda: one_key("general.alignment", "bool", True),
    "duplicate key": lambda: GGUF.head(0, 2) + GGUF.key("k", "u8", 1) * 2,
    "duplicate tensor": lambda: GGUF.head(2, 0) + GGUF.tensor("t", [1], 0, 0) * 2,
    "row of half a block": lambda: GGUF.head(1, 0) + GGUF.tensor("t", [16, 2], 2, 0),
    "scalar of a block type": lambda: GGUF.head(1, 0) + GGUF.tensor("t", [], 2, 0),
    "value of unknown type": lambda: GGUF.head(0, 1) + KEY + GGUF.number("I", 99),
    "array of unknown type": lambda: one_array(13, 1, b"x"),
    "2**32 - 1 dimensions": lambda: (
        GGUF.head(1, 0) + GGUF.text("t") + GGUF.number("I", 2**32 - 1) + bytes(9)
    ),
    "dimensions that overflow": lambda: GGUF.head(1, 0) + GGUF.tensor("t", [2**63, 4], 0, 0),
    "version 0": lambda: GGUF.head(0, 0)[:4] + bytes(20),
    "version 4": lambda: Gguf(version=4).head(0, 0),
    "magic only": lambda: b"GGUF",
    "safetensors: header longer than the file": lambda: struct.pack("<Q", 100) + b"{}",
    "safetensors: header of 2**63": lambda: struct.pack("<Q", 2**63) + b"{}",
    "safetensors: header over the limit": lambda: (
        struct.pack("<Q", 100_000_001) + b"{" + bytes(100)
    ),
    "safetensors: 100,000 deep": lambda: raw_safetensors(b'{"a":' + b"[" * 100_000),
    "safetensors: 100,000 objects deep": lambda: raw_safetensors(b'{"a":' * 100_000),
    "safetensors: number of 4301 digits": lambda: raw_safetensors(
        b'{"a":{"dtype":"F16","shape":[' + b"9" * 4301 + b'],"data_offsets":[0,4]}}', bytes(4)
    ),
    "safetensors: number of 900,000 digits": lambda: raw_safetensors(
        b'{"a":' + b"9" * 900_000 + b"}"
    ),
    "safetensors: number of 30 digits": lambda: tensors(
        a=entry(shape=[10**29, 0], data_offsets=[0, 0])
    ),
    "safetensors: number of -0": lambda: raw_safetensors(
        b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[-0,4]}}', bytes(4)
    ),
    "safetensors: lone surrogate": lambda: tensors(a=entry(x="\ud800")),
    "safetensors: lone surrogate in the metadata": lambda: tensors(__metadata__={"x": "\udc00"}),
    "safetensors: 128 levels": lambda: raw_safetensors(
        b'{"a":{"x":' + b"[" * 126 + b"]" * 126 + b"}}", bytes(4)
    ),
    "safetensors: metadata twice": lambda: raw_safetensors(
        b'{"__metadata__":null,"__metadata__":null}'
    ),
    "safetensors: duplicate name in a tensor": lambda: raw_safetensors(
        b'{"a":{"dtype":"F16","dtype":"F16","shape":[2],"data_offsets":[0,4]}}', bytes(4)
    ),
    "safetensors: NaN": lambda: raw_safetensors(
        b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4],"x":NaN}}', bytes(4)
    ),
    "safetensors: not UTF-8": lambda: raw_safetensors(b'{"\xff":1}'),
    "safetensors: truncated in a character": lambda: raw_safetensors(b'{"a":"\xc3'),
    "safetensors: half an object": lambda: raw_safetensors(b'{"a"'),
    "safetensors: trailing content": lambda: raw_safetensors(b"{} x"),
    "safetensors: metadata that is not text": lambda: raw_safetensors(b'{"__metadata__":{"a":1}}'),
    "safetensors: metadata that is a list": lambda: raw_safetensors(b'{"__metadata__":[]}'),
    "safetensors: fractional shape": lambda: tensors(a=entry(shape=[2.0])),
    "safetensors: shape of true": lambda: tensors(a=entry(shape=[True], data_offsets=[0, 2])),
    "safetensors: negative shape": lambda: tensors(a=entry(shape=[-1, -2])),
    "safetensors: shape of 2**64": lambda: tensors(a=entry(shape=[2**64, 0], data_offsets=[0, 0])),
    "safetensors: shape that overflows before a 0": lambda: tensors(
        a=entry(shape=[2**63, 4, 0], data_offsets=[0, 0])
    ),
    "safetensors: too many parameters": lambda: tensors(
        a=entry(dtype="X", shape=[2**62, 2**62], data_offsets=[0, 4])
    ),
    "safetensors: offsets in reverse order": lambda: tensors(
        a=entry(dtype="X", data_offsets=[4, 0])
    ),
    "safetensors: three offsets": lambda: tensors(a=entry(data_offsets=[0, 4, 4])),
    "safetensors: size that does not match the shape": lambda: tensors(a=entry(shape=[3])),
    "safetensors: gap": lambda: tensors(a=entry(data_offsets=[2, 6])),
    "safetensors: overlap": lambda: tensors(a=entry(), b=entry()),
    "safetensors: tensor that is a list": lambda: tensors(a=[]),
    "safetensors: 1 MiB of lists": lambda: raw_safetensors(b'{"a":[' + b"[]," * 340_000 + b"[]]}"),
    "safetensors: a name of megabytes": lambda: raw_safetensors(
        '{"\U0001f999'.encode() + b"x" * 9_000_000
    ),
    "safetensors: 51 MB of values": lambda: raw_safetensors(
        b"{"
        + b",".join(b'"%d":' % i + SCALAR + b'"' + b"x" * 1_000_000 + b'"]}' for i in range(51))
        + b"}"
    ),
    "safetensors: 262,145 tensors": lambda: raw_safetensors(
        b"{" + b",".join(b'"%d":["U8",[0],[0,0]]' % i for i in range(262_145)) + b"}"
    ),
}
"""None of them is a valid header. They are functions, because some headers have megabytes."""

LIMITS = {
    "65,537 keys",
    "262,145 tensors",
    "5000 nested arrays",
    "key of 65536 bytes",
    "version 4",
    "safetensors: a name of megabytes",
    "safetensors: 51 MB of values",
    "safetensors: 262,145 tensors",
}
"""Those that may be valid, but exceed a limit of the package."""

REASONS = {
    "array of 2**40 bytes in 51": "ends within the header",
    "array of 2**40 texts": "ends within the header",
    "array of 2**64 - 1 numbers": "ends within the header",
    "array of 40 million texts": "ends within the header",
    "text of an array that exceeds the file": "ends within the header",
    "5000 nested arrays": "nested too deeply",
    "array of a million arrays": "ends within the header",
    "text of a gibibyte": "ends within the header",
    "text of 2**64 - 1": "ends within the header",
    "key of 2**63": "ends within the header",
    "key of 65536 bytes": "a name is",
    "2**63 keys": "ends within the header",
    "2**63 tensors": "ends within the header",
    "65,537 keys": "tensors and",
    "262,145 tensors": "tensors and",
    "alignment of 64 bits": "general.alignment",
    "alignment of 0": "general.alignment",
    "alignment of 3": "general.alignment",
    "alignment as text": "general.alignment",
    "alignment of true": "general.alignment",
    "duplicate key": "key k occurs twice",
    "duplicate tensor": "name of a tensor occurs twice",
    "row of half a block": "a row of a tensor",
    "scalar of a block type": "a row of a tensor",
    "value of unknown type": "type 99",
    "array of unknown type": "unknown type 13",
    "2**32 - 1 dimensions": "has 4294967295 dimensions",
    "dimensions that overflow": "more elements than any",
    "version 0": "GGUF version",
    "version 4": "GGUF version",
    "magic only": "ends within the header",
    "safetensors: header longer than the file": "ends within the header",
    "safetensors: header of 2**63": "its length field says",
    "safetensors: header over the limit": "its length field says",
    "safetensors: 100,000 deep": "nested too deeply",
    "safetensors: 100,000 objects deep": "nested too deeply",
    "safetensors: number of 4301 digits": "out of range",
    "safetensors: number of 900,000 digits": "out of range",
    "safetensors: number of 30 digits": "invalid data_offsets$",
    "safetensors: number of -0": "invalid data_offsets$",
    "safetensors: lone surrogate": "lone surrogate",
    "safetensors: lone surrogate in the metadata": "unexpected",
    "safetensors: 128 levels": "nested too deeply",
    "safetensors: metadata twice": "occurs twice",
    "safetensors: duplicate name in a tensor": "has a duplicate name",
    "safetensors: NaN": "NaN is not a JSON value",
    "safetensors: not UTF-8": "not UTF-8",
    "safetensors: truncated in a character": "not UTF-8",
    "safetensors: half an object": "is truncated",
    "safetensors: trailing content": "invalid JSON",
    "safetensors: metadata that is not text": "invalid JSON",
    "safetensors: metadata that is a list": "invalid JSON",
    "safetensors: fractional shape": "invalid data_offsets$",
    "safetensors: shape of true": "invalid data_offsets$",
    "safetensors: negative shape": "invalid data_offsets$",
    "safetensors: shape of 2**64": "invalid data_offsets$",
    "safetensors: shape that overflows before a 0": "more elements than any",
    "safetensors: too many parameters": "more elements than any",
    "safetensors: offsets in reverse order": "does not match its shape",
    "safetensors: three offsets": "lacks a valid dtype",
    "safetensors: size that does not match the shape": "does not match its shape",
    "safetensors: gap": "overlap",
    "safetensors: overlap": "overlap",
    "safetensors: tensor that is a list": "lacks a valid dtype",
    "safetensors: 1 MiB of lists": "lacks a valid dtype",
    "safetensors: a name of megabytes": "more than 1,048,576 characters",
    "safetensors: 51 MB of values": "the values have more than",
    "safetensors: 262,145 tensors": "more than 262,144",
}
"""The expected reason for each of them, so that no test passes for another reason."""

ONE_TOO_MANY = {
    "4,000,001 texts": lambda: (one_array(STRING, 4_000_001), 8 * 4_000_001),
    "4,000,001 texts in two arrays": lambda: (
        GGUF.head(0, 2) + KEY + array(STRING, 4_000_000, bytes(32_000_000))
        + GGUF.text("l") + array(STRING, 1),
        8,
    ),
    "500,001 arrays": lambda: (one_array(9, 500_001), 12 * 500_001),
}  # fmt: skip
"""Content that exceeds a limit by one, and the number of zeros to append."""

LARGE = {
    "4 million texts and 65,536 keys and tensors": lambda: (
        GGUF.head(65_536, 65_536)
        + b"".join(GGUF.key(f"{i:05}.context_length", "text", "x" * 500) for i in range(65_535))
        + KEY
        + array(STRING, 4_000_000, bytes(32_000_000))
        + b"".join(GGUF.tensor(f"{i:020}", [1] * 8, 0, 0) for i in range(65_536))
    ),
    "500,000 nested arrays": lambda: one_array(9, 500_000, bytes(6_000_000)),
    "safetensors: 122,880 tensors": lambda: tensors(
        **{f"layers.{i:040}": entry(shape=[0, 1, 1], data_offsets=[0, 0]) for i in range(122_880)}
    ),
    "safetensors: 122,880 tensors in reverse order": lambda: tensors(
        **{
            f"layers.{i:040}": entry(shape=[1], data_offsets=[2 * i, 2 * i + 2])
            for i in reversed(range(122_880))
        }
    ),
    "safetensors: whitespace": lambda: raw_safetensors(b"{" + b" " * 20_000_000 + b"}"),
    "safetensors: metadata": lambda: raw_safetensors(
        json.dumps({"__metadata__": {f"{i}": "x" * 500 for i in range(60_000)}}).encode()
    ),
    "safetensors: 20 MiB of lists": lambda: raw_safetensors(
        b"{"
        + b",".join(b'"%d":' % i + SCALAR + b"[]," * 340_000 + b"[]]}" for i in range(20))
        + b"}"
    ),
}
"""As large as the limits allow. They need not be valid headers."""
