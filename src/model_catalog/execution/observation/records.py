"""What the hooks of a catalog are called with: calls that have ended, and changes of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef

ChangeKind: TypeAlias = Literal["registered", "updated", "removed", "state_changed"]
"""What became of the record of a model."""


@dataclass(frozen=True, slots=True)
class CatalogCall:
    """A call of a catalog that has ended, for metrics."""

    name: str
    """
    The name of the method, as in `find_model`.

    With its class if that is not ModelCatalog, as in `Fleet.who_has`. An operation that a function
    of `upkeep` or `downloads` runs itself has its package's name, as in `upkeep.update_states`.
    """
    duration_s: float
    """The seconds from the call to its end; of an iteration, without those of the loop's body."""
    waited_s: float | None
    """
    The seconds before its work in the database began: in queues, and for locks and connections.

    None if the call has not reached the database, or shares its work with others as `record_use`
    does. On PostgreSQL the wait for the lock of a row is a part of the work.
    """
    rows: int | None
    """The number of models, files, tags or other rows that were returned or written; or None."""
    error: str | None
    """The name of the class of the error that was raised, as in `CatalogBusyError`; or None."""


@dataclass(frozen=True, slots=True)
class ModelChange:
    """One committed change of the record of one model."""

    kind: ChangeKind
    """
    `registered` for a new record, `removed` for a deleted one, `state_changed` for another state of
    the files, and `updated` for other fields.
    """
    provider: str
    reference: str
    """The name after the change."""
    version: str
    host: str
    """The host of the record; `""` for a catalog without a host."""
    model_id: int
    """The row id. SQLite may give the id of a removed model to a new one."""
    fields: tuple[str, ...]
    """
    The names of the fields that have other values now; empty for `registered` and `removed`.

    `tags`, `aliases` and `files` are those of the model.
    """
    old_state: FileState | None
    """The state before; None for `registered`."""
    new_state: FileState | None
    """The state now; None for `removed`."""
    previous_ref: ModelRef | None
    """The name before, if the model was renamed; otherwise None."""
    changed_at: datetime
    """The time of the change in UTC, by the clock of this process, shortly before the commit."""

    @property
    def ref(self) -> ModelRef:
        """The name after the change, with its version."""
        return ModelRef(self.provider, self.reference, self.version)


CallHook: TypeAlias = Callable[[CatalogCall], object]
"""A function that is called after each call of a catalog."""

ChangeHook: TypeAlias = Callable[[Sequence[ModelChange]], object]
"""A function that is called after a commit with changes of models, at most 1,000 at once."""
