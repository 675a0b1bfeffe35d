"""Record in which folder the catalog may delete the files of downloaded models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, update

from model_catalog.repository.statements.filters import MODELS, model_columns


class ManagedRoot(NamedTuple):
    """A folder that the catalog manages, and the ids of the models in it."""

    root: str
    model_ids: Sequence[int]


def set_managed_root(connection: Connection, value: ManagedRoot) -> None:
    """Set the managed folder of models, unless they have one."""
    connection.execute(
        update(MODELS)
        .where(model_columns.id.in_(value.model_ids), model_columns.managed_root.is_(None))
        .values(managed_root=value.root)
    )
