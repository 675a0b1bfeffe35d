"""The digest of a file, also while the file changes, and the combined digest of several files."""

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
def test_the_digest_is_the_sha256_of_the_file(tmp_path, size):
    """
    The digest of a file of any size equals that of hashlib.
    """
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(size))

    digest = file_digest(path)

    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_progress_receives_the_bytes_read_so_far(tmp_path):
    """
    It is called after each MiB, and at the end with the size of the file.
    """
    path = tmp_path / "m"
    path.write_bytes(bytes(2 * MIB + 5))
    reported = []

    file_digest(path, reported.append)

    assert reported == [MIB, 2 * MIB, 2 * MIB + 5]


def test_hashing_stops_between_two_chunks(tmp_path):
    """
    An event that another thread sets ends the read, and no digest is returned.
    """
    path = tmp_path / "m"
    path.write_bytes(bytes(5 * MIB))
    reported, stop = [], threading.Event()

    def progress(done):
        reported.append(done)
        thread = threading.Thread(target=stop.set)
        thread.start()
        thread.join()

    with pytest.raises(StoppedError, match="stopped"):
        file_digest(path, progress, stop.is_set)

    assert reported == [MIB]


def test_hashing_that_is_stopped_beforehand_reads_nothing(tmp_path):
    """
    `stop` is called before the first chunk.
    """
    path = tmp_path / "m"
    path.write_bytes(b"x")

    with pytest.raises(StoppedError):
        file_digest(path, pytest.fail, lambda: True)


def test_hash_file_returns_the_fingerprint_of_the_file_it_read(tmp_path):
    """
    A later comparison of the fingerprint needs no read of the file.
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


def shrink(path):
    os.truncate(path, 1)


def rewrite(path):
    # With a coarse clock two writes can have equal time stamps. Write until the stamp differs.
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
        (shrink, "shrank"),
        (rewrite, "written to"),
        (replace, "replaced by another"),
        (remove, "removed"),
    ],
    ids=["appended", "truncated", "same size, other bytes", "replaced by a copy", "removed"],
)
def test_a_change_during_the_read_raises_an_error(tmp_path, change, reason):
    """
    Any change by another thread between the first and the last chunk is detected.
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


def test_hashing_a_file_that_keeps_growing_ends(tmp_path):
    """
    No more bytes are read than the file had when it was opened.
    """
    path = tmp_path / "m"
    path.write_bytes(b"x" * MIB)
    reported = []

    def progress(done):
        reported.append(done)
        with path.open("ab") as file:
            file.write(b"x" * MIB)
        assert len(reported) < 5

    with pytest.raises(FileChangedError, match="grew"):
        file_digest(path, progress)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
    ids=["FIFO", "directory", "endless device"],
)
def test_only_regular_files_are_opened(tmp_path, make, kind):
    """
    A FIFO would block, and /dev/zero has no end. Both are refused by their type.
    """
    make(tmp_path / "m")

    with pytest.raises(NotAFileError, match=kind) as caught:
        file_digest(tmp_path / "m")

    assert caught.value.found == kind


def test_a_fifo_that_replaces_the_file_does_not_block(tmp_path, monkeypatch):
    """
    The type is checked again after opening, and opening does not wait for a writer.
    """
    path = tmp_path / "m"
    path.write_bytes(b"x")
    original_open = os.open

    def open_after_swap(name, flags):
        path.unlink()
        os.mkfifo(path)
        return original_open(name, flags)

    monkeypatch.setattr(os, "open", open_after_swap)

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
    ids=["missing", "below a file", "loop of links", "name too long", "NUL character"],
)
def test_errors_of_the_system_are_passed_on(tmp_path, name, error):
    """
    A path that cannot be opened raises OSError with errno, even if Python raises ValueError.
    """
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(error) as caught:
        file_digest(f"{tmp_path}/{name}")

    assert caught.value.errno


def run_unprivileged(code, *arguments):
    """Run code as the user nobody: root can read files of any mode."""
    become = "import os; os.geteuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
    imports = "import sys\nfrom model_catalog.files import file_digest\n"
    return subprocess.run(
        [sys.executable, "-c", imports + become + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_without_read_permission_raises_permission_error(tmp_path):
    """
    The mode of the file applies to every user but root.
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


TRY_TO_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0)
try: connection.execute("BEGIN EXCLUSIVE")
except sqlite3.OperationalError as error: print(error)
"""


def is_locked(database):
    done = subprocess.run(
        [sys.executable, "-c", TRY_TO_LOCK, str(database)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout == "database is locked\n"


def test_the_database_of_the_catalog_is_never_opened(tmp_path):
    """
    Closing a database that this process has open would drop its locks. It is refused before it is
    opened, under any of its names.
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
        # Without the protection the locks are lost.
        file_digest(database)
        assert not is_locked(database)


def test_a_database_that_replaces_the_file_keeps_its_locks(tmp_path, monkeypatch):
    """
    It is refused after opening, and its descriptor stays open, because closing drops the locks.
    """
    database, path = tmp_path / "catalog.db", tmp_path / "m.gguf"
    path.write_bytes(b"x")
    original_open = os.open

    def open_after_swap(name, flags):
        path.unlink()
        path.symlink_to(database)
        opened.append(original_open(name, flags))
        return opened[-1]

    opened = []
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t (c)")
        connection.execute("BEGIN EXCLUSIVE")
        protected = {safe_open.file_identity(database.stat())}
        monkeypatch.setattr(os, "open", open_after_swap)

        with pytest.raises(ProtectedFileError):
            file_digest(path, protected=protected)

        monkeypatch.undo()
        assert is_locked(database)
    os.close(opened[0])


ONE = hashlib.sha256(b"1").hexdigest()
TWO = hashlib.sha256(b"2").hexdigest()


def test_a_model_of_one_file_has_the_digest_of_the_file():
    """
    The name of the file does not matter.
    """
    assert combine_digests({"m.gguf": ONE}) == f"sha256:{ONE}"
    assert combine_digests({"other": f"sha256:{ONE}"}) == f"sha256:{ONE}"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_combined_digest_equals_that_of_shell_commands(tmp_path):
    """
    find, sort and sha256sum give the same digest. That includes names that are not UTF-8 and names
    whose order depends on the locale.
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


def test_the_combined_digest_depends_on_names_and_not_on_order():
    """
    Two files that exchange their names change the digest. Another order of the input does not.
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
        "parent folder",
        "empty part",
        "dot",
        "empty",
        "folder",
        "surrogate without a byte",
    ],
)
def test_a_name_without_a_unique_listing_is_refused(name):
    """
    That is a name that sha256sum escapes, or a path that leaves the model.
    """
    for digests in ({name: ONE}, {name: ONE, "b": TWO}):
        with pytest.raises(InvalidModelError) as caught:
            combine_digests(digests)

        assert caught.value.field == "file"


@pytest.mark.parametrize(
    "digests",
    [{}, {"a": "x" * 64}, {"a": ONE[:-1]}, {"a": ONE.upper()}, {"a": "md5:" + ONE}],
    ids=["no files", "not hexadecimal", "too short", "upper case", "another algorithm"],
)
def test_invalid_digests_are_refused(digests):
    """
    Only lower-case SHA-256 digests of at least one file are accepted.
    """
    with pytest.raises(InvalidModelError):
        combine_digests(digests)


def test_every_error_is_a_catalog_error():
    """
    One `except CatalogError` catches all of them.
    """
    for error in (FileChangedError, NotAFileError, ProtectedFileError, StoppedError):
        assert issubclass(error, CatalogError)
