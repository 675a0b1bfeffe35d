"""
Fills the search index of a SQLite database, in chunks, some time after the models were written.

A model costs 10 us to index, and as long again if each were indexed on its own. So a write leaves
it to a later one. Until then a search reads the new models themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection

from model_catalog.mapping.search_index.objects import CHANGES, INDEX, STATE, has_index

MAX_WAITING: Final = 16_384
"""A search reads this many new models in 4 ms."""
MAX_CHANGES: Final = 4_096
"""A search looks at this many changed models, one by one, in 4 ms."""

_UNTAGGED_TEXT: Final = """\
coalesce(reference_folded, '') || char(10) || coalesce(description_folded, '') || char(10)"""
TEXT: Final = f"""\
{_UNTAGGED_TEXT}
|| coalesce((SELECT group_concat(folded, char(10)) FROM model_tags WHERE model_id = models.id), '')
"""
# A plain program can write a NUL. The tokenizer may end there, and instr() does not.
_UNTAGGED_HAS_NUL: Final = "instr(reference_folded, char(0)) OR instr(description_folded, char(0))"
_HAS_NUL: Final = f"""\
({_UNTAGGED_HAS_NUL} OR EXISTS (
SELECT 1 FROM model_tags WHERE model_id = models.id AND instr(folded, char(0))))"""


def trigrams_of(text: str) -> list[str]:
    """Return the different sequences of three code points, as the tokenizer makes them."""
    return sorted({text[start : start + 3] for start in range(len(text) - 2)})


def match_all(trigrams: Iterable[str]) -> str:
    """Return the query of FTS5 for entries with all of these trigrams."""
    return " AND ".join('"' + each.replace('"', '""') + '"' for each in trigrams)


def index_if_many_wait(connection: Connection, limit: int) -> None:
    """Index at most `limit` new models, and as many changed ones, if many wait. SQLite only."""
    waiting, changes = count_waiting(connection)
    if (waiting > MAX_WAITING or changes > MAX_CHANGES) and has_index(connection):
        index_changes(connection, limit)
        index_new(connection, limit)


def count_waiting(connection: Connection) -> tuple[int, int]:
    """Return about how many new models wait, and how many changed ones, up to `MAX_CHANGES`."""
    waiting, changes = connection.exec_driver_sql(
        f"SELECT coalesce((SELECT max(id) FROM models), 0)"
        f" - coalesce((SELECT indexed_to FROM {STATE}), 0),"
        f" (SELECT count(*) FROM (SELECT 1 FROM {CHANGES} LIMIT {MAX_CHANGES + 1}))"
    ).one()
    return waiting, changes


def index_all(connection: Connection) -> None:
    """Index all models that wait, in the connection's transaction."""
    index_changes(connection)
    index_new(connection)


def index_new(connection: Connection, limit: int | None = None) -> None:
    """Index the models above `indexed_to`, at most `limit`, those with the lowest ids first."""
    run = connection.exec_driver_sql
    indexed_to = run(f"SELECT indexed_to FROM {STATE}").scalar()
    is_new = "1" if indexed_to is None else f"id > {indexed_to}"
    some = "" if limit is None else f"ORDER BY id LIMIT {limit}"
    last = run(f"SELECT max(id) FROM (SELECT id FROM models WHERE {is_new} {some})").scalar()
    if last is None:
        # The newest models were deleted. Those that get their ids need not wait as changes.
        newest = run("SELECT max(id) FROM models").scalar()
        if newest is None:
            run(f"DELETE FROM {STATE}")
        elif newest != indexed_to:
            run(f"UPDATE {STATE} SET indexed_to = {newest}")
        return
    are_tagged = run(
        f"SELECT EXISTS (SELECT 1 FROM (SELECT model_id AS id FROM model_tags)"
        f" WHERE {is_new} AND id <= {last})"
    ).scalar()
    _index(connection, f"{is_new} AND id <= {last}", are_tagged=bool(are_tagged))
    run(f"INSERT OR REPLACE INTO {STATE} VALUES (1, {last})")


def index_changes(connection: Connection, limit: int | None = None) -> None:
    """Index the changed models, at most `limit`. Their entries of before stay, and do no harm."""
    run = connection.exec_driver_sql
    some = "" if limit is None else f"ORDER BY id LIMIT {limit}"
    last = run(f"SELECT max(id) FROM (SELECT id FROM {CHANGES} {some})").scalar()
    if last is not None:
        changed = f"id IN (SELECT id FROM {CHANGES} WHERE id <= {last})"
        run(f"INSERT INTO {INDEX} (rowid, folded) SELECT id, {TEXT} FROM models WHERE {changed}")
        run(
            f"DELETE FROM {CHANGES} WHERE id <= {last}"
            f" AND id NOT IN (SELECT id FROM models WHERE {changed} AND {_HAS_NUL})"
        )


def clear_index(connection: Connection) -> None:
    """Empty the index, so that all models wait to be indexed."""
    for statement in (
        f"DELETE FROM {STATE}",
        f"DELETE FROM {CHANGES}",
        f"INSERT INTO {INDEX} ({INDEX}) VALUES ('delete-all')",
    ):
        connection.exec_driver_sql(statement)


def _index(connection: Connection, condition: str, *, are_tagged: bool) -> None:
    """
    Add the models that meet a condition; those with a NUL stay among the changed ones.

    `are_tagged` says that some of them have tags. Looking for the tags of each takes 0.3 us.
    """
    run = connection.exec_driver_sql
    text, has_nul = (TEXT, _HAS_NUL) if are_tagged else (_UNTAGGED_TEXT, f"({_UNTAGGED_HAS_NUL})")
    run(f"INSERT INTO {INDEX} (rowid, folded) SELECT id, {text} FROM models WHERE {condition}")
    run(f"INSERT OR IGNORE INTO {CHANGES} SELECT id FROM models WHERE {condition} AND {has_nul}")
