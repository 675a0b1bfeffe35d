"""The digest of a model's bytes, and of several files that are one model."""

from __future__ import annotations

import hashlib
import os
import re
import time
import unicodedata
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class HashedFile:
    """A file's digest, the fingerprint it had meanwhile, and when the reading of it began."""

    digest: str
    fingerprint: Fingerprint
    started_at_ns: int


def file_digest(
    path: StrPath,
    progress: Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    *,
    protected: ProtectedFiles = (),
) -> str:
    """
    The digest of a file as `sha256:` and 64 hexadecimal digits.

    After each MiB `progress` is told how many bytes were read so far; before each, `stop` is asked
    whether to go on (`threading.Event().is_set` is one to give). Raises StoppedError,
    FileChangedError if the file was written to or replaced meanwhile, NotAFileError,
    ProtectedFileError, and OSError as the system gave it.
    """
    return hash_file(path, progress, stop, protected=protected).digest


def hash_file(
    path: StrPath,
    progress: Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    *,
    protected: ProtectedFiles = (),
) -> HashedFile:
    """What `sha256` gives, with the fingerprint to know the file again by; the same errors."""
    # is_settled() wants the time from before: a change in the middle of a long read would by its
    # end look old enough to have been seen.
    started_at_ns = time.time_ns()
    with open_regular_file(path, protected) as file:
        digest = _hash_open_file(file, progress, stop)
    return HashedFile(_PREFIX + digest, Fingerprint.from_stat(file.status), started_at_ns)


def _hash_open_file(
    file: OpenFile, progress: Callable[[int], object] | None, stop: Callable[[], bool] | None
) -> str:
    running = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    done_bytes = 0
    while True:
        if stop is not None and stop():
            raise StoppedError(f"the hashing of {file.path!r} was stopped")
        count = file.raw.readinto(buffer)
        if not count:
            break
        running.update(buffer[:count])
        done_bytes += count
        # A file that somebody appends to faster than it is read has no end.
        if done_bytes > file.size_bytes:
            raise FileChangedError(file.path, "it grew")
        if progress is not None:
            progress(done_bytes)
    if done_bytes != file.size_bytes:
        raise FileChangedError(file.path, "it shrank")
    _require_unchanged(file)
    return running.hexdigest()


def _require_unchanged(file: OpenFile) -> None:
    try:
        after = stat_path(file.path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileChangedError(file.path, "it was taken away") from error
    if file_identity(after) != file_identity(file.status):
        raise FileChangedError(file.path, "another was put in its place")
    before = Fingerprint.from_stat(file.status)
    # A network's file system may answer for a path from memory, and for a descriptor it asks.
    if before != Fingerprint.from_stat(after) or before != Fingerprint.from_stat(
        os.fstat(file.raw.fileno())
    ):
        raise FileChangedError(file.path, "it was written to")


def combine_digests(digests: Mapping[str, str]) -> str:
    r"""
    One digest for the files of a model, each by its path inside the model, with `/` in it.

    That of a single file is the model's. Of several it is the digest of what `sha256sum` prints
    for them in the order of their names' bytes, so that the same is given by
    `find . -type f | sed s,^./,, | LC_ALL=C sort | xargs -d'\n' sha256sum | sha256sum`.
    A digest may have its `sha256:` before it or not. Raises InvalidModelError for no files, for a
    path that leaves the model or that sha256sum would write otherwise, and for what is no digest.
    """
    if not digests:
        raise InvalidModelError("files", "", "are none: a model has at least one file")
    found = sorted(
        (_encode_listed_path(path), _digest_hex(digest)) for path, digest in digests.items()
    )
    if len(found) == 1:
        return _PREFIX + found[0][1]
    text = b"".join(b"%b  %b\n" % (digest.encode(), path) for path, digest in found)
    return _PREFIX + hashlib.sha256(text).hexdigest()


def normalize_digest(text: str) -> str:
    """
    A SHA-256 as it is recorded: `sha256:` and 64 lower-case digits.

    It may come without its prefix, and in capitals. Raises InvalidModelError for anything else.
    """
    return _PREFIX + _digest_hex(text.lower())


def is_path_inside_model(path: str) -> bool:
    """Whether a text is a path that stays inside the folder it is taken from."""
    return not any(part in {"", ".", ".."} for part in path.split("/"))


def _encode_listed_path(path: str) -> bytes:
    if not is_path_inside_model(path):
        raise InvalidModelError("file", path, "is no path inside a model: give folder/name")
    for character in path:
        # sha256sum escapes some of these, and by its version: the text would not be one text.
        if character == "\\" or unicodedata.category(character) == "Cc":
            raise InvalidModelError(
                "file", path, f"has {character!r} in it, which sha256sum escapes: rename the file"
            )
    try:
        # The bytes a name has on the disk, also where they are not UTF-8.
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidModelError("file", path, "has a surrogate in it that is no byte") from error


def _digest_hex(digest: str) -> str:
    text = digest.removeprefix(_PREFIX)
    if _HEX_DIGEST.fullmatch(text) is None:
        raise InvalidModelError("digest", digest, "is no SHA-256: give 64 hexadecimal digits")
    return text
