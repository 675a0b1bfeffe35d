"""The fingerprint: what it notices without reading, and when it may be trusted."""

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


def write_and_hide(path):
    before = path.stat()
    # A clock that ticks slowly gives two changes one stamp: until it has another.
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        with path.open("r+b") as file:
            file.write(b"B")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [grow, lambda path: os.truncate(path, 1), replace, write_and_hide],
    ids=["appended", "cut", "replaced, same size and time", "same size, its time set back"],
)
def test_a_change_changes_it(tmp_path, change):
    """
    A file that was written to is told without reading it, even if its time was set back.
    """
    path = tmp_path / "m"
    path.write_bytes(b"A" * 100)
    before = file_fingerprint(path)

    change(path)

    assert file_fingerprint(path) != before


def test_it_is_what_the_system_says(tmp_path):
    """
    Four numbers of os.stat, each in its place.
    """
    path = tmp_path / "m"
    path.write_bytes(b"A" * 100)
    os.utime(path, ns=(1, 2_000_000_007))
    found = path.stat()

    assert file_fingerprint(path) == Fingerprint(
        100, 2_000_000_007, found.st_ctime_ns, found.st_ino
    )


def test_reading_does_not_change_it(tmp_path):
    """
    Who only reads the file leaves it what it was; so does a link to it.
    """
    path, link = tmp_path / "m", tmp_path / "link"
    path.write_bytes(b"A")
    before = file_fingerprint(path)
    link.symlink_to(path)

    path.read_bytes()

    assert file_fingerprint(path) == before == file_fingerprint(link)


def test_it_opens_nothing(tmp_path):
    """
    A file that nobody may read has one, and a database stays locked.
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
def test_only_files_have_one(tmp_path, make):
    """
    A folder or a FIFO where a file was is an error, and not another fingerprint.
    """
    make(tmp_path / "m")

    with pytest.raises(NotAFileError):
        file_fingerprint(tmp_path / "m")


@pytest.mark.parametrize(
    "found",
    [Fingerprint(0, 0, 0, 0), Fingerprint(2**63 - 1, -1, 2**62, 2**64 - 1)],
    ids=["zeros", "as large as they get, before 1970"],
)
def test_its_text_is_read_back(found):
    """
    What is written into a database comes back the same.
    """
    assert Fingerprint.parse(str(found)) == found


def test_its_text_is_four_numbers():
    """
    The text is a promise to the databases it is written to.
    """
    assert str(Fingerprint(1, 2, 3, 4)) == "1:2:3:4"


@pytest.mark.parametrize(
    "text",
    ["", "1:2:3", "1:2:3:4:5", "1:2:3:x", "01:2:3:4", "1:2:3:4\n", "1:2:3:٤", "-0:2:3:4"],
    ids=["empty", "three", "five", "letter", "leading zero", "line feed", "digits", "minus zero"],
)
def test_another_text_is_refused(text):
    """
    Only what `str` wrote is read.
    """
    with pytest.raises(InvalidModelError):
        Fingerprint.parse(text)


@pytest.mark.parametrize(
    ("mtime_s", "ctime_s", "settled"),
    [(7, 7, True), (8, 7, False), (7, 8, False), (10, 7, False), (11, 7, False), (0, 12, False)],
    ids=["older", "2 s", "changed 2 s before", "at once", "written after", "changed after"],
)
def test_it_is_trusted_when_it_had_settled(mtime_s, ctime_s, settled):
    """
    Within 2 s a file may have been written again with the same stamps.
    """
    found = Fingerprint(1, mtime_s * SECOND, ctime_s * SECOND, 1)

    assert is_settled(found, 10 * SECOND) is settled


def test_a_file_that_was_just_written_is_not_trusted(tmp_path):
    """
    The clock of the file system and the program's are one.
    """
    path = tmp_path / "m"
    path.write_bytes(b"A")
    found = file_fingerprint(path)

    assert not is_settled(found, found.mtime_ns)
    assert is_settled(found, found.ctime_ns + 3 * SECOND)
