"""Files that were made to cost the reader of their headers time or memory."""

import json
import struct

from builders import STRING, Gguf, headed

GGUF = Gguf()
KEY = GGUF.text("k")
ARRAY = GGUF.number("I", 9)


def array(kind, count, items=b""):
    """An array of so many, of which only the items are there."""
    return ARRAY + GGUF.number("I", kind) + GGUF.length(count) + items


def one_array(kind, count, items=b""):
    return GGUF.head(0, 1) + KEY + array(kind, count, items)


def one_key(name, kind, value):
    return GGUF.head(0, 1) + GGUF.key(name, kind, value)


def entry(**changed):
    return {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], **changed}


def tensors(**entries):
    return headed(json.dumps(entries).encode(), bytes(4))


SCALAR = b'{"dtype":"X","shape":[],"data_offsets":[0,0],"more":['

REFUSED = {
    "array of 2**40 bytes in 51": one_array(0, 2**40)[:51],
    "array of 2**40 texts": one_array(STRING, 2**40),
    "array of 2**64 - 1 numbers": one_array(10, 2**64 - 1),
    "array of 40 million texts": one_array(STRING, 40_000_000),
    "text of an array that leaves the file": one_array(STRING, 1, GGUF.length(2**63)),
    "5000 nested arrays": (
        GGUF.head(0, 1) + KEY + ARRAY + (GGUF.number("I", 9) + GGUF.length(1)) * 5000
    ),
    "array of a million arrays": one_array(9, 1_000_000),
    "text of a gibibyte": GGUF.head(0, 1)
    + GGUF.text("k")
    + GGUF.number("I", 8)
    + GGUF.length(2**30),
    "text of 2**64 - 1": (
        GGUF.head(0, 1) + GGUF.text("k") + GGUF.number("I", 8) + GGUF.length(2**64 - 1)
    ),
    "key of 2**63": GGUF.head(0, 1) + GGUF.length(2**63),
    "key of 65536 bytes": one_key("k" * 65_536, "u8", 1),
    "2**63 keys": GGUF.head(0, 2**63),
    "2**63 tensors": GGUF.head(2**63, 0),
    "alignment of 2**31": one_key("general.alignment", "u32", 2**31),
    "alignment of 0": one_key("general.alignment", "u32", 0),
    "alignment of 3": one_key("general.alignment", "u32", 3),
    "alignment in words": one_key("general.alignment", "text", "x"),
    "alignment of yes": one_key("general.alignment", "bool", True),
    "key twice": GGUF.head(0, 2) + GGUF.key("k", "u8", 1) * 2,
    "tensor twice": GGUF.head(2, 0) + GGUF.tensor("t", [1], 0, 0) * 2,
    "unknown type of a value": GGUF.head(0, 1) + KEY + GGUF.number("I", 99),
    "unknown type of an array": one_array(13, 1, b"x"),
    "2**32 - 1 dimensions": GGUF.head(1, 0) + GGUF.text("t") + GGUF.number("I", 2**32 - 1),
    "dimensions that overflow": GGUF.head(1, 0) + GGUF.tensor("t", [2**63, 4], 0, 0),
    "version 0": GGUF.head(0, 0)[:4] + bytes(20),
    "version 4": Gguf(version=4).head(0, 0),
    "magic alone": b"GGUF",
    "safetensors: header longer than the file": struct.pack("<Q", 100) + b"{}",
    "safetensors: header of 2**63": struct.pack("<Q", 2**63) + b"{}",
    "safetensors: header over the limit": struct.pack("<Q", 100_000_001) + b"{" + bytes(100),
    "safetensors: 100,000 deep": headed(b'{"a":' + b"[" * 100_000),
    "safetensors: 100,000 objects deep": headed(b'{"a":' * 100_000),
    "safetensors: number of 4301 digits": headed(
        b'{"a":{"dtype":"F16","shape":[' + b"9" * 4301 + b'],"data_offsets":[0,4]}}', bytes(4)
    ),
    "safetensors: number of 900,000 digits": headed(b'{"a":' + b"9" * 900_000 + b"}"),
    "safetensors: tensor twice": headed(
        f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry())}}}'.encode(), bytes(4)
    ),
    "safetensors: name twice in a tensor": headed(
        b'{"a":{"dtype":"F16","dtype":"F16","shape":[2],"data_offsets":[0,4]}}', bytes(4)
    ),
    "safetensors: NaN": headed(
        b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4],"x":NaN}}', bytes(4)
    ),
    "safetensors: no UTF-8": headed(b'{"\xff":1}'),
    "safetensors: cut off in a letter": headed(b'{"a":"\xc3'),
    "safetensors: half an object": headed(b'{"a"'),
    "safetensors: something behind": headed(b"{} x"),
    "safetensors: metadata that is no text": headed(b'{"__metadata__":{"a":1}}'),
    "safetensors: metadata that is a list": headed(b'{"__metadata__":[]}'),
    "safetensors: shape of a fraction": tensors(a=entry(shape=[2.0])),
    "safetensors: shape of yes": tensors(a=entry(shape=[True], data_offsets=[0, 2])),
    "safetensors: shape below zero": tensors(a=entry(shape=[-1, -2])),
    "safetensors: shape of 2**63": tensors(a=entry(shape=[2**63, 0], data_offsets=[0, 0])),
    "safetensors: shape of 100 dimensions": tensors(a=entry(shape=[1] * 100)),
    "safetensors: absurdly many parameters": tensors(
        a=entry(dtype="X", shape=[2**62, 2**62], data_offsets=[0, 4])
    ),
    "safetensors: offsets the wrong way": tensors(a=entry(dtype="X", data_offsets=[4, 0])),
    "safetensors: three offsets": tensors(a=entry(data_offsets=[0, 4, 4])),
    "safetensors: size that is not the shape's": tensors(a=entry(shape=[3])),
    "safetensors: hole": tensors(a=entry(data_offsets=[2, 6])),
    "safetensors: overlap": tensors(a=entry(), b=entry()),
    "safetensors: tensor that is a list": tensors(a=[]),
    "safetensors: a mebibyte of lists": headed(b'{"a":[' + b"[]," * 340_000 + b"[]]}"),
    "safetensors: a name of megabytes": headed('{"\U0001f999'.encode() + b"x" * 9_000_000),
    "safetensors: 17 MB of values": headed(
        b"{"
        + b",".join(b'"%d":' % i + SCALAR + b'"' + b"x" * 1_000_000 + b'"]}' for i in range(17))
        + b"}"
    ),
    "safetensors: 65,537 tensors": tensors(
        **{f"{i}": entry(shape=[0], data_offsets=[0, 0]) for i in range(65_537)}
    ),
}
"""Not one of them is a header."""

REASONS = {
    "array of 2**40 bytes in 51": "ends in the middle",
    "array of 2**40 texts": "lists more than 4,000,000",
    "array of 2**64 - 1 numbers": "ends in the middle",
    "array of 40 million texts": "lists more than 4,000,000",
    "text of an array that leaves the file": "ends in the middle",
    "5000 nested arrays": "lies too deep",
    "array of a million arrays": "lists more than 4,000,000",
    "text of a gibibyte": "ends in the middle",
    "text of 2**64 - 1": "ends in the middle",
    "key of 2**63": "a name in it is",
    "key of 65536 bytes": "a name in it is",
    "2**63 keys": "tensors and",
    "2**63 tensors": "tensors and",
    "alignment of 2**31": "general.alignment",
    "alignment of 0": "general.alignment",
    "alignment of 3": "general.alignment",
    "alignment in words": "general.alignment",
    "alignment of yes": "general.alignment",
    "key twice": "key k twice",
    "tensor twice": "tensor t twice",
    "unknown type of a value": "type 99",
    "unknown type of an array": "lies too deep",
    "2**32 - 1 dimensions": "has 4294967295 dimensions",
    "dimensions that overflow": "larger than any",
    "version 0": "GGUF version",
    "version 4": "GGUF version",
    "magic alone": "ends in the middle",
    "safetensors: header longer than the file": "ends in the middle",
    "safetensors: header of 2**63": "it is said to be",
    "safetensors: header over the limit": "it is said to be",
    "safetensors: 100,000 deep": "nested too deep",
    "safetensors: 100,000 objects deep": "nested too deep",
    "safetensors: number of 4301 digits": "cannot be$",
    "safetensors: number of 900,000 digits": "no dtype",
    "safetensors: tensor twice": "the name 'a' twice",
    "safetensors: name twice in a tensor": "has a name twice",
    "safetensors: NaN": "NaN in it",
    "safetensors: no UTF-8": "not UTF-8",
    "safetensors: cut off in a letter": "not UTF-8",
    "safetensors: half an object": "ends too early",
    "safetensors: something behind": "it is no JSON",
    "safetensors: metadata that is no text": "it is no JSON",
    "safetensors: metadata that is a list": "it is no JSON",
    "safetensors: shape of a fraction": "cannot be$",
    "safetensors: shape of yes": "cannot be$",
    "safetensors: shape below zero": "cannot be$",
    "safetensors: shape of 2**63": "cannot be$",
    "safetensors: shape of 100 dimensions": "cannot be$",
    "safetensors: absurdly many parameters": "larger than any",
    "safetensors: offsets the wrong way": "another size",
    "safetensors: three offsets": "no dtype",
    "safetensors: size that is not the shape's": "another size",
    "safetensors: hole": "overlap",
    "safetensors: overlap": "overlap",
    "safetensors: tensor that is a list": "no dtype",
    "safetensors: a mebibyte of lists": "no dtype",
    "safetensors: a name of megabytes": "longer than 1,048,576",
    "safetensors: 17 MB of values": "values are longer",
    "safetensors: 65,537 tensors": "more than 65,536",
}
"""What each is refused for, so that it is not for another reason."""

ONE_TOO_MANY = {
    "4,000,001 texts": (one_array(STRING, 4_000_001), 8 * 4_000_001),
    "4,000,001 texts in two arrays": (
        GGUF.head(0, 2) + KEY + array(STRING, 4_000_000, bytes(32_000_000))
        + GGUF.text("l") + array(STRING, 1),
        8,
    ),
    "500,001 arrays": (one_array(9, 500_001), 12 * 500_001),
}  # fmt: skip
"""What is refused only because it is more than is read, and how many zeros are to follow it."""

KEYS = b"".join(GGUF.key(f"{i:05}.context_length", "text", "x" * 500) for i in range(65_535))

LARGE = {
    "4 million texts and 65,536 of all else": GGUF.head(65_536, 65_536)
    + KEYS
    + KEY
    + array(STRING, 4_000_000, bytes(32_000_000))
    + b"".join(GGUF.tensor(f"{i:020}", [1] * 8, 0, 0) for i in range(65_536)),
    "500,000 arrays in an array": one_array(9, 500_000, bytes(6_000_000)),
    "safetensors: 65,536 tensors": tensors(
        **{f"layers.{i:040}": entry(shape=[0, 1, 1], data_offsets=[0, 0]) for i in range(65_536)}
    ),
    "safetensors: blanks": headed(b"{" + b" " * 20_000_000 + b"}"),
    "safetensors: metadata": headed(
        json.dumps({"__metadata__": {f"{i}": "x" * 500 for i in range(60_000)}}).encode()
    ),
    "safetensors: 20 MiB of lists": headed(
        b"{"
        + b",".join(b'"%d":' % i + SCALAR + b"[]," * 340_000 + b"[]]}" for i in range(20))
        + b"}"
    ),
}
"""As much as is read at all; whether it is then a header is not the question."""
