"""Which recorded models have the files of a repository that a caller has asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import InvalidModelError
from model_catalog.files.file_names import WEIGHT_ROLES
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog

PROVIDER: Final = "hf"
# As huggingface_hub 2.4 checks it (utils/_validators.py); it also limits the length.
_REPOSITORY: Final = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
_COMMIT_AND_FILE: Final = re.compile(r"([0-9a-f]{40})/(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HubRequest:
    """A repository, its revision (None: the main branch), and patterns of its files."""

    ref: ModelRef
    """The name under which the model was asked for."""
    revision: str | None
    include: tuple[str, ...]
    """All files if it is empty."""
    exclude: tuple[str, ...]

    @classmethod
    def of(cls, ref: ModelRef, include: Sequence[str], exclude: Sequence[str]) -> HubRequest:
        """
        Return the request for a name.

        The version of a quantization, `COMMIT/FILE`, is a request for that file of the commit.
        Raises InvalidModelError for another provider, and for what is not the name of a repository.
        """
        if ref.provider != PROVIDER:
            problem = "is not the Hugging Face hub: write hf:organisation/name"
            raise InvalidModelError("provider", ref.provider, problem)
        if _REPOSITORY.fullmatch(ref.reference) is None:
            problem = "is not the name of a repository: write hf:organisation/name"
            raise InvalidModelError("reference", ref.reference, problem)
        revision = ref.version or None
        if revision is not None and (parts := _COMMIT_AND_FILE.fullmatch(revision)):
            revision, file = parts[1], parts[2]
            include = (*include, _literal(file))
        return cls(ref, revision, _patterns("include", include), _patterns("exclude", exclude))

    def names(self, path: str) -> bool:
        """Return whether the patterns name a file of the repository."""
        is_included = not self.include or any(fnmatchcase(path, each) for each in self.include)
        return is_included and not any(fnmatchcase(path, each) for each in self.exclude)

    async def find(self, catalog: ModelCatalog) -> Model | None:
        """
        Return the recorded model that this request means; None if it has to be downloaded.

        Without patterns that is the model of the name, unless it is recorded as incomplete. With
        patterns it is a model of the same revision, if each pattern matches a file that is recorded
        for it or for another model of the revision. The patterns to leave out are not looked at.
        """
        named = await catalog.find_model(self.ref)
        if not self.include:
            return named if named is None or named.incomplete_reason is None else None
        if named is None and self.ref.version is not None and self.revision != self.ref.version:
            named = await catalog.find_model(ModelRef(PROVIDER, self.ref.reference, self.revision))
        if named is None:
            return None
        snapshot = named.version.partition("/")[0]
        return await self.choose(catalog, snapshot, is_whole=True)

    async def choose(
        self, catalog: ModelCatalog, snapshot: str, *, is_whole: bool = False
    ) -> Model | None:
        """
        Return the model of a snapshot whose weights the patterns name.

        With several, that is the first one that is complete. With `is_whole` it is None if a
        pattern matches no recorded file.
        """
        models = await catalog.list_models(provider=PROVIDER, reference=self.ref.reference)
        models = [each for each in models if each.version.partition("/")[0] == snapshot]
        missed = set(self.include)
        chosen: list[Model] = []
        others: list[Model] = []
        for model in sorted(models, key=lambda each: each.version):
            files = await catalog.list_files(model)
            folder = _folder_in_snapshot(model, [file.path for file in files])
            matches = {
                file: [each for each in self.include if fnmatchcase(folder + file.path, each)]
                for file in files
            }
            missed.difference_update(*matches.values())
            has_weights = any(matches[file] and file.role in WEIGHT_ROLES for file in files)
            (chosen if has_weights else others).append(model)
        if is_whole and missed:
            return None
        found = chosen or others
        complete = (each for each in found if each.incomplete_reason is None)
        return next(complete, found[0] if found else None)


def _patterns(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """Return patterns as huggingface_hub reads them: one that ends with a slash is a folder."""
    if isinstance(values, str):
        values = (values,)
    if "" in values:
        raise InvalidModelError(name, "", "is not a pattern such as '*Q4_K_M*'")
    normal = [each.replace("\\", "/") for each in values]
    return tuple(f"{each}*" if each.endswith("/") else each for each in normal)


def _folder_in_snapshot(model: Model, paths: Sequence[str]) -> str:
    """Return the folder in the repository that the paths of a model's files are relative to."""
    first = model.version.partition("/")[2]
    shown = next((path for path in paths if f"/{first}".endswith(f"/{path}")), first)
    return first.removesuffix(shown)


def _literal(path: str) -> str:
    """Return a pattern that matches one path only."""
    return re.sub(r"([*?[])", r"[\1]", path)
