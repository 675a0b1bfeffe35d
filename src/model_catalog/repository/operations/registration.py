"""What registering a model writes: a checked row, and which columns of one that is there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy.orm.attributes import instance_state

from model_catalog.domain import fields
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.tables import Model, fold_case

StatementKey: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""The columns of a row, and those of them that are written over what is there; both in order."""

SEARCHED: Final = ("reference", "description")
"""The columns that are searched in; beside each its text is kept without regard to case."""


class UpsertRow(NamedTuple):
    """What registering a model writes: a whole row if it is new, and some columns if it is not."""

    row: dict[str, Any]
    changed: frozenset[str]

    @classmethod
    def of(cls, model: Model, found: Mapping[str, Any] | None = None) -> UpsertRow:
        """
        The fields that were set, checked, and what was `found` of its files.

        Of a model that was read from the catalog those are the ones that were set since: what was
        only claimed of it must not come back as the user's word.
        """
        if not isinstance(model, Model):
            raise InvalidModelError("model", model, f"is a {type(model).__name__}: give a Model")
        state = instance_state(model)
        row = fields.validate_model(vars(model))
        kept: AbstractSet[str] = frozenset()
        if state.key is not None:
            kept = state.unmodified & row.keys()
            for name in fields.HEADER_FIELDS:
                if name in kept and row.get(name) == row.get(f"claimed_{name}"):
                    del row[name]
        return cls._of(row, kept, found or {})

    @classmethod
    def of_values(cls, values: Mapping[str, object]) -> UpsertRow:
        """That of a model with these values. Raises InvalidModelError for a name it has not."""
        for name, value in values.items():
            if name not in fields.INPUT_FIELDS:
                raise InvalidModelError(f"{name}", value, "is no field that a model is given")
        return cls._of(fields.validate_model(values), frozenset(), {})

    @classmethod
    def _of(
        cls, row: dict[str, Any], kept: AbstractSet[str], found: Mapping[str, Any]
    ) -> UpsertRow:
        row.setdefault("version", "")
        if row.get("downloaded_at") is None:
            row["downloaded_at"] = utc_now()
            kept -= {"downloaded_at"}
        row["description_folded"] = None
        row |= search_columns(row)
        row |= found
        return cls(row, overwritten_columns(tuple(row), frozenset(kept - found.keys())))

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same model as another."""
        return tuple(self.row[name] for name in KEY_FIELDS)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of its row."""
        return tuple(self.row)

    @property
    def shape(self) -> StatementKey:
        """What makes it the same statement as another's."""
        return statement_key(self.names, self.changed)

    def then(self, later: UpsertRow) -> UpsertRow:
        """Both, one after the other."""
        row = self.row | later.row
        sizes = {self.row.get("size_bytes"), later.row.get("size_bytes")} - {None}
        if "digest" in self.row and "digest" not in later.row and len(sizes) > 1:
            # The bytes of another size have another digest.
            row["digest"] = None
        # One that says nothing of a description has no text to search in either.
        return UpsertRow(row | search_columns(row), self.changed | later.changed)


# A program's models have a handful of shapes; what follows from one takes longer to work out than
# its values to check.
@lru_cache(maxsize=256)
def overwritten_columns(
    names: tuple[str, ...], kept: frozenset[str] = frozenset()
) -> frozenset[str]:
    """Which columns of a row are written over those of one that is there."""
    # Where SQL alone brought the table here, the text to search in is not what it should be.
    changed = set(names).difference(kept, KEY_FIELDS)
    if "description" not in changed:
        changed.discard("description_folded")
    return frozenset(changed)


@lru_cache(maxsize=256)
def statement_key(names: tuple[str, ...], changed: frozenset[str]) -> StatementKey:
    """What rows have in common that are written by one statement."""
    return tuple(sorted(names)), tuple(sorted(changed))


def search_columns(row: Mapping[str, Any]) -> dict[str, str | None]:
    """The texts to search in, of those in a row that is to be written."""
    texts = {name: row[name] for name in SEARCHED if name in row}
    return {f"{name}_folded": text and fold_case(text) for name, text in texts.items()}


def utc_now() -> datetime:
    """This second."""
    return datetime.fromtimestamp(int(time.time()), UTC)
