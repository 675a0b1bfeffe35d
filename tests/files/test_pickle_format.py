"""Detection of pickles and of unknown formats."""

import io
import os
import pickle
import struct
import zipfile

import pytest
from builders import safetensors

from model_catalog import BadHeaderError, NotAFileError, ProtectedFileError, UnknownFormatError
from model_catalog.files import safe_open
from model_catalog.files.formats.header_reader import read_header


def write_model(tmp_path, content, name="model.safetensors"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


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
    [b"", b"G", b"GGML", bytes(100), zipped("a.npy", b"x"), b"\x80\x01xx"],
    ids=["empty", "one letter", "GGML", "zeros", "other zip", "other protocol"],
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
