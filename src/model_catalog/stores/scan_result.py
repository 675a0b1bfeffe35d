"""What a look through a store finds: values that say nothing about a catalog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, Protocol, TypeAlias

from model_catalog.files.file_names import Role
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.safe_open import ProtectedFiles, StrPath

StoreName: TypeAlias = Literal["huggingface", "ollama", "lmstudio", "llamacpp", "directory"]


@dataclass(frozen=True, slots=True)
class StoreFile:
    """
    A file of a model: its path below `FoundModel.folder`, with `/`, and its size, links followed.

    `digest` is "sha256:" and 64 hexadecimal digits where the store says what the bytes ought to
    be, and None where it does not; nothing was hashed. `identity` is the (st_dev, st_ino) of its
    bytes: two names of one file are of one.
    """

    path: str
    size_bytes: int
    role: Role
    digest: str | None
    fingerprint: Fingerprint
    identity: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """
    What a store says of a model by itself; None where it says nothing. No header was read.

    `parameter_count` is as exact as the store writes it: of Ollama's "8.0B" the first two digits.
    """

    format: str | None = None
    architecture: str | None = None
    quantization: str | None = None
    license: str | None = None
    context_length: int | None = None
    parameter_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """
    One version of a model in a store.

    `provider`, `reference`, `version` and `aliases` are such as a catalog takes, and no two models
    of a scan have the same three. `local_path` is absolute, and is the folder that holds the files
    or one of the files; `files` are in the order of their paths, `aliases` in their own.
    `downloaded_at` is in UTC, by the times of the files. `reasons` say why it is not whole, as far
    as names, sizes and the store's own lists tell.
    """

    store: StoreName
    provider: str
    reference: str
    version: str = ""
    aliases: tuple[str, ...] = ()
    local_path: str
    folder: str
    files: tuple[StoreFile, ...]
    downloaded_at: datetime | None
    claims: Claims = Claims()
    source_url: str | None = None
    reasons: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all files, each once, by however many names it is there."""
        return sum({file.identity: file.size_bytes for file in self.files}.values())

    @property
    def is_complete(self) -> bool:
        """Whether there is no reason to think that something of it is missing."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """
    An entry of a store that could not be taken for what it ought to be; it was left out.

    `path` is absolute, and as the system spells it: any bytes at all. What was found below it
    before may be there still. So may the versions of `reference`, or its one `version`, where a
    store keeps its models in another place than its books; `""` is every reference.
    """

    path: str
    reason: str
    reference: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """
    A store as it was found, below `root`, which is absolute and led to by no link.

    `found` is in the order of reference and version, `problems` in that of path and reason, each
    by code points.
    """

    store: StoreName
    root: str
    found: tuple[FoundModel, ...]
    problems: tuple[ScanProblem, ...]

    def may_hide(self, reference: str, version: str, local_path: str) -> bool:
        """
        Whether a model that was not found may be there all the same, behind one of the problems.

        Where it may not, it has gone from the store.
        """
        return any(
            local_path == problem.path
            or local_path.startswith(problem.path.rstrip("/") + "/")
            or (
                problem.reference in {"", reference}
                and (problem.version is None or problem.version == version)
            )
            for problem in self.problems
        )


class Scanner(Protocol):
    """Looks through a store of one kind."""

    def __call__(
        self,
        root: StrPath,
        *,
        protected: ProtectedFiles = (),
        stop: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Scan:
        """
        Everything that is found below `root`, and everything that could not be read.

        Nothing is written, and nothing outside of `root` is opened or listed, whatever links lead
        there. The files in `protected` are not opened. `stop` is asked at each folder, and
        `progress` is told how many models were found so far. Raises StoppedError, and nothing
        else: a root that is not there is a problem.
        """


_MAX_TIMESTAMP: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def mtime_to_datetime(mtime_ns: int) -> datetime | None:
    """A time of a file in UTC and whole seconds; None for what is before 1970 or after 9999."""
    seconds = mtime_ns // 1_000_000_000
    return datetime.fromtimestamp(seconds, UTC) if 0 <= seconds <= _MAX_TIMESTAMP else None
