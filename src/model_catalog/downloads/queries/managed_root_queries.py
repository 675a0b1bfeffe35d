"""Record in which folder the catalog may delete the files of downloaded models."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, update

from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.repository.statements.filters import MODELS, model_columns, of_host


class ManagedRoot(NamedTuple):
    """A folder that the catalog manages, and the models of one snapshot of a store in it."""

    root: str
    store: str
    store_root: str
    snapshot: tuple[str, str, str]
    """Provider, reference and commit. The version of a quantization is `COMMIT/FILE`."""


def _rows_of_snapshot(connection: Connection, value: ManagedRoot) -> ChangedRows:
    return ChangedRows([and_(*_is_of_snapshot(connection, value))])


@changes(_rows_of_snapshot)
def set_managed_root(connection: Connection, value: ManagedRoot) -> None:
    """Set the managed folder of models, unless they have one."""
    is_of_snapshot = _is_of_snapshot(connection, value)
    connection.execute(update(MODELS).where(*is_of_snapshot).values(managed_root=value.root))


def _is_of_snapshot(connection: Connection, value: ManagedRoot) -> list[ColumnElement[bool]]:
    provider, reference, commit = value.snapshot
    version = model_columns.version
    is_of_commit = (version == commit) | (func.substr(version, 1, len(commit) + 1) == f"{commit}/")
    return [
        of_host(connection),
        model_columns.provider == provider,
        model_columns.reference == reference,
        is_of_commit,
        model_columns.store == value.store,
        model_columns.store_root == value.store_root,
        model_columns.managed_root.is_(None),
    ]
