"""What refers to a model: processes that use it, and rows of other programs."""

from __future__ import annotations

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    column,
    delete,
    exists,
    inspect,
    select,
)
from sqlalchemy import table as sql_table

from model_catalog.errors import ModelInUseError
from model_catalog.mapping.child_tables import USES
from model_catalog.repository.statements.database_time import is_valid, now_ms
from model_catalog.repository.statements.filters import MODELS, model_columns


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


def find_referring_table(connection: Connection, which: ColumnElement[bool]) -> str | None:
    """Return a table of another program in SQLite whose rows refer to some models, or None."""
    if connection.dialect.name != "sqlite":
        # PostgreSQL names the table. Its transaction can execute no statement after an error.
        return None
    inspector = inspect(connection)
    for name in set(inspector.get_table_names()) - set(MODELS.metadata.tables):
        for key in inspector.get_foreign_keys(name):
            if key["referred_table"].lower() != MODELS.name:
                continue
            table = sql_table(name, *map(column, key["constrained_columns"]))
            pairs = zip(table.c, key["referred_columns"], strict=True)
            refers = and_(*(each == MODELS.c[referred] for each, referred in pairs))
            if connection.scalar(select(exists().where(refers, which))):
                return name
    return None
