"""Values that a scan of a store returns. They do not refer to a catalog."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Literal, Protocol, TypeAlias

from model_catalog.files.completeness.evidence import Completeness, StoreEvidence
from model_catalog.files.completeness.judge import judge
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.model_kind import Kind, Role, kind_of_files
from model_catalog.files.safe_open import ProtectedFiles, StrPath

StoreName: TypeAlias = Literal[
    "huggingface",
    "ollama",
    "lmstudio",
    "llamacpp",
    "docker",
    "ramalama",
    "modelscope",
    "kagglehub",
    "directory",
]
"""The kind of a store: the program that keeps its models there, or `directory`."""


@dataclass(frozen=True, slots=True)
class StoreFile:
    """
    A file of a model: its path below `FoundModel.folder`, with `/`, and its size.

    Links are followed. `digest` is "sha256:" and 64 hexadecimal digits if the store states which
    bytes are expected, and None otherwise; nothing was hashed. `identity` is the (st_dev, st_ino)
    of its bytes: it is equal for two names of one file. `disk_bytes` are the bytes that it takes on
    the disk, and None means that this is unknown.
    """

    path: str
    size_bytes: int
    role: Role
    digest: str | None
    fingerprint: Fingerprint
    identity: tuple[int, int]
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """
    The values that a store itself states about a model. None means that it does not state one.

    No header was read. `parameter_count` is as exact as the store writes it: Ollama's "8.0B" gives
    only the first two digits.
    """

    kind: Kind | None = None
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

    `provider`, `reference`, `version` and `aliases` are valid in a catalog. Provider, reference
    and version together are unique within a scan. `local_path` is absolute: the folder of the
    files, or one of the files. `files` are sorted by path, and `aliases` by name. `downloaded_at`
    is in UTC and comes from the modification times of the files. `evidence` is what the store
    states beside the files, with paths below `folder`. `completeness` is the verdict from it; no
    file was read for it.
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
    evidence: StoreEvidence = field(default_factory=StoreEvidence)
    completeness: Completeness = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "completeness", judge(self.files, self.evidence))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the model is incomplete; empty if no reason is known."""
        return self.completeness.reasons

    @property
    def size_bytes(self) -> int:
        """The size of all files. A file with several names is counted once."""
        return sum({file.identity: file.size_bytes for file in self.files}.values())

    @property
    def kind(self) -> Kind:
        """The kind that the store states, and else the one that the names of the files tell."""
        return self.claims.kind or kind_of_files({file.role for file in self.files})

    @property
    def is_complete(self) -> bool:
        """Whether there is no reason to consider the model incomplete."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """
    An entry of a store that could not be interpreted and was left out of the scan.

    `path` is absolute and may contain any bytes. Models below it may still exist although the scan
    did not find them. If the store keeps models and manifests in different folders, `reference` and
    `version` name the models that may still exist: a `version` of None means all versions, and a
    `reference` of `""` means all references.
    """

    path: str
    reason: str
    reference: str | None = None
    version: str | None = None


LeftoverKind: TypeAlias = Literal["partial", "piece", "orphan"]
"""
An unfinished download, a piece of a file that was split without headers, or a blob to which no
model of the store refers.
"""


@dataclass(frozen=True, slots=True)
class LeftoverFile:
    """
    A file of a store that belongs to no model, and takes space on the disk.

    `path` is absolute. `identity` is the (st_dev, st_ino) of its bytes.
    """

    path: str
    kind: LeftoverKind
    size_bytes: int
    disk_bytes: int
    identity: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PassedOver:
    """
    The files of a plain folder that are not those of a model: how many, and their sizes in bytes.

    Hidden files, links and leftovers are not among them. A file with several names counts once.
    """

    file_count: int = 0
    size_bytes: int = 0
    disk_bytes: int = 0


OtherKind: TypeAlias = Literal["dataset", "kernel", "space"]


@dataclass(frozen=True, slots=True)
class OtherRepositories:
    """The repositories of a Hugging Face cache that are not models: their number and files."""

    kind: OtherKind
    count: int = 0
    size_bytes: int = 0
    disk_bytes: int = 0

    def __add__(self, other: OtherRepositories) -> OtherRepositories:
        return OtherRepositories(
            self.kind,
            self.count + other.count,
            self.size_bytes + other.size_bytes,
            self.disk_bytes + other.disk_bytes,
        )


@dataclass(frozen=True, slots=True)
class Scan:
    """
    The content of a store below `root`, which is absolute and free of links.

    `scope` is the folder in the root that was scanned, and None for the whole root. Nothing is
    known about the rest of the root then. `other_repositories` are counted apart: their bytes are
    not in `disk_bytes`.

    `found` is sorted by reference and version, `problems` by path and reason, `leftovers` by path,
    each by code points. `passed_over` is empty for a store that a program manages. `remote_models`
    are the names of models that the program lists, and that run on another machine: they have no
    files here and are not in `found`.
    """

    store: StoreName
    root: str
    found: tuple[FoundModel, ...]
    problems: tuple[ScanProblem, ...]
    leftovers: tuple[LeftoverFile, ...] = ()
    passed_over: PassedOver = PassedOver()
    remote_models: tuple[str, ...] = ()
    other_repositories: tuple[OtherRepositories, ...] = ()
    scope: str | None = None

    @property
    def folder(self) -> str:
        """The folder that was scanned: the root, or a folder in it."""
        return self.scope or self.root

    def covers(self, path: str) -> bool:
        """Return whether a path in the store was scanned."""
        return self.scope is None or f"{path}/".startswith(f"{self.scope}/")

    def restrict(self, folder: str) -> Scan:
        """
        Return the part of this scan in a folder below the root, as if only that had been scanned.

        Problems that can hide models in it stay: those above the folder, and those with a name.
        """
        part = replace(self, scope=folder, passed_over=PassedOver(), remote_models=())
        return replace(
            part,
            other_repositories=(),
            found=tuple(each for each in self.found if part.covers(each.local_path)),
            leftovers=tuple(each for each in self.leftovers if part.covers(each.path)),
            problems=tuple(
                each
                for each in self.problems
                if part.covers(each.path)
                or each.reference is not None
                or f"{folder}/".startswith(f"{each.path}/")
            ),
        )

    @property
    def disk_bytes(self) -> int:
        """
        The bytes on the disk of all models and leftovers, with each file counted once, as by `du`.

        A file whose bytes on the disk are unknown counts with its size.
        """
        return disk_usage([self])

    def may_hide(self, reference: str, version: str, local_path: str) -> bool:
        """
        Return whether a model that was not found may still exist, hidden by one of the problems.

        If False, the model is no longer in the store.
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


def disk_usage(scans: Iterable[Scan]) -> int:
    """Return the bytes on the disk of several stores, with each file counted once."""
    sizes: dict[tuple[int, int], int] = {}
    for scan in scans:
        for model in scan.found:
            for file in model.files:
                size = file.size_bytes if file.disk_bytes is None else file.disk_bytes
                sizes[file.identity] = size
        sizes |= {leftover.identity: leftover.disk_bytes for leftover in scan.leftovers}
    return sum(sizes.values())


class Scanner(Protocol):
    """A function that scans a store of one kind."""

    def __call__(
        self,
        root: StrPath,
        *,
        protected: ProtectedFiles = (),
        stop: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
        follow_links: bool = True,
    ) -> Scan:
        """
        Return all models below `root`, and a problem for each entry that could not be read.

        Nothing is written. Nothing outside of `root` is opened or listed, except what links of this
        user or root lead to: files of this user or root, and folders at the places where the
        program keeps parts of its store. Without `follow_links` no link out of the store is
        followed. Files in `protected` are not opened. `stop` is called before each folder, and
        `progress` is called with the number of models found so far. Raises StoppedError if `stop`
        returns True, and no other error: a root that does not exist becomes a problem.
        """


_MAX_TIMESTAMP: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def mtime_to_datetime(mtime_ns: int) -> datetime | None:
    """Return a modification time in UTC and whole seconds. None before 1970 or after 9999."""
    seconds = mtime_ns // 1_000_000_000
    return datetime.fromtimestamp(seconds, UTC) if 0 <= seconds <= _MAX_TIMESTAMP else None


def newest_mtime(files: Collection[StoreFile]) -> datetime | None:
    """Return the latest modification time of the files in UTC, or None without files."""
    return mtime_to_datetime(max((file.fingerprint.mtime_ns for file in files), default=-1))
