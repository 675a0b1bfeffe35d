"""Which processes use a model. A use that has expired counts no more."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, select

from model_catalog.errors import ModelInUseError
from model_catalog.mapping.child_tables import USES
from model_catalog.repository.statements.database_time import is_valid, now_ms
from model_catalog.repository.statements.filters import model_columns


def require_unused(connection: Connection, which: ColumnElement[bool], model: str) -> None:
    """
    Raise ModelInUseError if a process uses one of the models that a condition selects.

    Otherwise delete the uses of these models that have expired, so that the models can be deleted.
    """
    if connection.dialect.name == "postgresql":
        # A use that another transaction is beginning must be seen, so that its process is named.
        rows_to_remove = select(model_columns.id).where(which).order_by(model_columns.id)
        connection.execute(rows_to_remove.with_for_update())
    of_models = USES.c.model_id.in_(select(model_columns.id).where(which))
    now = now_ms(connection.dialect.name)
    rows = connection.execute(
        select(USES.c.holder_host, USES.c.holder_process_id, is_valid(USES, now)).where(of_models)
    ).all()
    users = [f"process {process_id} on {host}" for host, process_id, is_used in rows if is_used]
    if users:
        raise ModelInUseError(None, model, sorted(set(users)))
    if rows:
        connection.execute(delete(USES).where(of_models, ~is_valid(USES, now)))
