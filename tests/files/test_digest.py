"""The digest: of one file while the world goes on around it, and of several as one."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from model_catalog import (
    CatalogError,
    FileChangedError,
    InvalidModelError,
    NotAFileError,
    ProtectedFileError,
    StoppedError,
)
from model_catalog.files import safe_open
from model_catalog.files.digest import combine_digests, file_digest, hash_file
from model_catalog.files.fingerprint import file_fingerprint

MIB = 1024 * 1024


@pytest.mark.parametrize(
    "size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB], ids=lambda size: f"{size} bytes"
)
def test_it_is_what_sha256_gives(tmp_path, size):
    """
    A file of any length has the digest that everybody else gives it.
    """
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(size))

    digest = file_digest(path)

    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_progress_counts_the_bytes(tmp_path):
    """
    After each MiB it is told how many bytes were read so far, and in the end all.
    """
    path = tmp_path / "m"
    path.write_bytes(bytes(2 * MIB + 5))
    told = []

    file_digest(path, told.append)

    assert told == [MIB, 2 * MIB, 2 * MIB + 5]


def test_it_stops_when_it_is_told_to(tmp_path):
    """
    Between two reads an event of another thread ends it, and nothing comes of it.
    """
    path = tmp_path / "m"
    path.write_bytes(bytes(5 * MIB))
    told, stop = [], threading.Event()

    def progress(done):
        told.append(done)
        thread = threading.Thread(target=stop.set)
        thread.start()
        thread.join()

    with pytest.raises(StoppedError, match="stopped"):
        file_digest(path, progress, stop.is_set)

    assert told == [MIB]


def test_a_file_that_was_stopped_beforehand_is_not_read(tmp_path):
    """
    A stop that is set already comes before the first read.
    """
    path = tmp_path / "m"
    path.write_bytes(b"x")

    with pytest.raises(StoppedError):
        file_digest(path, pytest.fail, lambda: True)


def test_it_comes_with_the_fingerprint_of_what_was_read(tmp_path):
    """
    The file that was hashed can be known again without reading it.
    """
    path = tmp_path / "m"
    path.write_bytes(b"x")

    found = hash_file(path)

    assert found.digest == file_digest(path)
    assert found.fingerprint == file_fingerprint(path)
    assert found.started_at_ns < hash_file(path).started_at_ns


def append(path):
    with path.open("ab") as file:
        file.write(b"!")


def cut(path):
    os.truncate(path, 1)


def rewrite(path):
    # A clock that ticks slowly gives two writes one stamp: written until it has another.
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:
        with path.open("r+b") as file:
            file.write(b"!")


def replace(path):
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (append, "grew"),
        (cut, "shrank"),
        (rewrite, "written to"),
        (replace, "another was put in its place"),
        (remove, "taken away"),
    ],
    ids=["appended", "cut", "same size, other bytes", "replaced by its copy", "removed"],
)
def test_a_file_that_changes_meanwhile_has_no_digest(tmp_path, change, reason):
    """
    Whatever another thread does to the file between the first read and the last is noticed.
    """
    path = tmp_path / "m"
    path.write_bytes(os.urandom(2 * MIB))
    reading, changed = threading.Event(), threading.Event()

    def write():
        reading.wait(20)
        change(path)
        changed.set()

    def progress(_):
        reading.set()
        assert changed.wait(20)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(FileChangedError, match=reason) as caught:
        file_digest(path, progress)
    writer.join()

    assert caught.value.path == str(path)


def test_a_file_that_grows_for_ever_comes_to_an_end(tmp_path):
    """
    As much as the file had is read, and not what is appended faster than it is read.
    """
    path = tmp_path / "m"
    path.write_bytes(b"x" * MIB)
    told = []

    def progress(done):
        told.append(done)
        with path.open("ab") as file:
            file.write(b"x" * MIB)
        assert len(told) < 5

    with pytest.raises(FileChangedError, match="grew"):
        file_digest(path, progress)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
    ids=["FIFO", "directory", "device without an end"],
)
def test_what_is_no_file_is_not_opened(tmp_path, make, kind):
    """
    A FIFO would hang and /dev/zero never end: both are refused by what they are.
    """
    make(tmp_path / "m")

    with pytest.raises(NotAFileError, match=kind) as caught:
        file_digest(tmp_path / "m")

    assert caught.value.found == kind


def test_a_fifo_that_takes_the_files_place_does_not_hang(tmp_path, monkeypatch):
    """
    What is opened is looked at once more, and its opening waits for nobody.
    """
    path = tmp_path / "m"
    path.write_bytes(b"x")
    really_open = os.open

    def swapped(name, flags):
        path.unlink()
        os.mkfifo(path)
        return really_open(name, flags)

    monkeypatch.setattr(os, "open", swapped)

    with pytest.raises(NotAFileError, match="a FIFO"):
        file_digest(path)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("gone", FileNotFoundError),
        ("file/below", NotADirectoryError),
        ("loop", OSError),
        ("x" * 300, OSError),
        ("a\0b", OSError),
    ],
    ids=["missing", "below a file", "a loop of links", "a name too long", "a NUL"],
)
def test_the_systems_errors_come_as_they_are(tmp_path, name, error):
    """
    A path that cannot be opened is an OSError with its number, also where Python has another.
    """
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(error) as caught:
        file_digest(f"{tmp_path}/{name}")

    assert caught.value.errno


def run_unprivileged(code, *arguments):
    """Run code as nobody: root may read everything, whatever its mode."""
    become = "import os; os.geteuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
    imports = "import sys\nfrom model_catalog.files import file_digest\n"
    return subprocess.run(
        [sys.executable, "-c", imports + become + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    """
    A mode without the right to read is a PermissionError.
    """
    path = tmp_path / "m"
    path.write_bytes(b"x")
    path.chmod(0)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)

    done = run_unprivileged(
        "try: file_digest(sys.argv[1])\nexcept PermissionError as e: print(e.errno)", path
    )

    assert (done.stdout, done.stderr) == ("13\n", "")


HOLDS_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0)
try: connection.execute("BEGIN EXCLUSIVE")
except sqlite3.OperationalError as error: print(error)
"""


def is_locked(database):
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_LOCK, str(database)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout == "database is locked\n"


def test_the_catalogs_own_database_is_never_opened(tmp_path):
    """
    Reading a database that this process has open would drop its locks; by any of its names it is
    refused before that.
    """
    database, other_name = tmp_path / "catalog.db", tmp_path / "m.gguf"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t (c)")
        connection.execute("BEGIN EXCLUSIVE")
        other_name.hardlink_to(database)
        protected = {safe_open.file_identity(database.stat())}

        for name in (database, other_name):
            with pytest.raises(ProtectedFileError, match="locks"):
                file_digest(name, protected=protected)
            with pytest.raises(ProtectedFileError):
                file_fingerprint(name, protected=protected)

        assert is_locked(database)
        # What would have happened.
        file_digest(database)
        assert not is_locked(database)


def test_a_database_that_takes_the_files_place_keeps_its_locks(tmp_path, monkeypatch):
    """
    Once it is open it is refused, and left open: it is the closing that drops the locks.
    """
    database, path = tmp_path / "catalog.db", tmp_path / "m.gguf"
    path.write_bytes(b"x")
    really_open = os.open

    def swapped(name, flags):
        path.unlink()
        path.symlink_to(database)
        opened.append(really_open(name, flags))
        return opened[-1]

    opened = []
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t (c)")
        connection.execute("BEGIN EXCLUSIVE")
        protected = {safe_open.file_identity(database.stat())}
        monkeypatch.setattr(os, "open", swapped)

        with pytest.raises(ProtectedFileError):
            file_digest(path, protected=protected)

        monkeypatch.undo()
        assert is_locked(database)
    os.close(opened[0])


ONE = hashlib.sha256(b"1").hexdigest()
TWO = hashlib.sha256(b"2").hexdigest()


def test_the_digest_of_one_file_is_the_models():
    """
    A model of a single file has that file's digest, whatever the file is called.
    """
    assert combine_digests({"m.gguf": ONE}) == f"sha256:{ONE}"
    assert combine_digests({"other": f"sha256:{ONE}"}) == f"sha256:{ONE}"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_digest_of_several_is_what_the_shell_gives(tmp_path):
    """
    find, sort and sha256sum give the same, also for names that are no UTF-8, or sort otherwise
    in any language.
    """
    names = ["b", "B", "a b", "a/z", "a-1", "a.c", "ä", "\U0001f999", "\uffff", "q'\"$x", "é/é"]
    names += [os.fsdecode(b"latin-\xe4")]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.fsencode(name))

    ours = combine_digests({name: file_digest(tmp_path / name) for name in names})
    theirs = subprocess.run(
        "find . -type f | sed s,^./,, | LC_ALL=C sort | xargs -d'\\n' sha256sum | sha256sum",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )

    assert ours == f"sha256:{theirs.stdout.split()[0].decode()}"


def test_the_digest_of_several_depends_on_names_and_not_on_order():
    """
    Two files that change their names are another model; two that are listed otherwise are not.
    """
    assert combine_digests({"a": ONE, "b": TWO}) == combine_digests({"b": TWO, "a": ONE})
    assert combine_digests({"a": ONE, "b": TWO}) != combine_digests({"a": TWO, "b": ONE})


@pytest.mark.parametrize(
    "name",
    ["a\nb", "a\rb", "a\\b", "a\x9bb", "/a", "../a", "a//b", "./a", "", "a/", "\ud800"],
    ids=[
        "line feed",
        "carriage return",
        "backslash",
        "C1 control",
        "absolute",
        "up",
        "nothing between",
        "dot",
        "empty",
        "folder",
        "no byte",
    ],
)
def test_a_name_that_has_two_texts_is_refused(name):
    """
    What sha256sum would escape, and what is no path inside a model, has no place in a digest.
    """
    for digests in ({name: ONE}, {name: ONE, "b": TWO}):
        with pytest.raises(InvalidModelError) as caught:
            combine_digests(digests)

        assert caught.value.field == "file"


@pytest.mark.parametrize(
    "digests",
    [{}, {"a": "x" * 64}, {"a": ONE[:-1]}, {"a": ONE.upper()}, {"a": "md5:" + ONE}],
    ids=["no files", "not hexadecimal", "too short", "capitals", "another kind"],
)
def test_what_is_no_digest_is_refused(digests):
    """
    Only SHA-256 in small letters, and of one file at least.
    """
    with pytest.raises(InvalidModelError):
        combine_digests(digests)


def test_every_error_is_the_catalogs():
    """
    One base catches them all.
    """
    for error in (FileChangedError, NotAFileError, ProtectedFileError, StoppedError):
        assert issubclass(error, CatalogError)
