"""The evidence that the judge of completeness gets, and its verdict. No file is read here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

from model_catalog.errors import BadHeaderError, HeaderLimitError, NotAFileError, PlaceholderError
from model_catalog.files.formats.header import Header
from model_catalog.files.model_config import WeightIndex
from model_catalog.files.model_kind import Role
from model_catalog.files.safe_open import errno_name

Verdict: TypeAlias = Literal["whole", "incomplete", "unknown"]


class FileFacts(Protocol):
    """What the judge knows of each file that exists: its path inside the model, size and role."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def role(self) -> Role: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEvidence:
    """
    What a store or a folder states about the files of a model, beside those that exist.

    All paths are relative to the folder of the model.

    `gone` are the paths to which a link or the folder refers, and whose bytes do not exist or
    cannot be read. `required` are the files that a manifest lists as those of the model, and
    `listed` are all files that its repository has elsewhere, of which some may not have been asked
    for; both with sizes in bytes, if known. `unfinished` are the names of unfinished downloads, or
    the names that they get at their end; those whose file exists do not count. `reasons` are
    reasons in words that only this store can give.
    """

    gone: Collection[str] = ()
    required: Mapping[str, int | None] = field(default_factory=dict)
    listed: Mapping[str, int | None] = field(default_factory=dict)
    unfinished: Collection[str] = ()
    reasons: Sequence[str] = ()

    def below(self, folder: str) -> StoreEvidence:
        """Return the evidence below a folder (with `/` at the end), with paths relative to it."""
        if not folder:
            return self
        start = len(folder)
        return replace(
            self,
            gone=[path[start:] for path in self.gone if path.startswith(folder)],
            required=_below(self.required, folder),
            listed=_below(self.listed, folder),
            unfinished=[path[start:] for path in self.unfinished if path.startswith(folder)],
        )


def _below(sizes: Mapping[str, int | None], folder: str) -> dict[str, int | None]:
    start = len(folder)
    return {path[start:]: size for path, size in sizes.items() if path.startswith(folder)}


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """
    Why a file of a model could not be read.

    With `is_damage` the model is incomplete. Without it the file may be valid: its format is not
    read, or it exceeds a limit. The verdict is then unknown. `format` is the format if it is known.
    `digest` is that of the content which a pointer of Git LFS in its place names.
    """

    reason: str
    is_damage: bool = True
    format: str | None = None
    digest: str | None = None

    @classmethod
    def from_error(cls, error: BadHeaderError | NotAFileError | OSError) -> ReadFailure:
        """Return the failure that an error of the readers stands for."""
        if isinstance(error, OSError):
            return cls(errno_name(error))
        if isinstance(error, NotAFileError):
            return cls(f"it is {error.found}")
        digest = error.digest if isinstance(error, PlaceholderError) else None
        is_damage = not isinstance(error, HeaderLimitError)
        return cls(error.reason, is_damage=is_damage, digest=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadEvidence:
    """
    What was read from the files of a model, by path.

    `headers` are those of the weights, and `indexes` the lists of shards (`*.index.json`).
    `failures` are the other files that could not be read.
    """

    headers: Mapping[str, Header | ReadFailure] = field(default_factory=dict)
    indexes: Mapping[str, WeightIndex | ReadFailure] = field(default_factory=dict)
    failures: Mapping[str, ReadFailure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """
    The verdict about one model, with its reasons divided by the evidence that gives them.

    `listing` come from file names and from the lists of a store. `counted` come from the numbers of
    shards that an index lists: the index decides once it was read. `content` come from what was
    read; None means that nothing was. `unknown` says what could not be judged.
    """

    listing: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()
    content: tuple[str, ...] | None = None
    unknown: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the model is incomplete; empty if no reason is known."""
        content = self.counted if self.content is None else self.content
        return tuple(dict.fromkeys((*self.listing, *content)))

    @property
    def verdict(self) -> Verdict:
        """Whether the model is whole, as far as the evidence tells."""
        if self.reasons:
            return "incomplete"
        return "unknown" if self.unknown else "whole"

    def with_content_of(self, stronger: Completeness) -> Completeness:
        """
        Return this verdict with what another look has read from the same bytes.

        The result is this verdict if that look has read nothing, or if this one has read too.
        """
        if self.content is not None or stronger.content is None:
            return self
        return replace(self, content=stronger.content, unknown=stronger.unknown)
