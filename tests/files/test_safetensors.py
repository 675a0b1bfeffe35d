"""Safetensors headers, compared with the safetensors package."""

import random

import pytest
from builders import fixtures, raw_safetensors, safetensors

from model_catalog import BadHeaderError
from model_catalog.files.formats.header_reader import Header, read_header


def write_model(tmp_path, content, name="model.safetensors"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_a_header_is_read(tmp_path):
    """
    It gives the parameters, their most frequent type, and the size that the file needs.
    """
    content = safetensors()

    header = read_header(write_model(tmp_path, content))

    assert header == Header(
        format="safetensors",
        quantization="F16",
        parameter_count=34,
        expected_size_bytes=len(content),
        is_complete=True,
    )


def test_the_modelspec_keys_are_read(tmp_path):
    """
    Architecture, title and license in the metadata are used.
    """
    metadata = {
        "format": "pt",
        "modelspec.architecture": "flux-1-dev",
        "modelspec.title": "Flux",
        "modelspec.license": "other",
        "license": "not this one",
        "ss_tag_frequency": "x" * 200_000,
    }

    header = read_header(write_model(tmp_path, safetensors(metadata=metadata)))

    assert (header.architecture, header.name, header.license) == ("flux-1-dev", "Flux", "other")


def test_an_unsafe_text_is_not_accepted(tmp_path):
    """
    Escapes and long texts are ignored.
    """
    metadata = {
        "modelspec.title": "\x1b[2J",
        "license": "\u202ea",
        "modelspec.architecture": "x" * 129,
    }

    header = read_header(write_model(tmp_path, safetensors(metadata=metadata)))

    assert (header.architecture, header.name, header.license) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "complete"),
    [(lambda c: c, True), (lambda c: c[:-1], False), (lambda c: c + b"x", False)],
    ids=["complete", "one byte short", "one byte more"],
)
def test_a_file_of_another_size_is_not_complete(tmp_path, change, complete):
    """
    The file must be exactly as long as its tensors need. safetensors 0.8.0 opens no other.
    """
    header = read_header(write_model(tmp_path, change(safetensors())))

    assert header.is_complete is complete


@pytest.mark.parametrize(
    ("header", "parameters"),
    [
        (b"{}", 0),
        (b"{}   ", 0),
        (b' \n\t{ "a" : {"shape":[],"data_offsets":[0,1],"dtype":"U8","x":1.5e3} } '.lstrip(), 1),
        (b'{"a":{"dtype":"F99","shape":[3],"data_offsets":[0,1]}}', 3),
        (b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', 2),
        (b'{"a":{"dtype":"U8","shape":[0,9],"data_offsets":[0,0]}}', 0),
    ],
    ids=["empty", "padded", "whitespace and scalar", "unknown type", "half bytes", "empty tensor"],
)
def test_unusual_headers_are_read(tmp_path, header, parameters):
    """
    The format allows them, although few programs write them.
    """
    assert (
        read_header(write_model(tmp_path, raw_safetensors(header, b"x"))).parameter_count
        == parameters
    )


@pytest.mark.slow
def test_a_header_longer_than_the_read_window_is_read(tmp_path):
    """
    The window can end in a name, a number or a character of two bytes.
    """
    for shift in range(40):
        tensors = [("ä" * 20 + f".{i}", "F16", (1, 12, 1)) for i in range(1500)]
        header = read_header(
            write_model(tmp_path, safetensors(tensors, metadata={"a": "x" * shift}))
        )

        assert (header.parameter_count, header.is_complete) == (18_000, True)


def test_a_header_length_that_looks_like_a_pickle_is_recognized(tmp_path):
    """
    A file with a header of 640 bytes starts with the two bytes of a pickle.
    """
    content = safetensors()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].ljust(640)

    found = read_header(write_model(tmp_path, raw_safetensors(header, content[8 + length :])))

    assert (found.format, found.unsafe) == ("safetensors", False)


def read_mutations(path, number, seed):
    """Return how many mutated files were read, as many as the safetensors package opens."""
    rng = random.Random(seed)
    tensors = [("a", "F16", (4, 8)), ("b.ä", "F32", ()), ("c", "BF16", (0, 3)), ("d", "F4", (6,))]
    content = safetensors(tensors, metadata={"format": "pt", "license": "mit"})
    pieces = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\u", b"null", b"NaN", b"1e999", b"-1"]
    pieces += [b"\xff", b"9" * 30, b'"a":1,', b" ", b"true", b"\0", b"\\ud800", b"__metadata__"]
    read = 0
    for _ in range(number):
        raw = bytearray(content)
        for _ in range(rng.randrange(1, 3)):
            at = rng.randrange(8 if rng.random() < 0.8 else 0, len(raw) - 80)
            match rng.randrange(4):
                case 0:
                    raw[at] = rng.choice(b'0123456789{}[],:" ')
                case 1:
                    raw[at] = rng.randrange(256)
                case 2:
                    del raw[at : at + rng.randrange(1, 20)]
                case 3:
                    raw[at:at] = rng.choice(pieces)
        if rng.random() < 0.5:
            # Correct the length, so that the parser reads more than the beginning.
            end = raw.rfind(b"}") + 1
            raw[:8] = (end - 8).to_bytes(8, "little") if end > 8 else raw[:8]
        path.write_bytes(raw)
        try:
            header = read_header(path)
        except BadHeaderError:
            assert not opens(path), bytes(raw)
            continue
        read += 1
        # A type that the package does not know may be newer.
        is_known = {dtype for _, dtype, _ in header.tensor_counts or ()} <= set(DTYPES)
        assert opens(path) == (header.is_complete and is_known), bytes(raw)
    return read


@pytest.mark.slow
def test_a_mutated_header_is_read_or_refused(tmp_path):
    """
    Of 4,000 randomly damaged headers, those are whole that safetensors 0.8.0 opens.
    """
    read = read_mutations(tmp_path / "m", 4_000, seed=20260101)

    # Both outcomes must occur. Otherwise the mutations are too weak or too strong.
    assert 100 < read < 3_900


@pytest.mark.slow
def test_more_mutated_headers_are_read_or_refused(tmp_path):
    """
    The same with 8,000 other headers. The fuzzers try many more.
    """
    assert read_mutations(tmp_path / "m", 8_000, seed=7)


def read_with_package(path):
    oracle = pytest.importorskip("safetensors")
    sizes = {}
    with oracle.safe_open(path, "np") as file:
        for name in list(file.keys()):
            piece = file.get_slice(name)
            count = 1
            for size in piece.get_shape():
                count *= size
            sizes[piece.get_dtype()] = sizes.get(piece.get_dtype(), 0) + count
        metadata = file.metadata() or {}
    return {
        "quantization": max(sorted(sizes), key=sizes.get),
        "parameter_count": sum(sizes.values()),
        "license": metadata.get("license"),
        # It opens no file that is a byte longer or shorter than its tensors.
        "expected_size_bytes": path.stat().st_size,
        "is_complete": True,
    }


def read_with_catalog(path):
    header = read_header(path)
    assert header.format == "safetensors"
    return {
        "quantization": header.quantization,
        "parameter_count": header.parameter_count,
        "license": header.license,
        "expected_size_bytes": header.expected_size_bytes,
        "is_complete": header.is_complete,
    }


def test_a_file_of_the_safetensors_package_is_read_as_the_package_reads_it(tmp_path):
    """
    The package writes the file, and both readers give the same values.
    """
    numpy = pytest.importorskip("numpy")
    oracle = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    kinds = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
    tensors = {kind: numpy.zeros((3, i + 1), dtype=kind) for i, kind in enumerate(kinds)}
    tensors |= {"scalar": numpy.zeros((), dtype="float32"), "none": numpy.zeros((0, 4))}
    tensors |= {"größe": numpy.zeros((7, 11), dtype="float16")}

    oracle.save_file(tensors, path, metadata={"license": "mit", "format": "np"})

    assert read_with_catalog(path) == read_with_package(path)


def test_the_safetensors_package_reads_the_files_of_these_tests(tmp_path):
    """
    The builder of these tests writes valid safetensors.
    """
    path = write_model(tmp_path, safetensors(metadata={"license": "mit"}))

    assert read_with_catalog(path) == read_with_package(path)


@pytest.mark.parametrize("name", ["jfk-codes.safetensors", "voices.safetensors"])
def test_real_files_are_read_as_the_safetensors_package_reads_them(name):
    """
    These files come with other programs.
    """
    path = fixtures() / name

    assert read_with_catalog(path) == read_with_package(path)


VALID = b'"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
REST = b'"dtype":"F16","shape":[2],"data_offsets":[0,4]}'


def in_object(*members):
    return b"{" + b",".join(members) + b"}"


def with_value(value):
    """A header whose tensor has one more member with this value."""
    return in_object(b'"a":{"x":' + value + b"," + REST)


def empty_tensor(at):
    return b'"c":{"dtype":"F16","shape":[0],"data_offsets":[%d,%d]}' % (at, at)


HALVES = (
    b'"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}',
    b'"b":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}',
)
HEADERS = {
    "no metadata": in_object(b'"__metadata__":null', VALID),
    "metadata twice": in_object(b'"__metadata__":null', b'"__metadata__":{}', VALID),
    "name twice in the metadata": in_object(b'"__metadata__":{"x":"1","x":"2"}', VALID),
    "null in the metadata": in_object(b'"__metadata__":{"x":null}', VALID),
    "number in the metadata": in_object(b'"__metadata__":{"x":1}', VALID),
    "3 MB of metadata": in_object(b'"__metadata__":{"x":"' + b"\\u00e4" * 500_000 + b'"}', VALID),
    "escapes": in_object(rb'"__metadata__":{"x":"\/\b\f\n\r\t\"\\\ud83e\udd99\uD7FF"}', VALID),
    "half a pair": in_object(rb'"__metadata__":{"x":"\ud83e\u0041"}', VALID),
    "second half of a pair": in_object(rb'"__metadata__":{"x":"\udd99"}', VALID),
    "unknown escape": in_object(rb'"__metadata__":{"x":"\x"}', VALID),
    "control character": in_object(b'"__metadata__":{"x":"\x01"}', VALID),
    "delete character": in_object(b'"__metadata__":{"x":"\x7f"}', VALID),
    "tensor twice": in_object(HALVES[0], VALID),
    "tensor twice, by an escape": in_object(VALID.replace(b'"a"', rb'"\u0061"'), VALID),
    "dtype twice": in_object(b'"a":{"dtype":"F16",' + REST),
    "unknown member twice": in_object(b'"a":{"x":1,"x":2,' + REST),
    "tensor as a list": in_object(b'"a":["F16",[2],[0,4]]'),
    "tensor as a longer list": in_object(b'"a":["F16",[2],[0,4],1]'),
    "tensor is null": in_object(b'"a":null', VALID.replace(b'"a"', b'"b"')),
    "125 levels in a tensor": with_value(b"[" * 125 + b"]" * 125),
    "126 levels in a tensor": with_value(b"[" * 126 + b"]" * 126),
    "126 brackets in a text": with_value(b'"' + b"[" * 126 + b'"'),
    "infinite number": with_value(b"1e999"),
    "tiny number": with_value(b"1e-999"),
    "integer of 300 digits": with_value(b"9" * 300),
    "integer of 400 digits": with_value(b"9" * 400),
    "NaN": with_value(b"NaN"),
    "leading zero": with_value(b"01"),
    "negative zero": with_value(b"-0"),
    "negative zero as an offset": in_object(VALID.replace(b"[0,", b"[-0,")),
    "lone surrogate": with_value(rb'"\ud800"'),
    "fraction": in_object(VALID.replace(b"[2]", b"[2.0]")),
    "leading whitespace": b" \n" + in_object(VALID),
    "trailing whitespace": in_object(VALID) + b" \n\t\r",
    "trailing NUL": in_object(VALID) + b"\0",
    "byte order mark": b"\xef\xbb\xbf" + in_object(VALID),
    "100 dimensions": in_object(VALID.replace(b"[2]", b"[2" + b",1" * 99 + b"]")),
    "overflow before a zero": in_object(
        b'"c":{"dtype":"F16","shape":[9223372036854775808,4,0],"data_offsets":[0,0]}', VALID
    ),
    "overflow after a zero": in_object(
        b'"c":{"dtype":"F16","shape":[0,9223372036854775808,4],"data_offsets":[0,0]}', VALID
    ),
    "largest size": in_object(
        b'"c":{"dtype":"F16","shape":[18446744073709551615,0],"data_offsets":[0,0]}', VALID
    ),
    "gap": in_object(HALVES[1]),
    "overlap": in_object(VALID, VALID.replace(b'"a"', b'"b"')),
    "reverse order": in_object(*reversed(HALVES)),
    "empty tensor first": in_object(VALID, empty_tensor(0)),
    "empty tensor within another": in_object(VALID, empty_tensor(2)),
    "empty tensor between two": in_object(*HALVES, empty_tensor(2)),
    "empty tensor last": in_object(VALID, empty_tensor(4)),
    "missing shape": in_object(b'"a":{"dtype":"F16","data_offsets":[0,4]}'),
    "odd number of half bytes": in_object(
        b'"a":{"dtype":"F4","shape":[7],"data_offsets":[0,4]}'
    ),
    "six bits": in_object(
        b'"a":{"dtype":"F6_E3M2","shape":[4],"data_offsets":[0,3]}',
        b'"b":{"dtype":"U8","shape":[],"data_offsets":[3,4]}',
    ),
}  # fmt: skip
WHOLE = {
    *("no metadata", "name twice in the metadata", "3 MB of metadata", "escapes"),
    *("delete character", "tensor twice", "tensor twice, by an escape", "unknown member twice"),
    *("tensor as a list", "125 levels in a tensor", "126 brackets in a text", "tiny number"),
    *("integer of 300 digits", "negative zero", "leading whitespace", "trailing whitespace"),
    *("100 dimensions", "overflow after a zero", "largest size", "reverse order"),
    *("empty tensor first", "empty tensor between two", "empty tensor last", "six bits"),
}


def opens(path):
    oracle = pytest.importorskip("safetensors")
    try:
        with oracle.safe_open(path, "np"):
            return True
    except oracle.SafetensorError:
        return False


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_accepted_if_the_safetensors_package_accepts_it(tmp_path, name):
    """
    safetensors 0.8.0 opens the same files, and no others.
    """
    path = write_model(tmp_path, raw_safetensors(HEADERS[name], bytes(4)))

    try:
        is_whole = read_header(path).is_complete
    except BadHeaderError:
        is_whole = False

    assert is_whole == (name in WHOLE) == opens(path)


DTYPES = {
    **dict.fromkeys(["F4"], 4),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"], 8),
    **dict.fromkeys(["F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 16),
    **dict.fromkeys(["I32", "U32", "F32"], 32),
    **dict.fromkeys(["C64", "F64", "I64", "U64"], 64),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_of_the_safetensors_package_is_known(tmp_path, dtype):
    """
    The types are those of safetensors 0.8.0. 8 elements have as many bytes as one has bits.
    """
    header = b'{"a":{"dtype":"%s","shape":[8],"data_offsets":[0,%d]}}'
    right = raw_safetensors(header % (dtype.encode(), DTYPES[dtype]), bytes(DTYPES[dtype]))
    wrong = raw_safetensors(header % (dtype.encode(), DTYPES[dtype] + 1), bytes(DTYPES[dtype] + 1))

    path = write_model(tmp_path, right)
    assert read_header(path).is_complete
    assert opens(path)

    with pytest.raises(BadHeaderError, match="does not match its shape"):
        read_header(write_model(tmp_path, wrong, "wrong"))
    assert not opens(tmp_path / "wrong")


TENSOR = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
QUOTED_DTYPE = '","dtype":"U8'
SPACES = " " * 300 * 1024


@pytest.mark.parametrize(
    "header",
    [
        f"{{{TENSOR}}}",
        f"{{{TENSOR},{TENSOR.replace('U8', 'I8')}}}",
        f"{{{TENSOR.replace('dtype', 'shape', 1)}}}",
        f"{{{TENSOR.replace('U8', 'I8' + QUOTED_DTYPE)}}}",
        f"{{{TENSOR.replace('[1]', '[-1]')}}}",
        f'{{"__metadata__":null,{TENSOR}}}',
        f'{{"__metadata__":{{"license":"mit","license":"x"}},{TENSOR}}}',
        f'{{"__metadata__":{{"license":1}},{TENSOR}}}',
        f'{{"__metadata__":["x"],{TENSOR}}}',
        f"{{{TENSOR}",
        f"{{{TENSOR}}} x",
        "[1]",
        "",
    ],
)
def test_a_short_header_is_read_as_a_long_one(tmp_path, header):
    """A header up to 256 KiB is decoded at once. With spaces it is long, and read in parts."""
    outcomes = []
    for text in (header, header[:1] + SPACES + header[1:]):
        content = len(text).to_bytes(8, "little") + text.encode() + b"x"
        path = write_model(tmp_path, content)
        try:
            found = read_header(path)
        except BadHeaderError as error:
            outcomes.append(error.reason)
        else:
            assert found.expected_size_bytes == len(content)
            outcomes.append((found.quantization, found.license, found.parameter_count))

    assert outcomes[0] == outcomes[1]
