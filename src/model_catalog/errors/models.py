"""Exceptions about models: invalid values, missing models, models in use."""

from __future__ import annotations

from collections.abc import Sequence

from model_catalog.errors.base import MAX_SHOWN, CatalogError, command, shown


class InvalidModelError(CatalogError, ValueError):
    """A value that the catalog does not store: `field`, `value` and `reason`."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        # The name of a field in an import is untrusted, and may contain terminal control codes.
        name = field if field.isprintable() and len(field) <= MAX_SHOWN else shown(field)
        super().__init__(f"{name} {shown(value)} {reason}")
        self.field = field
        self.value = value
        self.reason = reason


class ModelNotFoundError(CatalogError, LookupError):
    """
    The catalog has no such model: `reference`, `provider` and `version`.

    Of a model that was looked up by its id only `model_id` is known; the names are then empty.
    """

    def __init__(
        self, reference: str, provider: str, version: str | None, *, model_id: int | None = None
    ) -> None:
        which = "" if version is None else f" with version {shown(version)}"
        name = f"{shown(reference)} of provider {shown(provider)}{which}"
        super().__init__(
            f"no model {name if model_id is None else f'with id {model_id}'} is recorded: use "
            f"list_models() ({command('ls')}) to see the recorded models"
        )
        self.reference = reference
        self.provider = provider
        self.version = version
        self.model_id = model_id


class ModelInUseError(CatalogError):
    """
    A model was not removed, because processes use it or rows of another table refer to it.

    `users` are the processes that use it, as in `process 7 on host`. If there are none, `table` is
    the table of another program whose foreign key refers to the model. `model` is the model's
    reference in the form that `ModelRef` has. `table` and `model` are None if the database did not
    tell.
    """

    def __init__(
        self, table: str | None, model: str | None = None, users: Sequence[str] = ()
    ) -> None:
        which = "a model" if model is None else f"model {shown(model)}"
        if users:
            message = (
                f"{which} cannot be removed, because it is used by {', '.join(users)}: stop it "
                f"first. The use of a process that was killed ends by itself within its lease"
            )
        else:
            rows = "another table" if table is None else f"the table {shown(table)}"
            message = (
                f"{which} cannot be removed, because rows of {rows} refer to it: delete or change "
                f"those rows first"
            )
        super().__init__(message)
        self.table = table
        self.model = model
        self.users = tuple(users)


class InvalidImportError(CatalogError, ValueError):
    """A line of an import is invalid, and nothing was imported: `line` and `reason`."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(
            f"line {line} cannot be imported: {reason}. Nothing was imported. Correct the line, or "
            f"skip invalid lines with `skip_broken=True` (`--skip-broken`)"
        )
        self.line = line
        self.reason = reason


class TooManyMissingError(CatalogError):
    """Most models under the path `group` were not found. None of them was recorded as missing."""

    def __init__(self, group: str, missing_count: int, model_count: int) -> None:
        super().__init__(
            f"{missing_count} of {model_count} models under {group!r} were not found. None of them "
            f"was recorded as missing, because the disk may not be mounted. If the files are gone, "
            f"run the check or the scan again with `force=True` (`--force`)"
        )
        self.group = group
        self.missing_count = missing_count
        self.model_count = model_count

    @property
    def held_count(self) -> int:
        """The name of `model_count` in release 0.1.0."""
        return self.model_count


class DigestMismatchError(CatalogError):
    """A path contains other bytes than `expected`, and nothing changed: `path` and `found`."""

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(
            f"{path!r} is another model: its digest is {found}, and {expected} is recorded. "
            f"Register it under its own name, or accept its bytes as the new ones of this model"
        )
        self.path = path
        self.expected = expected
        self.found = found
