"""Digests of a file, and the combined digest of a model that has several files."""

from __future__ import annotations

import hashlib
import os
import re
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from model_catalog.errors import FileChangedError, InvalidModelError, StoppedError
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.safe_open import (
    OpenFile,
    ProtectedFiles,
    StrPath,
    file_identity,
    open_regular_file,
    stat_path,
)

_CHUNK_BYTES: Final = 1024 * 1024
_PREFIX: Final = "sha256:"
_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_GIT_BLOB_ID: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HashedFile:
    """
    The digest of a file, its fingerprint while it was read, and the time when the read began.

    `started_at_ns` is in nanoseconds since 1970. `is_settled` needs it. `has_blob_id` tells whether
    the bytes have the id of a Git blob that the caller expects; None if it expects none.
    """

    digest: str
    fingerprint: Fingerprint
    started_at_ns: int
    has_blob_id: bool | None = None


def file_digest(
    path: StrPath,
    progress: Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    *,
    protected: ProtectedFiles = (),
) -> str:
    """
    Return the SHA-256 digest of a file as `sha256:` and 64 lower-case hexadecimal digits.

    The file is read in chunks of 1 MiB. After each chunk `progress` is called with the number of
    bytes read so far. Before each chunk `stop` is called; if it returns True, StoppedError is
    raised. The `is_set` method of a `threading.Event` can be passed as `stop`. Raises
    FileChangedError if the file is written to or replaced during the read, NotAFileError,
    ProtectedFileError, and OSError as the system reports it.
    """
    return hash_file(path, progress, stop, protected=protected).digest


def hash_file(
    path: StrPath,
    progress: Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    *,
    protected: ProtectedFiles = (),
    blob_id: str | None = None,
) -> HashedFile:
    """
    Return the digest of a file with the fingerprint that identifies this state of the file.

    With `blob_id` the same pass computes the id of the bytes as a Git blob (`blob_id_of_link`), and
    `has_blob_id` of the result is the comparison. The other arguments and errors are those of
    `file_digest`.
    """
    # is_settled() needs the time before the read. With the time after a long read, a change
    # during the read would look old enough to have been noticed.
    started_at_ns = time.time_ns()
    with open_regular_file(path, protected) as file:
        hashes = [hashlib.sha256()]
        if blob_id is not None:
            # A checksum of the store, as git computes it. It protects nothing.
            hashes.append(hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False))
        _hash_open_file(file, hashes, progress, stop)
    return HashedFile(
        _PREFIX + hashes[0].hexdigest(),
        Fingerprint.from_stat(file.status),
        started_at_ns,
        None if blob_id is None else hashes[1].hexdigest() == blob_id,
    )


def blob_id_of_link(path: StrPath) -> str | None:
    """
    Return the id of the Git blob that a link names; None for any other link and for a file.

    In a cache of huggingface_hub the links of a snapshot lead into the folder `blobs`. A blob that
    is not in Git LFS is named by its id: the SHA-1 of `blob SIZE`, a zero byte and its bytes, as 40
    hexadecimal digits. No other file is accessed.
    """
    try:
        target = os.readlink(path)
    except OSError:
        return None
    folder, _, name = target.rpartition("/")
    is_blob = folder.rpartition("/")[2] == "blobs" and _GIT_BLOB_ID.fullmatch(name) is not None
    return name if is_blob else None


def _hash_open_file(
    file: OpenFile,
    hashes: Sequence[hashlib._Hash],
    progress: Callable[[int], object] | None,
    stop: Callable[[], bool] | None,
) -> None:
    """Feed the bytes of a file to several hash functions in one pass."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    done_bytes = 0
    while True:
        if stop is not None and stop():
            raise StoppedError(f"hashing of {file.path!r} was stopped at the caller's request")
        count = file.raw.readinto(buffer)
        if not count:
            break
        for each in hashes:
            each.update(buffer[:count])
        done_bytes += count
        # If another process appends faster than this loop reads, the end is never reached.
        if done_bytes > file.size_bytes:
            raise FileChangedError(file.path, "the file grew")
        if progress is not None:
            progress(done_bytes)
    if done_bytes != file.size_bytes:
        raise FileChangedError(file.path, "the file shrank")
    _require_unchanged(file)


def _require_unchanged(file: OpenFile) -> None:
    """Raise FileChangedError unless the path still leads to the same, unmodified file."""
    try:
        after = stat_path(file.path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileChangedError(file.path, "the file was removed") from error
    if file_identity(after) != file_identity(file.status):
        raise FileChangedError(file.path, "the file was replaced by another")
    before = Fingerprint.from_stat(file.status)
    # A network file system may answer stat() of a path from its cache. For an open descriptor it
    # asks the server.
    descriptor_status = os.fstat(file.raw.fileno())
    if any(before != Fingerprint.from_stat(now) for now in (after, descriptor_status)):
        raise FileChangedError(file.path, "the file was written to")


def combine_digests(digests: Mapping[str, str]) -> str:
    r"""
    Return one digest for all files of a model, given by their paths inside the model.

    The paths use `/`. A digest may be given with or without `sha256:`. For a single file the
    result is the digest of that file. For several files it is the digest of the output of
    `sha256sum`, sorted by the bytes of the paths. This command prints the same digest:
    `find . -type f | sed s,^./,, | LC_ALL=C sort | xargs -d'\n' sha256sum | sha256sum`.
    Raises InvalidModelError if there are no files or if a digest is invalid. It also raises it for
    a path that leaves the model, or that `sha256sum` prints in an escaped form.
    """
    if not digests:
        raise InvalidModelError("files", "", "is empty: a model has at least one file")
    lines = sorted((_encode_listed_path(path), _digest_hex(text)) for path, text in digests.items())
    if len(lines) == 1:
        return _PREFIX + lines[0][1]
    listing = b"".join(b"%b  %b\n" % (digest.encode(), path) for path, digest in lines)
    return _PREFIX + hashlib.sha256(listing).hexdigest()


def normalize_digest(text: str) -> str:
    """
    Return a SHA-256 digest in the form that is stored: `sha256:` and 64 lower-case digits.

    The prefix is optional, and upper-case digits are accepted. Raises InvalidModelError for any
    other text.
    """
    return _PREFIX + _digest_hex(text.lower())


def is_path_inside_model(path: str) -> bool:
    """Return whether a relative path stays inside the folder that it is relative to."""
    return not any(part in {"", ".", ".."} for part in path.split("/"))


def _encode_listed_path(path: str) -> bytes:
    """Return the bytes of a path as `sha256sum` prints them, or raise InvalidModelError."""
    if not is_path_inside_model(path):
        raise InvalidModelError("file", path, "is not a path inside the model: use folder/name")
    for character in path:
        # sha256sum escapes some of these characters, and which ones depends on its version. The
        # combined digest would not be well defined.
        if character == "\\" or unicodedata.category(character) == "Cc":
            raise InvalidModelError(
                "file",
                path,
                f"contains {character!r}, which sha256sum escapes: rename the file",
            )
    try:
        # These are the bytes of the name on disk, even if they are not valid UTF-8.
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidModelError(
            "file", path, "contains a surrogate that stands for no byte of a file name"
        ) from error


def _digest_hex(digest: str) -> str:
    text = digest.removeprefix(_PREFIX)
    if _HEX_DIGEST.fullmatch(text) is None:
        raise InvalidModelError("digest", digest, "is not a SHA-256: use 64 hexadecimal digits")
    return text
