"""Finds the few models that can contain a text, by the search index; the caller compares them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    Text,
    bindparam,
    literal,
    select,
    union_all,
)

from model_catalog.mapping.search_index.indexing import MAX_CHANGES, match_all, trigrams_of
from model_catalog.mapping.search_index.objects import CHANGES, INDEX, STATE, can_have_index

_PAGE_CANDIDATES: Final = 2_000
"""With more, a page of 50 among a million models is found as fast by reading models in order."""
_MAX_CANDIDATES: Final = 50_000
_MAX_SHARE: Final = 10
"""With more than a tenth of the models, reading all of them is as fast."""

_MAX_PROBED: Final = 64
_USED: Final = 4
"""The number of trigrams that are used, the rarest. More of them make it slower, not narrower."""
_SAMPLE: Final = 64
_COMMON: Final = 2 * _SAMPLE
"""If the 64th model with the rarest trigram has an id up to this, a page is found at once."""
_PERHAPS_COMMON: Final = 16 * _SAMPLE
"""The same, for the 64th model with all trigrams, if that of the rarest has an id up to this."""

# NULL for a trigram of fewer models: the rarest. Otherwise, the earlier the id of the 64th model,
# the more common it is.
_PROBE: Final = f"""\
SELECT value, (
    SELECT CASE count(*) WHEN {_SAMPLE} THEN max(rowid) END FROM (
        SELECT rowid FROM {INDEX} WHERE {INDEX} MATCH each.value LIMIT {_SAMPLE}))
FROM json_each(?) AS each"""
_MATCH: Final = f"SELECT rowid FROM {INDEX} WHERE {INDEX} MATCH ? LIMIT ?"
# In one statement: a model that is indexed meanwhile is in one of them.
_FIND: Final = f"""\
SELECT 0, rowid FROM ({_MATCH})
UNION ALL SELECT 1, id FROM (SELECT id FROM {CHANGES} LIMIT {2 * MAX_CHANGES})"""


class Candidates(NamedTuple):
    """The ids of models that can contain a text. Models above `indexed_to` can too."""

    ids: Sequence[int]
    indexed_to: int | None
    """None if no other model can."""


def find_in_sqlite(connection: Connection, text: str, *, for_page: bool) -> Candidates | None:
    """
    Return the candidates of a case-folded text; None if reading all models is as fast.

    `for_page` says that few of the models are wanted, in an order that an index has.
    """
    # The tokenizer and Python both count code points.
    trigrams = trigrams_of(text)
    if not trigrams:
        return None
    run = connection.exec_driver_sql
    indexed_to = run(f"SELECT indexed_to FROM {STATE}").scalar()
    if indexed_to is None or not can_have_index(connection):
        return None
    quoted = [match_all([each]) for each in trigrams]
    probed = json.dumps(quoted[:: 1 + len(quoted) // _MAX_PROBED])
    rarest = sorted(run(_PROBE, (probed,)), key=lambda row: (row[1] is not None, -(row[1] or 0)))
    query = " AND ".join(row[0] for row in rarest[:_USED])
    nth = rarest[0][1]
    if for_page and nth is not None and nth <= _COMMON:
        return None
    share = _PAGE_CANDIDATES if for_page else max(_PAGE_CANDIDATES, indexed_to // _MAX_SHARE)
    limit = min(share, _MAX_CANDIDATES)
    if nth is not None and nth <= _PERHAPS_COMMON:
        sample = run(_MATCH, (query, _SAMPLE)).scalars().all()
        if len(sample) == _SAMPLE and (
            sample[-1] <= _PERHAPS_COMMON if for_page else _SAMPLE * indexed_to > limit * sample[-1]
        ):
            return None
    rows = run(_FIND, (query, limit + 1)).all()
    changed = sum(is_changed for is_changed, _ in rows)
    if len(rows) - changed > limit or changed == 2 * MAX_CHANGES:
        return None
    return Candidates([model_id for _, model_id in rows], indexed_to)


def find_in_postgresql(
    connection: Connection, text: str, models: Table, tags: Table, *, for_page: bool
) -> Candidates | None:
    """Return the candidates of a case-folded text, as `find_in_sqlite` does."""
    if not trigrams_of(text):
        return None
    limit = _PAGE_CANDIDATES if for_page else _MAX_CANDIDATES
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    # The value is in the text of the statement: a plan for any value would read all rows.
    pattern = bindparam(None, f"%{escaped}%", Text, literal_execute=True)
    parts: list[tuple[ColumnElement[int], ColumnElement[str]]] = [
        (models.c.id, models.c.reference_folded),
        (models.c.id, models.c.description_folded),
        (tags.c.model_id, tags.c.folded),
    ]
    found = union_all(*(select(id_).where(column.like(pattern)) for id_, column in parts))
    ids = connection.execute(
        found.limit(literal(limit + 1, BigInteger, literal_execute=True))
    ).scalars()
    rows = ids.all()
    return None if len(rows) > limit else Candidates(sorted(set(rows)), None)
