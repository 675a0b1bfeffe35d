"""File fingerprints: which changes they detect, and when a fingerprint can be trusted."""

import os
import sqlite3
from contextlib import closing

import pytest

from model_catalog import InvalidModelError, NotAFileError
from model_catalog.files.fingerprint import Fingerprint, file_fingerprint, is_settled

SECOND = 1_000_000_000


def grow(path):
    with path.open("ab") as file:
        file.write(b"!")


def replace(path):
    other = path.with_suffix(".new")
    other.write_bytes(b"B" * path.stat().st_size)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.replace(path)


def write_and_restore_mtime(path):
    before = path.stat()
    # With a coarse clock two changes can have equal time stamps. Write until the stamp differs.
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        with path.open("r+b") as file:
            file.write(b"B")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [grow, lambda path: os.truncate(path, 1), replace, write_and_restore_mtime],
    ids=["appended", "truncated", "replaced, same size and time", "same size, time set back"],
)
def test_a_changed_file_has_another_fingerprint(tmp_path, change):
    """
    A write is detected without reading the file, even if the modification time was set back.
    """
    path = tmp_path / "m"
    path.write_bytes(b"A" * 100)
    before = file_fingerprint(path)

    change(path)

    assert file_fingerprint(path) != before


def test_the_fingerprint_consists_of_stat_values(tmp_path):
    """
    The four numbers come from os.stat.
    """
    path = tmp_path / "m"
    path.write_bytes(b"A" * 100)
    os.utime(path, ns=(1, 2_000_000_007))
    found = path.stat()

    assert file_fingerprint(path) == Fingerprint(
        100, 2_000_000_007, found.st_ctime_ns, found.st_ino
    )


def test_reading_keeps_the_fingerprint(tmp_path):
    """
    A link to the file has the same fingerprint as the file.
    """
    path, link = tmp_path / "m", tmp_path / "link"
    path.write_bytes(b"A")
    before = file_fingerprint(path)
    link.symlink_to(path)

    path.read_bytes()

    assert file_fingerprint(path) == before == file_fingerprint(link)


def test_the_file_is_not_opened(tmp_path):
    """
    A locked database stays locked.
    """
    path = tmp_path / "m"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (c)")
        connection.execute("BEGIN EXCLUSIVE")
        file_fingerprint(path)

        with (
            closing(sqlite3.connect(path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError),
        ):
            other.execute("BEGIN EXCLUSIVE")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["directory", "FIFO"])
def test_only_regular_files_have_a_fingerprint(tmp_path, make):
    """
    A folder or a FIFO in the place of a file raises an error.
    """
    make(tmp_path / "m")

    with pytest.raises(NotAFileError):
        file_fingerprint(tmp_path / "m")


@pytest.mark.parametrize(
    "found",
    [Fingerprint(0, 0, 0, 0), Fingerprint(2**63 - 1, -1, 2**62, 2**64 - 1)],
    ids=["zeros", "largest values, before 1970"],
)
def test_the_text_form_is_parsed_back(found):
    """
    A database returns the fingerprint that was written.
    """
    assert Fingerprint.parse(str(found)) == found


def test_the_text_form_is_four_numbers():
    """
    Existing databases contain this form, so it must not change.
    """
    assert str(Fingerprint(1, 2, 3, 4)) == "1:2:3:4"


@pytest.mark.parametrize(
    "text",
    ["", "1:2:3", "1:2:3:4:5", "1:2:3:x", "01:2:3:4", "1:2:3:4\n", "1:2:3:٤", "-0:2:3:4"],
    ids=[
        "empty",
        "three",
        "five",
        "letter",
        "leading zero",
        "line feed",
        "other digits",
        "minus zero",
    ],
)
def test_any_other_text_is_refused(text):
    """
    Only the output of `str` is parsed.
    """
    with pytest.raises(InvalidModelError):
        Fingerprint.parse(text)


@pytest.mark.parametrize(
    ("mtime_s", "ctime_s", "settled"),
    [(7, 7, True), (8, 7, False), (7, 8, False), (10, 7, False), (11, 7, False), (0, 12, False)],
    ids=[
        "3 s before",
        "written 2 s before",
        "changed 2 s before",
        "same second",
        "written after",
        "changed after",
    ],
)
def test_a_fingerprint_is_trusted_after_two_seconds(mtime_s, ctime_s, settled):
    """
    Within 2 s another write can leave the same time stamps.
    """
    found = Fingerprint(1, mtime_s * SECOND, ctime_s * SECOND, 1)

    assert is_settled(found, 10 * SECOND) is settled


def test_a_file_that_was_just_written_is_not_trusted(tmp_path):
    """
    The file system and the program use the same clock.
    """
    path = tmp_path / "m"
    path.write_bytes(b"A")
    found = file_fingerprint(path)

    assert not is_settled(found, found.mtime_ns)
    assert is_settled(found, found.ctime_ns + 3 * SECOND)
