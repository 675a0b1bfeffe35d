"""List the models of all hosts in pages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, tuple_

from model_catalog.concurrency.gc_pauses import gc_paused
from model_catalog.domain import fields, key_validation, validation
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Operation, read
from model_catalog.execution.prepared_statement import convert_in_slices
from model_catalog.mapping.search_index.condition import use_index
from model_catalog.mapping.tables import Model
from model_catalog.repository.statements.filters import Filters, build_where, model_columns
from model_catalog.repository.statements.row_conversion import select_models, to_models

_ORDER: Final = tuple(model_columns[name] for name in fields.UNIQUE_COLUMNS)


def list_page(
    dialect: str,
    filters: Filters,
    *,
    hosts: Sequence[str] | None,
    limit: int | None,
    after: Model | None,
) -> Operation[Any, list[Model]]:
    """Return the operation that lists the models of all hosts, or of some, after a model."""
    where = build_where(filters, dialect)
    if hosts is not None:
        if isinstance(hosts, str):
            raise InvalidModelError("hosts", hosts, "is a text: give a list of names")
        names = [key_validation.host_or_none("hosts", host) for host in hosts]
        where.append(model_columns.host.in_(names))
    if after is not None:
        where.append(tuple_(*_ORDER) > _position(after))
    return read(fetch_page, (where, validation.limit("limit", limit)), may_lag=True)


def _position(model: object) -> ColumnElement[Any]:
    if not isinstance(model, Model):
        problem = f"is a {type(model).__name__}: pass a Model of the page before"
        raise InvalidModelError("after", model, problem)
    values = [validation.lookup_text(name, getattr(model, name)) for name in fields.UNIQUE_COLUMNS]
    return tuple_(*values, types=[column.type for column in _ORDER])


def fetch_page(
    connection: Connection, page: tuple[list[ColumnElement[bool]], int | None]
) -> list[Model]:
    """Return the models that meet all conditions, by host, provider, reference and version."""
    where, limit = page
    where, _ = use_index(connection, where, for_page=limit is not None)
    models = select_models(connection.dialect.name).where(*where).order_by(*_ORDER)
    if limit is not None:
        models = models.limit(limit)
    # As in the listing of one host.
    with gc_paused() if limit is None else nullcontext():
        return convert_in_slices(connection, connection.execute(models), to_models, limit)
