"""Whether the search index of a database is whole, and how it is made whole again."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from model_catalog.mapping.search_index import indexing
from model_catalog.mapping.search_index.objects import (
    CHANGES,
    CREATE_CHANGES,
    CREATE_STATE,
    CREATE_TRIGGERS,
    INDEX,
    STATE,
    could_have_index,
    create_index,
    has_index,
)

_SAMPLE: Final = 200
"""The number of models that are looked up in the index: all of a small catalog."""
_LOOKED_UP: Final = 64
"""The number of trigrams of a model that are looked up; FTS5 takes at most 256."""
_FEW: Final = 512
"""So many models may wait to be indexed without an upgrade taking the lock for them."""


def find_problem(connection: Connection, schema: str | None) -> str | None:
    """
    Return how the search index of a database is broken; None if it is not.

    A database that cannot have the index is not broken. `schema` is that of the tables.
    """
    if connection.dialect.name == "sqlite" and (missing := _missing_objects(connection)):
        return f"{missing[0]} is missing"
    if not has_index(connection, schema):
        return "it is missing" if could_have_index(connection) else None
    if connection.dialect.name == "sqlite" and (ids := _missing_models(connection)):
        return (
            f"it lacks {len(ids)} of {_SAMPLE} sampled models, for example the one of id {ids[0]}"
        )
    return None


def needs_completion(connection: Connection, schema: str | None) -> bool:
    """Return whether `complete_index` has work: the index is broken, or many models wait."""
    if find_problem(connection, schema) is not None:
        return True
    if connection.dialect.name != "sqlite" or not has_index(connection):
        return False
    waiting, changes = indexing.count_waiting(connection)
    return waiting > _FEW or changes > _FEW


def complete_index(connection: Connection, schema: str | None) -> None:
    """Create, rebuild or fill the index, in the connection's transaction."""
    problem = find_problem(connection, schema)
    if connection.dialect.name != "sqlite":
        create_index(connection)
        return
    creation = {STATE: CREATE_STATE, CHANGES: CREATE_CHANGES, **CREATE_TRIGGERS}
    for name in _missing_objects(connection):
        connection.exec_driver_sql(creation[name])
    if not has_index(connection):
        create_index(connection)
    if has_index(connection):
        if problem is not None:
            indexing.clear_index(connection)
        indexing.index_all(connection)


def _missing_objects(connection: Connection) -> list[str]:
    names = set(connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars())
    return [name for name in (STATE, CHANGES, *CREATE_TRIGGERS) if name not in names]


def _missing_models(connection: Connection) -> list[int]:
    """Return which models of a sample the index should propose, and does not."""
    run = connection.exec_driver_sql
    first, last = run(f"SELECT min(id), (SELECT indexed_to FROM {STATE}) FROM models").one()
    if first is None or last is None:
        return []
    step = max(1, (last - first) // _SAMPLE)
    sample = run(
        "WITH RECURSIVE place (id) AS (SELECT ? UNION ALL SELECT id + ? FROM place WHERE id < ?)"
        " SELECT DISTINCT (SELECT min(m.id) FROM models m WHERE m.id >= place.id) FROM place",
        (first, step, last),
    ).scalars()
    missing = []
    for model_id in sample.all():
        if model_id is None or model_id > last:
            continue
        (text,) = run(f"SELECT {indexing.TEXT} FROM models WHERE id = ?", (model_id,)).one()
        trigrams = indexing.trigrams_of(text)
        trigrams = trigrams[:: 1 + len(trigrams) // _LOOKED_UP]
        is_found = (
            not trigrams
            or run(
                f"SELECT EXISTS (SELECT 1 FROM {INDEX} WHERE {INDEX} MATCH ? AND rowid = ?)"
                f" OR EXISTS (SELECT 1 FROM {CHANGES} WHERE id = ?)",
                (indexing.match_all(trigrams), model_id, model_id),
            ).scalar()
        )
        if not is_found:
            missing.append(model_id)
    return missing
