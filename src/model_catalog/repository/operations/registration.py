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
from model_catalog.domain.fields import KEY
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.tables import Model, folded

Shape: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""The columns of a row, and those of them that are written over what is there; both in order."""

SEARCHED: Final = ("reference", "description")
"""The columns that are searched in; beside each its text is kept without regard to case."""


class Registration(NamedTuple):
    """What registering a model writes: a whole row if it is new, and some columns if it is not."""

    row: dict[str, Any]
    changed: frozenset[str]

    @classmethod
    def of(cls, model: Model, found: Mapping[str, Any] | None = None) -> Registration:
        """
        The fields that were set, checked, and what was `found` of its files.

        Of a model that was read from the catalog those are the ones that were set since: what was
        only claimed of it must not come back as the user's word.
        """
        if not isinstance(model, Model):
            raise InvalidModelError("model", model, f"is a {type(model).__name__}: give a Model")
        state = instance_state(model)
        row = fields.checked(vars(model))
        kept: AbstractSet[str] = frozenset()
        if state.key is not None:
            kept = state.unmodified & row.keys()
            for name in fields.CLAIMABLE:
                if name in kept and row.get(name) == row.get(f"claimed_{name}"):
                    del row[name]
        return cls._of(row, kept, found or {})

    @classmethod
    def of_values(cls, values: Mapping[str, object]) -> Registration:
        """That of a model with these values. Raises InvalidModelError for a name it has not."""
        for name, value in values.items():
            if name not in fields.GIVEN:
                raise InvalidModelError(f"{name}", value, "is no field that a model is given")
        return cls._of(fields.checked(values), frozenset(), {})

    @classmethod
    def _of(
        cls, row: dict[str, Any], kept: AbstractSet[str], found: Mapping[str, Any]
    ) -> Registration:
        row.setdefault("version", "")
        if row.get("downloaded_at") is None:
            row["downloaded_at"] = now()
            kept -= {"downloaded_at"}
        row["description_folded"] = None
        row |= folded_of(row)
        row |= found
        return cls(row, changed_of(tuple(row), frozenset(kept - found.keys())))

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same model as another."""
        return tuple(self.row[name] for name in KEY)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of its row."""
        return tuple(self.row)

    @property
    def shape(self) -> Shape:
        """What makes it the same statement as another's."""
        return shape_of(self.names, self.changed)

    def then(self, later: Registration) -> Registration:
        """Both, one after the other."""
        row = self.row | later.row
        sizes = {self.row.get("size_bytes"), later.row.get("size_bytes")} - {None}
        if "digest" in self.row and "digest" not in later.row and len(sizes) > 1:
            # The bytes of another size have another digest.
            row["digest"] = None
        # One that says nothing of a description has no text to search in either.
        return Registration(row | folded_of(row), self.changed | later.changed)


# A program's models have a handful of shapes; what follows from one takes longer to work out than
# its values to check.
@lru_cache(maxsize=256)
def changed_of(names: tuple[str, ...], kept: frozenset[str] = frozenset()) -> frozenset[str]:
    """Which columns of a row are written over those of one that is there."""
    # Where SQL alone brought the table here, the text to search in is not what it should be.
    changed = set(names).difference(kept, KEY)
    if "description" not in changed:
        changed.discard("description_folded")
    return frozenset(changed)


@lru_cache(maxsize=256)
def shape_of(names: tuple[str, ...], changed: frozenset[str]) -> Shape:
    """What rows have in common that are written by one statement."""
    return tuple(sorted(names)), tuple(sorted(changed))


def folded_of(row: Mapping[str, Any]) -> dict[str, str | None]:
    """The texts to search in, of those in a row that is to be written."""
    texts = {name: row[name] for name in SEARCHED if name in row}
    return {f"{name}_folded": text and folded(text) for name, text in texts.items()}


def now() -> datetime:
    """This second."""
    return datetime.fromtimestamp(int(time.time()), UTC)
