"""Safetensors headers, and pickles; and of every format the hostile ones."""

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
from builders import fixtures, headed, safetensors
from hostile import LARGE, ONE_TOO_MANY, REASONS, REFUSED

from model_catalog import BadHeaderError, NotAFileError, ProtectedFileError, UnknownFormatError
from model_catalog.files import safe_open
from model_catalog.files.formats.header_reader import Header, read_header


def written(tmp_path, content, name="model.safetensors"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_a_header_is_read(tmp_path):
    """
    The parameters, the type most of them have, and how long the file has to be.
    """
    content = safetensors()

    header = read_header(written(tmp_path, content))

    assert header == Header(
        format="safetensors",
        quantization="F16",
        parameter_count=34,
        expected_size_bytes=len(content),
        is_complete=True,
    )


def test_the_names_of_modelspec_are_read(tmp_path):
    """
    Those who put a title into the metadata are believed as far as a title goes.
    """
    metadata = {
        "format": "pt",
        "modelspec.architecture": "flux-1-dev",
        "modelspec.title": "Flux",
        "modelspec.license": "other",
        "license": "not this one",
        "ss_tag_frequency": "x" * 200_000,
    }

    header = read_header(written(tmp_path, safetensors(metadata=metadata)))

    assert (header.architecture, header.name, header.license) == ("flux-1-dev", "Flux", "other")


def test_a_text_that_is_no_name_is_not_believed(tmp_path):
    """
    Escapes, lone surrogates and long texts are nothing.
    """
    metadata = {
        "modelspec.title": "\x1b[2J",
        "license": "\ud800",
        "modelspec.architecture": "x" * 129,
    }

    header = read_header(written(tmp_path, safetensors(metadata=metadata)))

    assert (header.architecture, header.name, header.license) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "complete"),
    [(lambda c: c, True), (lambda c: c[:-1], False), (lambda c: c + b"x", True)],
    ids=["whole", "a byte short", "a byte more"],
)
def test_a_file_that_is_too_short_is_not_complete(tmp_path, change, complete):
    """
    The file is to be at least as long as its tensors say.
    """
    header = read_header(written(tmp_path, change(safetensors())))

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
    ids=["empty", "padded", "blanks and a scalar", "unknown type", "half bytes", "empty tensor"],
)
def test_unusual_headers_are_read(tmp_path, header, parameters):
    """
    What the format allows and few write.
    """
    assert read_header(written(tmp_path, headed(header, b"x"))).parameter_count == parameters


def test_a_header_longer_than_the_window_is_read(tmp_path):
    """
    Wherever the border of what is in memory falls: in a name, a number, a letter of two bytes.
    """
    for shift in range(40):
        tensors = [("ä" * 20 + f".{i}", "F16", (1, 12, 1)) for i in range(1500)]
        header = read_header(written(tmp_path, safetensors(tensors, metadata={"a": "x" * shift})))

        assert (header.parameter_count, header.is_complete) == (18_000, True)


def test_a_length_that_looks_like_a_pickle_is_a_length(tmp_path):
    """
    A header of 640 bytes begins with the two bytes of a pickle, and is none.
    """
    content = safetensors()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].ljust(640)

    found = read_header(written(tmp_path, headed(header, content[8 + length :])))

    assert (found.format, found.unsafe) == ("safetensors", False)


def read_mutations(path, number, seed):
    """How many of so many were still read; another error than ours ends the test."""
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
            # The length is what it was made for, so that more than the end is looked at.
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
    Of 4,000 headers that chance has damaged none does more than raise BadHeaderError.
    """
    read = read_mutations(tmp_path / "m", 4_000, seed=20260101)

    # Both happen, or the mutations were all too mild or all too wild.
    assert 100 < read < 3_900


@pytest.mark.slow
def test_very_many_mutated_headers_are_read_or_refused(tmp_path):
    """
    The same of 100,000.
    """
    assert read_mutations(tmp_path / "m", 100_000, seed=7)


def read_limited(path):
    """Read a header in a process of its own, with 2 s of the processor; what came, and MiB."""
    code = """if True:
        import resource, sys
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        from model_catalog.files.formats.header_reader import read_header
        try:
            found = read_header(sys.argv[1]).format
        except Exception as error:
            found = type(error).__name__
        # Not ru_maxrss: of a child it counts what its parent had at the fork.
        peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
        kib = int(peak[0].split()[1]) if peak else resource.getrusage(0).ru_maxrss
        print(found, kib // 1024)
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        # A processor that two workers share counts more seconds for the same work. What costs too
        # much by itself does so each time.
        if done.returncode != -signal.SIGKILL:
            break
    assert done.returncode == 0, done.stderr or f"killed by {-done.returncode}"
    found, mebibytes = done.stdout.split()
    return found, int(mebibytes)


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_header_is_refused(tmp_path, name):
    """
    At once: what a header claims to be long is never waited for.
    """
    path = written(tmp_path, REFUSED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime

    with pytest.raises(BadHeaderError, match=f"cannot be read: .*{REASONS[name]}") as caught:
        read_header(path)

    assert caught.value.path == str(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 2


# None of the small ones makes much more of itself than it is: these are those that might.
COSTLY = ["array of 40 million texts", "safetensors: a mebibyte of lists"]
COSTLY += ["safetensors: a name of megabytes", "safetensors: 100,000 objects deep"]


@pytest.mark.parametrize("name", COSTLY)
def test_a_refused_header_costs_little(tmp_path, name):
    """
    Less than 2 s of the processor and 64 MiB, the interpreter among them.
    """
    path = written(tmp_path, REFUSED[name])
    if name == "array of 40 million texts":
        os.truncate(path, 2 * 1024**3)

    found, mebibytes = read_limited(path)

    assert found == "BadHeaderError"
    assert mebibytes < 64


@pytest.mark.parametrize(("content", "zeros"), ONE_TOO_MANY.values(), ids=ONE_TOO_MANY)
def test_a_list_that_is_too_long_is_refused(tmp_path, content, zeros):
    """
    Before it is read, although all of it is there.
    """
    path = written(tmp_path, content)
    os.truncate(path, len(content) + zeros)

    with pytest.raises(BadHeaderError, match="more than 4,000,000"):
        read_header(path)


@pytest.mark.slow
@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE)
def test_the_largest_header_costs_little(tmp_path, content):
    """
    Neither does one that is as large as may be.
    """
    _, mebibytes = read_limited(written(tmp_path, content))

    assert mebibytes < 64


@pytest.mark.slow
def test_a_header_of_100_megabytes_costs_little(tmp_path):
    """
    Nor one as long as the format allows.
    """
    path = written(tmp_path, headed(b"{" + b" " * 99_000_000 + b"}"))

    found, mebibytes = read_limited(path)

    assert found == "safetensors"
    assert mebibytes < 64


class Touch:
    """What touches a file when it is unpickled."""

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
def test_a_pickle_is_recognised_and_never_loaded(tmp_path, protocol, wrap):
    """
    Weights that run code when they are loaded are marked, whatever they are called.
    """
    ran = tmp_path / "ran"
    content = pickle.dumps(Touch(ran), protocol)
    if wrap == "zip":
        content = zipped("archive/data.pkl", content)

    header = read_header(written(tmp_path, content, "model.safetensors"))

    assert (header.format, header.unsafe) == ("pickle", True)
    assert not ran.exists()
    # What would have happened.
    if wrap == "plain":
        pickle.loads(content)
        assert ran.exists()


def test_a_pickle_that_hides_behind_others_is_found(tmp_path):
    """
    Every name in a zip is looked at, and not only the first.
    """
    content = zipped("x/evil.pkl", b"x", also=[f"weights/{i}" for i in range(2000)])

    assert read_header(written(tmp_path, content)).unsafe


def beyond_4_gib(content):
    """The same zip, with the place of its list written where that of a large one is."""
    head, end = content[:-22], content[-22:]
    count, size, start = struct.unpack_from("<HII", end, 10)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(head), 1)
    return head + record + locator + end[:12] + b"\xff" * 8 + end[20:]


def test_a_large_zip_is_searched_as_well(tmp_path):
    """
    Beyond 4 GiB a zip keeps the place of its list elsewhere.
    """
    path = written(tmp_path, beyond_4_gib(zipped("x/data.pkl", b"x", also=["a", "b"])))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["a", "b", "x/data.pkl"]

    assert read_header(path).unsafe


def test_a_pickle_in_a_zip_that_was_cut_off_is_incomplete(tmp_path):
    """
    PyTorch writes the pickle first: half a download is told.
    """
    content = zipped("archive/data.pkl", b"x" * 1000)

    header = read_header(written(tmp_path, content[:500]))

    assert (header.format, header.is_complete, header.unsafe) == ("pickle", False, True)


def damaged(at, value):
    """A zip whose end is another from there on."""
    content = zipped("weights.npy", b"x" * 50)
    return content[:at] + value + content[len(content) + at + len(value) :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped("weights.npy", b"x" * 50)[:60], "cut off"),
        (b"PK\x03\x04", "cut off"),
        (damaged(-10, b"\xff\xff\xff\x0f"), "too long"),
        (damaged(-10, struct.pack("<I", 99)), "too long"),
        (damaged(-6, b"\xff\xff\xff\xff"), "cut off"),
        (damaged(-6, b"\x01\0\0\0"), "damaged"),
        (damaged(-10, struct.pack("<I", 40)), "damaged"),
    ],
    ids=[
        "cut off",
        "magic alone",
        "endless list",
        "list longer than the file",
        "no other list",
        "list elsewhere",
        "list cut off",
    ],
)
def test_a_zip_that_cannot_be_searched_is_refused(tmp_path, content, reason):
    """
    What is in it nobody knows, so it is not said to be harmless.
    """
    with pytest.raises(BadHeaderError, match=reason):
        read_header(written(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [b"", b"G", b"GGML", b"<!DOCTYPE html>", bytes(100), zipped("a.npy", b"x"), b"\x80\x01xx"],
    ids=["empty", "a letter", "GGML", "a web page", "zeros", "another zip", "another protocol"],
)
def test_what_begins_like_no_format_says_so(tmp_path, content):
    """
    Something else is not a broken model; who does not care catches both at once.
    """
    with pytest.raises(UnknownFormatError) as caught:
        read_header(written(tmp_path, content))

    assert isinstance(caught.value, BadHeaderError)


def test_a_header_is_read_only_from_a_file_that_may_be_opened(tmp_path):
    """
    No FIFO hangs, and no database loses its locks.
    """
    os.mkfifo(tmp_path / "fifo")
    path = written(tmp_path, safetensors())

    with pytest.raises(NotAFileError):
        read_header(tmp_path / "fifo")
    with pytest.raises(ProtectedFileError):
        read_header(path, protected=[safe_open.file_identity(path.stat())])
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "gone")


def said_by_the_package(path):
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


def said_by_us(path):
    header = read_header(path)
    assert header.format == "safetensors"
    return {
        "quantization": header.quantization,
        "parameter_count": header.parameter_count,
        "license": header.license,
        "expected_size_bytes": header.expected_size_bytes,
        "is_complete": header.is_complete,
    }


def test_what_the_safetensors_package_writes_is_read(tmp_path):
    """
    A file of the package's own making is read as the package reads it.
    """
    numpy = pytest.importorskip("numpy")
    oracle = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    kinds = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
    tensors = {kind: numpy.zeros((3, i + 1), dtype=kind) for i, kind in enumerate(kinds)}
    tensors |= {"scalar": numpy.zeros((), dtype="float32"), "none": numpy.zeros((0, 4))}
    tensors |= {"größe": numpy.zeros((7, 11), dtype="float16")}

    oracle.save_file(tensors, path, metadata={"license": "mit", "format": "np"})

    assert said_by_us(path) == said_by_the_package(path)


def test_the_safetensors_package_reads_what_the_tests_write(tmp_path):
    """
    The builder of these tests writes what others call safetensors.
    """
    path = written(tmp_path, safetensors(metadata={"license": "mit"}))

    assert said_by_us(path) == said_by_the_package(path)


@pytest.mark.parametrize("name", ["jfk-codes.safetensors", "voices.safetensors"])
def test_real_files_are_read_as_the_safetensors_package_reads_them(name):
    """
    Files that came with other programs.
    """
    path = fixtures() / name

    assert said_by_us(path) == said_by_the_package(path)
