"""Copy what a user has said of a model to the models into which a scan has split it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select

from model_catalog.connection.database_info import host_of
from model_catalog.domain import key_validation
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.child_tables import ALIASES, TAGS
from model_catalog.repository.statements.filters import MODELS, model_columns, of_host
from model_catalog.repository.statements.models import insert_into

_BATCH_SIZE: Final = 500
"""Models in one statement."""
_FIELDS: Final = ("pinned_at", "pin_reason", "description", "description_folded", "license")


class LabelCopy(NamedTuple):
    """The id and the key of a model, and those of a new model that was a part of it."""

    old_id: int
    old_key: tuple[str, str, str]
    new_id: int
    new_key: tuple[str, str, str]


def copy_labels(connection: Connection, copies: Sequence[LabelCopy]) -> None:
    """
    Copy tags, pins, descriptions, licenses and the user's aliases to new models.

    An alias has one model. Under the same reference, the copy of `stable` for a new model is
    `stable/` and the part of its version that the old model did not have. If that is not a valid
    alias, or is taken, there is no copy.
    """
    for start in range(0, len(copies), _BATCH_SIZE):
        batch = copies[start : start + _BATCH_SIZE]
        recorded = select(model_columns.id).where(
            model_columns.id.in_({copy.old_id for copy in batch}), of_host(connection)
        )
        # SQLite may have given the id of a removed row to a model of another host.
        old_ids = sorted(connection.scalars(recorded))
        _copy_fields(connection, batch, old_ids)
        _copy_tags(connection, batch, old_ids)
        _copy_aliases(connection, batch, old_ids)


def _copy_fields(connection: Connection, copies: Sequence[LabelCopy], old_ids: list[int]) -> None:
    query = select(model_columns.id, *(model_columns[name] for name in _FIELDS))
    values = {
        row[0]: {f"new_{name}": value for name, value in zip(_FIELDS, row[1:], strict=True)}
        for row in connection.execute(query.where(model_columns.id.in_(old_ids)))
    }
    rows = [
        {"of_id": copy.new_id, **values[copy.old_id]} for copy in copies if copy.old_id in values
    ]
    update = MODELS.update().where(model_columns.id == bindparam("of_id"))
    update = update.values(
        {name: bindparam(f"new_{name}", type_=model_columns[name].type) for name in _FIELDS}
    )
    if rows:
        connection.execute(update, rows)


def _copy_tags(connection: Connection, copies: Sequence[LabelCopy], old_ids: list[int]) -> None:
    query = select(TAGS.c.model_id, TAGS.c.folded, TAGS.c.tag).where(TAGS.c.model_id.in_(old_ids))
    tags: dict[int, list[tuple[str, str]]] = {}
    for model_id, folded, tag in connection.execute(query):
        tags.setdefault(model_id, []).append((folded, tag))
    rows = [
        {"model_id": copy.new_id, "folded": folded, "tag": tag}
        for copy in copies
        for folded, tag in tags.get(copy.old_id, ())
    ]
    if rows:
        connection.execute(insert_into(TAGS, connection.dialect.name), rows)


def _copy_aliases(connection: Connection, copies: Sequence[LabelCopy], old_ids: list[int]) -> None:
    query = select(ALIASES.c.model_id, ALIASES.c.alias).where(
        ALIASES.c.model_id.in_(old_ids), ALIASES.c.store.is_(None)
    )
    aliases: dict[int, list[str]] = {}
    for model_id, alias in connection.execute(query):
        aliases.setdefault(model_id, []).append(alias)
    host = host_of(connection)
    rows = [
        {**row, "host": host}
        for copy in copies
        for alias in aliases.get(copy.old_id, ())
        for row in _row(copy, alias)
    ]
    if rows:
        insert = insert_into(ALIASES, connection.dialect.name)
        connection.execute(insert.on_conflict_do_nothing(), rows)


def _row(copy: LabelCopy, alias: str) -> list[dict[str, Any]]:
    """Return the row of a copied alias, or nothing if it cannot be copied."""
    provider, reference, version = copy.new_key
    if reference == copy.old_key[1]:
        alias = f"{alias}/{version.removeprefix(copy.old_key[2]).removeprefix('/')}"
    try:
        key_validation.alias("alias", alias)
    except InvalidModelError:
        return []
    return [
        {
            "provider": provider,
            "reference": reference,
            "alias": alias,
            "model_id": copy.new_id,
            "store": None,
        }
    ]
