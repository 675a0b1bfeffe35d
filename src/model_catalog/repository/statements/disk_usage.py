"""
Statements that sum the bytes that models take on the disk. They count each file once.

A file is identified by `file_id`, which a scan or a registration has recorded. Rows of releases
before 0.2 have none: two of them are one file if their fingerprints are equal, which contain the
inode and two times in nanoseconds. A model without a list of files counts with its size, and each
path once. No file is accessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    Subquery,
    Text,
    cast,
    func,
    literal,
    null,
    select,
    type_coerce,
    union_all,
)

from model_catalog.repository.statements.filters import FILES, MODELS, model_columns

TOTAL: Final = -1
"""The index of the sum of all models in the rows of `select_totals_by`."""

# SQLite raises an error for a sum beyond 2**63. The sums of the upper and the lower 32 bits of each
# number cannot overflow.
SPLIT: Final = 2**32


def select_disk_usage(where: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Select the sums of the upper and of the lower 32 bits of the bytes of all models."""
    files = _select_files((), where).subquery()
    return select(*split_sums(_once(files).c.bytes))


def select_totals_by(
    groups: Sequence[ColumnElement[Any]], where: Sequence[ColumnElement[bool]]
) -> CompoundSelect[Any]:
    """
    Select the totals for each value of each group, and of all models. Totals are to be added up.

    A row has the index of the group in `groups`, or TOTAL; the value; the number of models; the two
    `split_sums` of their sizes, and those of their bytes on the disk. It has either the counts or
    the bytes, and 0 in place of the other. One statement, because on PostgreSQL a second one could
    see rows committed after the first.
    """
    labels = [group.label(f"group_{index}") for index, group in enumerate(groups)]
    high, low = split_sums(model_columns.size_bytes)
    sums = (func.count().label("models"), high.label("high"), low.label("low"))
    models = select(*labels, *sums).select_from(MODELS).where(*where).group_by(*groups)
    models_of, files_of = models.cte("model_totals"), _select_files(labels, where).cte("files")
    zero = literal(0)
    parts = []
    for index in (TOTAL, *range(len(groups))):
        names = () if index == TOTAL else (f"group_{index}",)
        counted = [func.sum(models_of.c[name]) for name in ("models", "high", "low")]
        files = _once(files_of, *(files_of.c[name] for name in names))
        for table, values in (
            (models_of, (*counted, zero, zero)),
            (files, (zero, zero, zero, *split_sums(files.c.bytes))),
        ):
            group = [table.c[name] for name in names]
            value = group[0] if group else cast(null(), Text)
            parts.append(select(literal(index), value, *values).group_by(*group))
    return union_all(*parts)


def split_sums(size: ColumnElement[Any]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Return the sums of the upper and of the lower 32 bits of a number of bytes."""
    return func.sum(size // SPLIT), func.sum(size % SPLIT)


def join_sums(high: int | None, low: int | None) -> int:
    """Return the number of bytes of two `split_sums`, which are NULL for no rows."""
    return int(high or 0) * SPLIT + int(low or 0)


def _select_files(
    labels: Sequence[ColumnElement[Any]], where: Sequence[ColumnElement[bool]]
) -> CompoundSelect[Any]:
    """Select the identity and the bytes of the files of all models, and of those without files."""
    path = type_coerce(model_columns.local_path, Text)
    own_id = "/" + cast(FILES.c.model_id, Text) + "/" + type_coerce(FILES.c.path, Text)
    listed = (
        select(
            *labels,
            func.coalesce(FILES.c.file_id, FILES.c.fingerprint, own_id).label("id"),
            func.coalesce(FILES.c.disk_bytes, FILES.c.size_bytes).label("bytes"),
        )
        .select_from(MODELS.join(FILES, FILES.c.model_id == model_columns.id))
        .where(model_columns.inventoried_at.is_not(None), *where)
    )
    unlisted = select(*labels, path.label("id"), model_columns.size_bytes.label("bytes")).where(
        model_columns.inventoried_at.is_(None), model_columns.size_bytes.is_not(None), *where
    )
    return union_all(listed, unlisted)


def _once(files: Any, *groups: ColumnElement[Any]) -> Subquery:
    """Select each file once in a group."""
    # A file that was read at two times can have two numbers of bytes. One of them is counted.
    return (
        select(*groups, func.max(files.c.bytes).label("bytes"))
        .group_by(*groups, files.c.id)
        .subquery()
    )
