"""GGUF headers: the values that are read, and mutated headers."""

import random
import struct

import pytest
from builders import F32, LLAMA, PARAMETERS, Q4_0, Q8_0, Gguf, fixtures, gguf

from model_catalog import BadHeaderError
from model_catalog.files.formats import ggml_types
from model_catalog.files.formats.header_reader import Header, read_header

EXPECTED = {"format": "gguf", "architecture": "llama", "quantization": "Q4_K_M", "name": "Tiny"}
EXPECTED |= {"license": "apache-2.0", "context_length": 4096, "parameter_count": PARAMETERS}


def write_model(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


def with_key(name, kind, value):
    return gguf([key for key in LLAMA if key[0] != name] + [(name, kind, value)])


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("version", [1, 2, 3], ids=["version 1", "version 2", "version 3"])
def test_every_version_and_byte_order_is_read(tmp_path, version, order):
    """
    All of them give the same header.
    """
    content = gguf(version=version, order=order)

    header = read_header(write_model(tmp_path, content))

    assert header == Header(**EXPECTED, expected_size_bytes=len(content), is_complete=True)


def test_values_of_every_type_are_skipped(tmp_path):
    """
    A value that is not needed does not stop the reader, whatever its type.
    """
    form = Gguf()
    numbers = [form.number("I", 7)] * 1000
    texts = [form.text("token" * 100_000), *[form.text("x" * i) for i in range(3000)]]
    inner = [form.number("I", 0) + form.length(3) + b"abc"] * 2
    others = [
        (kind, kind, 1)
        for kind in ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "u64", "i64", "f64"]
    ]
    others += [("text", "text", "x" * 300_000)]
    others += [("numbers", "array", form.array(4, numbers))]
    others += [("texts", "array", form.array(8, texts))]
    others += [("arrays", "array", form.array(9, inner))]

    header = read_header(write_model(tmp_path, gguf(tuple(others) + LLAMA)))

    assert (header.architecture, header.parameter_count) == ("llama", PARAMETERS)
    assert header.is_complete


def test_a_file_without_tensors_is_complete(tmp_path):
    """
    A file with only a vocabulary has no weights.
    """
    content = gguf(tensors=())

    header = read_header(write_model(tmp_path, content))

    assert (header.parameter_count, header.is_complete) == (0, True)


def test_a_file_that_lacks_one_byte_is_incomplete(tmp_path):
    """
    A truncated download is detected by its header, without hashing.
    """
    content = gguf(tensors=[("a", (32, 4), F32)])

    whole = read_header(write_model(tmp_path, content))
    short = read_header(write_model(tmp_path, content[:-1]))
    longer = read_header(write_model(tmp_path, content + b"x"))

    assert (whole.is_complete, short.is_complete, longer.is_complete) == (True, False, True)
    assert whole.expected_size_bytes == short.expected_size_bytes == len(content)


def test_the_alignment_comes_from_the_header(tmp_path):
    """
    The tensor data begins at a multiple of general.alignment.
    """
    keys = (*LLAMA, ("general.alignment", "u32", 4096))
    content = gguf(keys, [("a", (1024,), F32)], alignment=4096)

    header = read_header(write_model(tmp_path, content))

    assert header.expected_size_bytes == len(content)


def test_a_tensor_of_an_unknown_type_leaves_the_size_unknown(tmp_path):
    """
    Its parameters are counted. Only the size up to the tensor can be checked.
    """
    form = Gguf()
    infos = form.tensor("a", [32], F32, 0) + form.tensor("b", [8], 99, 128)
    content = form.head(2, 0) + infos
    content += bytes(-len(content) % 32)

    header = read_header(write_model(tmp_path, content + bytes(128)))
    short = read_header(write_model(tmp_path, content + bytes(127)))

    assert (header.parameter_count, header.expected_size_bytes) == (40, None)
    assert (header.is_complete, short.is_complete) == (None, False)


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        ("u32", 15, "Q4_K_M"),
        ("u64", 7, "Q8_0"),
        ("i32", 1, "F16"),
        ("u32", 1024 + 17, "Q5_K_M"),
        ("u32", 999, "ftype 999"),
        ("text", "15", "Q4_0"),
        ("i32", -1, "Q4_0"),
        ("bool", True, "Q4_0"),
    ],
    ids=["known", "64 bits", "signed", "guessed", "unknown", "text", "negative", "bool"],
)
def test_the_quantization_has_its_usual_name(tmp_path, kind, value, name):
    """
    general.file_type is translated. If it is not a number, the tensor types decide.
    """
    path = write_model(
        tmp_path,
        gguf([("general.file_type", kind, value)], [("a", (64,), Q4_0), ("b", (32,), F32)]),
    )

    assert read_header(path).quantization == name


def test_without_a_file_type_the_most_frequent_tensor_type_decides(tmp_path):
    """
    The type with the most parameters counts, not the type with the most tensors.
    """
    path = write_model(tmp_path, gguf((), [("a", (2,), F32), ("b", (2,), F32), ("c", (64,), Q8_0)]))

    assert read_header(path).quantization == "Q8_0"


@pytest.mark.parametrize(
    "value",
    ["", "  ", "a\nb", "a\x1b[2J", "a\u202eb", "x" * 129, b"\xff\xfe", "a\0"],
    ids=["empty", "blank", "line feed", "escape", "reversed", "long", "not UTF-8", "NUL"],
)
@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("general.architecture", "architecture"),
        ("general.name", "name"),
        ("general.license", "license"),
    ],
    ids=["architecture", "name", "license"],
)
def test_an_unsafe_text_is_not_accepted(tmp_path, key, field, value):
    """
    A text from a header is accepted if it has at most 128 characters, all of them printable.
    """
    header = read_header(write_model(tmp_path, with_key(key, "text", value)))

    assert getattr(header, field) is None


def test_a_text_of_128_characters_is_accepted(tmp_path):
    """
    The limit counts characters and not bytes.
    """
    header = read_header(
        write_model(tmp_path, with_key("general.name", "text", "\U0001f999" * 128))
    )

    assert header.name == "\U0001f999" * 128


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        ("u64", 2**31 - 1, 2**31 - 1),
        ("u64", 2**31, None),
        ("u32", 0, None),
        ("i32", -1, None),
        ("f32", 8.0, None),
        ("text", "8", None),
        ("bool", True, None),
    ],
    ids=["largest", "too large", "zero", "negative", "fraction", "text", "bool"],
)
def test_an_invalid_context_length_is_ignored(tmp_path, kind, value, found):
    """
    The rest of the header is still read.
    """
    header = read_header(write_model(tmp_path, with_key("llama.context_length", kind, value)))

    assert (header.context_length, header.architecture) == (found, "llama")


def test_the_context_length_of_the_architecture_is_used(tmp_path):
    """
    A model with a vision tower has two, and the architecture may be the last key.
    """
    keys = [("clip.context_length", "u32", 77), ("llama.context_length", "u32", 8)]
    keys += [("general.architecture", "text", "llama")]

    assert read_header(write_model(tmp_path, gguf(keys))).context_length == 8


def test_the_number_of_context_lengths_is_limited(tmp_path):
    """
    Until the architecture is known, each context length is kept, up to a limit.
    """
    few = [(f"{i}.context_length", "u32", i) for i in range(50)]
    many = [(f"{i}.context_length", "u32", i) for i in range(100)]

    assert read_header(write_model(tmp_path, gguf((*few, *LLAMA)))).context_length == 4096
    assert read_header(write_model(tmp_path, gguf((*many, *LLAMA)))).context_length is None


def test_tensors_can_be_in_any_order(tmp_path):
    """
    The tensor with the largest end decides the size, even if it is not the last in the list.
    """
    form = Gguf()
    content = form.head(2, 0) + form.tensor("b", [8], F32, 32) + form.tensor("a", [8], F32, 0)
    content += bytes(-len(content) % 32)

    assert read_header(write_model(tmp_path, content + bytes(64))).is_complete
    assert not read_header(write_model(tmp_path, content + bytes(63))).is_complete


@pytest.mark.parametrize(
    ("number", "count", "found"),
    [(0, 3, (1, 3)), (2, 3, (3, 3)), (3, 3, (None, None)), (0, 0, (None, None))],
    ids=["first", "last", "after the last", "of zero"],
)
def test_shards_are_counted_from_one(tmp_path, number, count, found):
    """
    File names count from 1, and split.no counts from 0.
    """
    keys = [("split.no", "u16", number), ("split.count", "u16", count)]

    header = read_header(write_model(tmp_path, gguf(keys)))

    assert (header.shard_index, header.shard_count) == found


@pytest.mark.parametrize("kind", ["MODEL", "ADAPTER", "IMATRIX", "MMPROJ"])
def test_the_general_type_of_the_gguf_package_is_read(tmp_path, kind):
    """
    gguf 0.19.0 writes these values of `general.type`.
    """
    oracle = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    value = getattr(oracle.GGUFType, kind)
    writer = oracle.GGUFWriter(path, "qwen3")
    writer.add_type(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    assert read_header(path).general_type == value


def test_a_file_truncated_anywhere_is_refused_or_incomplete(tmp_path):
    """
    Either the header is damaged or the weights are incomplete.
    """
    content = gguf(tensors=[("a", (32,), F32)])
    path = write_model(tmp_path, content)

    for length in range(len(content) - 1, 3, -1):
        with path.open("r+b") as file:
            file.truncate(length)
        try:
            header = read_header(path)
        except BadHeaderError:
            continue
        assert header.is_complete is False
        assert header.parameter_count == 32


def mutated(content, rng, span):
    """Return content with some of its first bytes changed, deleted, inserted or overwritten."""
    raw = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(4, min(len(raw), span))
        match rng.randrange(5):
            case 0 | 1:
                raw[at] = rng.randrange(256)
            case 2:
                extremes = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64)]
                raw[at : at + 8] = struct.pack("<Q", rng.choice(extremes))
            case 3:
                del raw[at : at + rng.randrange(1, 50)]
            case 4:
                raw[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.1 else raw)


def read_mutations(path, number, seed):
    """Return how many mutated files were read. Any error but BadHeaderError fails the test."""
    rng = random.Random(seed)
    form = Gguf()
    texts = form.array(8, [form.text(f"t{i}") for i in range(5)])
    keys = (*LLAMA, ("tokens", "array", texts), ("split.no", "u16", 0), ("split.count", "u16", 2))
    originals = [
        gguf(keys, version=version, order=order) for version in (1, 2, 3) for order in "<>"
    ]
    read = 0
    for _ in range(number):
        content = rng.choice(originals)
        path.write_bytes(mutated(content, rng, 900))
        try:
            header = read_header(path)
        except BadHeaderError:
            continue
        read += 1
        assert header.format == "gguf"
        hash(header)
    return read


@pytest.mark.slow
def test_a_mutated_header_is_read_or_refused(tmp_path):
    """
    6,000 randomly damaged headers raise nothing but BadHeaderError.
    """
    read = read_mutations(tmp_path / "m", 6_000, seed=20260101)

    # Both outcomes must occur. Otherwise the mutations are too weak or too strong.
    assert 500 < read < 5_500


@pytest.mark.slow
def test_more_mutated_headers_are_read_or_refused(tmp_path):
    """
    The same with 8,000 other headers. The fuzzers try many more.
    """
    assert read_mutations(tmp_path / "m", 8_000, seed=7)


def test_the_type_tables_equal_those_of_the_gguf_package():
    """
    Names and sizes of all types are compared.
    """
    oracle = pytest.importorskip("gguf")
    # The package has changed the size of Q8_1 since. No file uses that type.
    theirs = {
        kind.value: (kind.name, *oracle.GGML_QUANT_SIZES[kind])
        for kind in oracle.GGMLQuantizationType
        if kind.name != "Q8_1"
    }
    files = {
        kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for kind in oracle.LlamaFileType
        if kind.name != "GUESSED"
    }

    assert {kind: ggml_types.TENSOR_TYPES.get(kind) for kind in theirs} == theirs
    assert {kind: ggml_types.file_type_name(kind) for kind in files} == files


def read_with_package(oracle, path):
    """Return the header that the gguf package reads, with the field names of this project."""
    reader = oracle.GGUFReader(path)

    def value(name):
        field = reader.get_field(name)
        return None if field is None else field.contents()

    kind = value("general.file_type")
    sizes = {}
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + tensor.n_elements
    names = {kind.value: kind.name for kind in oracle.LlamaFileType}
    if kind is not None:
        quantization = names[kind].removeprefix("MOSTLY_").removeprefix("ALL_")
    else:
        quantization = max(sizes, key=sizes.get) if sizes else None
    ends = [int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors]
    shard = value("split.no")
    return {
        "architecture": value("general.architecture"),
        "context_length": value(f"{value('general.architecture')}.context_length"),
        "quantization": quantization,
        "parameter_count": sum(int(size) for size in sizes.values()),
        "license": value("general.license"),
        "name": value("general.name"),
        "shard_index": None if shard is None else shard + 1,
        "shard_count": value("split.count"),
        "expected_size_bytes": max(ends, default=None),
    }


def read_with_catalog(path, *, weights=True):
    header = read_header(path)
    return {
        "architecture": header.architecture,
        "context_length": header.context_length,
        "quantization": header.quantization,
        "parameter_count": header.parameter_count,
        "license": header.license,
        "name": header.name,
        "shard_index": header.shard_index,
        "shard_count": header.shard_count,
        "expected_size_bytes": header.expected_size_bytes if weights else None,
    }


@pytest.mark.parametrize("order", ["LITTLE", "BIG"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("file_type", [None, 7], ids=["no file type", "Q8_0"])
def test_a_file_of_the_gguf_package_is_read_as_the_package_reads_it(tmp_path, order, file_type):
    """
    The package writes the file, and both readers give the same values.
    """
    oracle, numpy = pytest.importorskip("gguf"), pytest.importorskip("numpy")
    path = tmp_path / "m.gguf"
    writer = oracle.GGUFWriter(path, "qwen2", endianess=oracle.GGUFEndian[order])
    writer.add_context_length(32768)
    writer.add_name("Größe")
    writer.add_license("mit")
    writer.add_custom_alignment(64)
    writer.add_token_list(["a", "b", "ä"])
    writer.add_array("mixed", [[1, 2], [3]])
    writer.add_key_value("split.no", 1, oracle.GGUFValueType.UINT16)
    writer.add_key_value("split.count", 2, oracle.GGUFValueType.UINT16)
    if file_type is not None:
        writer.add_file_type(file_type)
    weights = numpy.zeros((3, 64), dtype=numpy.float32)
    quantized = oracle.quantize(weights, oracle.GGMLQuantizationType.Q8_0)
    writer.add_tensor("a", quantized, raw_dtype=oracle.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b", numpy.zeros((5, 7), dtype=numpy.float16))
    writer.add_tensor("c", numpy.zeros(3, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert read_with_catalog(path) == read_with_package(oracle, path)
    assert read_header(path).is_complete


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("version", [2, 3], ids=["version 2", "version 3"])
def test_the_gguf_package_reads_the_files_of_these_tests(tmp_path, version, order):
    """
    The builder of these tests writes valid GGUF. The package no longer reads version 1.
    """
    oracle = pytest.importorskip("gguf")
    path = write_model(tmp_path, gguf(version=version, order=order))

    assert read_with_catalog(path) == read_with_package(oracle, path)


@pytest.mark.parametrize("name", ["ggml-vocab-bert-bge.gguf", "synthetic/small.gguf"])
def test_real_files_are_read_as_the_gguf_package_reads_them(name):
    """
    llama.cpp and its converters wrote these files.
    """
    path = fixtures() / name
    oracle = pytest.importorskip("gguf")

    ours = read_with_catalog(path, weights="vocab" not in name)

    assert ours == read_with_package(oracle, path)
    assert ours["architecture"]
