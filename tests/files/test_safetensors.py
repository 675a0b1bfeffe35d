"""Safetensors headers and pickles, and hostile headers of every format."""

import io
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import zipfile

import pytest
from builders import fixtures, raw_safetensors, safetensors
from hostile import LARGE, ONE_TOO_MANY, REASONS, REFUSED

from model_catalog import BadHeaderError, NotAFileError, ProtectedFileError, UnknownFormatError
from model_catalog.files import safe_open
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
    Escapes, lone surrogates and long texts are ignored.
    """
    metadata = {
        "modelspec.title": "\x1b[2J",
        "license": "\ud800",
        "modelspec.architecture": "x" * 129,
    }

    header = read_header(write_model(tmp_path, safetensors(metadata=metadata)))

    assert (header.architecture, header.name, header.license) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "complete"),
    [(lambda c: c, True), (lambda c: c[:-1], False), (lambda c: c + b"x", True)],
    ids=["complete", "one byte short", "one byte more"],
)
def test_a_file_that_is_too_short_is_incomplete(tmp_path, change, complete):
    """
    The file must be at least as long as its tensors need.
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
    """Return how many mutated files were read. Any error but BadHeaderError fails the test."""
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
            hash(read_header(path))
        except BadHeaderError:
            continue
        read += 1
    return read


def test_a_mutated_header_is_read_or_refused(tmp_path):
    """
    4,000 randomly damaged headers raise nothing but BadHeaderError.
    """
    read = read_mutations(tmp_path / "m", 4_000, seed=20260101)

    # Both outcomes must occur. Otherwise the mutations are too weak or too strong.
    assert 100 < read < 3_900


@pytest.mark.slow
def test_very_many_mutated_headers_are_read_or_refused(tmp_path):
    """
    The same with 100,000 headers.
    """
    assert read_mutations(tmp_path / "m", 100_000, seed=7)


def read_limited(path):
    """Read a header in a new process with 2 s of CPU time; return its format and the MiB used."""
    code = """if True:
        import resource, sys
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        from model_catalog.files.formats.header_reader import read_header
        try:
            found = read_header(sys.argv[1]).format
        except Exception as error:
            found = type(error).__name__
        # ru_maxrss would include the memory that the parent had at the fork.
        peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
        kib = int(peak[0].split()[1]) if peak else resource.getrusage(0).ru_maxrss
        print(found, kib // 1024)
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        # On a CPU core that two workers share, the same work can take more CPU time. A real
        # regression fails each time.
        if done.returncode != -signal.SIGKILL:
            break
    assert done.returncode == 0, done.stderr or f"killed by {-done.returncode}"
    found, mebibytes = done.stdout.split()
    return found, int(mebibytes)


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_header_is_refused(tmp_path, name):
    """
    At once: a length that a header claims is never read or allocated.
    """
    path = write_model(tmp_path, REFUSED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime

    with pytest.raises(BadHeaderError, match=f"cannot be read: .*{REASONS[name]}") as caught:
        read_header(path)

    assert caught.value.path == str(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 2


# These hostile files could need much more memory than their size.
COSTLY = ["array of 40 million texts", "safetensors: 1 MiB of lists"]
COSTLY += ["safetensors: a name of megabytes", "safetensors: 100,000 objects deep"]


@pytest.mark.parametrize("name", COSTLY)
def test_a_refused_header_needs_little_time_and_memory(tmp_path, name):
    """
    Less than 2 s of CPU time and 64 MiB, including the interpreter.
    """
    path = write_model(tmp_path, REFUSED[name])
    if name == "array of 40 million texts":
        os.truncate(path, 2 * 1024**3)

    found, mebibytes = read_limited(path)

    assert found == "BadHeaderError"
    assert mebibytes < 64


@pytest.mark.parametrize(("content", "zeros"), ONE_TOO_MANY.values(), ids=ONE_TOO_MANY)
def test_a_list_that_is_too_long_is_refused(tmp_path, content, zeros):
    """
    Before it is read, although all of it exists.
    """
    path = write_model(tmp_path, content)
    os.truncate(path, len(content) + zeros)

    with pytest.raises(BadHeaderError, match="more than 4,000,000"):
        read_header(path)


@pytest.mark.slow
@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE)
def test_the_largest_header_needs_little_memory(tmp_path, content):
    """
    The header is as large as the limits allow.
    """
    _, mebibytes = read_limited(write_model(tmp_path, content))

    assert mebibytes < 64


@pytest.mark.slow
def test_a_header_of_100_megabytes_needs_little_memory(tmp_path):
    """
    That is the limit of the format.
    """
    path = write_model(tmp_path, raw_safetensors(b"{" + b" " * 99_000_000 + b"}"))

    found, mebibytes = read_limited(path)

    assert found == "safetensors"
    assert mebibytes < 64


class Touch:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def zipped(name, content, *, also=()):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for each in also:
            archive.writestr(each, b"x" * 50)
        archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5], ids=lambda protocol: f"protocol {protocol}")
@pytest.mark.parametrize("wrap", ["plain", "zip"])
def test_a_pickle_is_detected_and_never_loaded(tmp_path, protocol, wrap):
    """
    Weights that run code when they are loaded are marked as unsafe, whatever the file name is.
    """
    ran = tmp_path / "ran"
    content = pickle.dumps(Touch(ran), protocol)
    if wrap == "zip":
        content = zipped("archive/data.pkl", content)

    header = read_header(write_model(tmp_path, content, "model.safetensors"))

    assert (header.format, header.unsafe) == ("pickle", True)
    assert not ran.exists()
    # Loading it would have run its code.
    if wrap == "plain":
        pickle.loads(content)
        assert ran.exists()


def test_a_pickle_after_other_entries_of_a_zip_is_found(tmp_path):
    """
    All names in a zip are searched, and not only the first.
    """
    content = zipped("x/evil.pkl", b"x", also=[f"weights/{i}" for i in range(2000)])

    assert read_header(write_model(tmp_path, content)).unsafe


def beyond_4_gib(content):
    """Return the same zip with its directory offset in a Zip64 record, as in a zip over 4 GiB."""
    head, end = content[:-22], content[-22:]
    count, size, start = struct.unpack_from("<HII", end, 10)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(head), 1)
    return head + record + locator + end[:12] + b"\xff" * 8 + end[20:]


def test_a_zip64_file_is_searched(tmp_path):
    """
    A zip of more than 4 GiB stores the offset of its directory in another record.
    """
    path = write_model(tmp_path, beyond_4_gib(zipped("x/data.pkl", b"x", also=["a", "b"])))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["a", "b", "x/data.pkl"]

    assert read_header(path).unsafe


def test_a_pickle_in_a_truncated_zip_is_incomplete(tmp_path):
    """
    PyTorch writes the pickle first, so half a download is detected.
    """
    content = zipped("archive/data.pkl", b"x" * 1000)

    header = read_header(write_model(tmp_path, content[:500]))

    assert (header.format, header.is_complete, header.unsafe) == ("pickle", False, True)


def damaged(at, value):
    """Return a zip with other bytes from an offset, counted from its end."""
    content = zipped("weights.npy", b"x" * 50)
    return content[:at] + value + content[len(content) + at + len(value) :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped("weights.npy", b"x" * 50)[:60], "truncated"),
        (b"PK\x03\x04", "truncated"),
        (damaged(-10, b"\xff\xff\xff\x0f"), "too large"),
        (damaged(-10, struct.pack("<I", 99)), "too large"),
        (damaged(-6, b"\xff\xff\xff\xff"), "truncated"),
        (damaged(-6, b"\x01\0\0\0"), "damaged"),
        (damaged(-10, struct.pack("<I", 40)), "damaged"),
    ],
    ids=[
        "truncated",
        "magic only",
        "huge directory",
        "directory longer than the file",
        "no Zip64 record",
        "wrong directory offset",
        "truncated directory",
    ],
)
def test_a_zip_that_cannot_be_searched_is_refused(tmp_path, content, reason):
    """
    Its content is unknown, so it is not reported as safe.
    """
    with pytest.raises(BadHeaderError, match=reason):
        read_header(write_model(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [b"", b"G", b"GGML", b"<!DOCTYPE html>", bytes(100), zipped("a.npy", b"x"), b"\x80\x01xx"],
    ids=["empty", "one letter", "GGML", "web page", "zeros", "other zip", "other protocol"],
)
def test_an_unknown_format_has_an_error_of_its_own(tmp_path, content):
    """
    It is not a damaged model. BadHeaderError catches both.
    """
    with pytest.raises(UnknownFormatError) as caught:
        read_header(write_model(tmp_path, content))

    assert isinstance(caught.value, BadHeaderError)


def test_a_header_is_read_only_from_a_file_that_may_be_opened(tmp_path):
    """
    A FIFO does not block, and no database loses its locks.
    """
    os.mkfifo(tmp_path / "fifo")
    path = write_model(tmp_path, safetensors())

    with pytest.raises(NotAFileError):
        read_header(tmp_path / "fifo")
    with pytest.raises(ProtectedFileError):
        read_header(path, protected=[safe_open.file_identity(path.stat())])
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "gone")


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
