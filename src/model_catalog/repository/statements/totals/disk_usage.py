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
    CTE,
    ColumnElement,
    CompoundSelect,
    Label,
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

from model_catalog.mapping.child_tables import FILES
from model_catalog.repository.statements.filters import MODELS, model_columns

TOTAL: Final = -1
"""The index of the sum of all models in the rows of `select_totals_by`."""

ALL_GROUPS: Final = -2
"""The index of sums of models with the same value in every group, in the same rows."""

EXACTNESS: Final = -3
"""The index of the row that tells whether the counters are exact."""

# SQLite raises an error for a sum beyond 2**63. The sums of the upper and the lower 32 bits of each
# number cannot overflow.
SPLIT: Final = 2**32


def select_disk_usage(where: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """Select the sums of the upper and of the lower 32 bits of the bytes of all models."""
    files = _select_files((), where).subquery()
    return select(*split_sums(_once(files).c.bytes))


def select_totals_by(
    groups: Sequence[ColumnElement[Any]],
    where: Sequence[ColumnElement[bool]],
    counters: CTE | None = None,
    are_counters_exact: ColumnElement[int] | None = None,
) -> CompoundSelect[Any]:
    """
    Select numbers of models, their sizes and their bytes on the disk, which are to be added up.

    A row has an index, the values of all groups, the number of models, the two `split_sums` of
    their sizes, and those of their bytes on the disk. A row with the index ALL_GROUPS is added to
    the total and to each of its values. A row with the index of a group is added to that value
    only, and one with TOTAL to the total. With `counters` the models and sizes are read from it,
    and `are_counters_exact` is the number of models of the row EXACTNESS, which is the first.

    One statement, because on PostgreSQL a second one could see rows committed after the first.
    """
    # Each file is to be counted once in each group. Few files occur more than once as a rule, so
    # all are added up, and those are corrected. That needs one sort of the files instead of five.
    labels = [group.label(f"group_{index}") for index, group in enumerate(groups)]
    sizes = counters if counters is not None else _sum_sizes(labels, where)
    values = [sizes.c[label.name] for label in labels]
    counts = [sizes.c[name] for name in ("models", "high", "low")]
    zeros = (literal(0), literal(0), literal(0))
    listed_sizes = split_sums(model_columns.size_bytes)
    listed = _select_listed(labels, where).subquery()
    repeated = _select_repeated(labels, where)
    entries = [listed.c[label.name] for label in labels]
    parts = [
        select(literal(ALL_GROUPS), *values, *counts, *counts[1:]),
        # A model with a list of files takes the bytes of its files, and not its size.
        select(literal(ALL_GROUPS), *labels, *zeros, *(-each for each in listed_sizes))
        .where(model_columns.inventoried_at.is_not(None), *where)
        .group_by(*groups),
        select(literal(ALL_GROUPS), *entries, *zeros, *split_sums(listed.c.bytes)).group_by(
            *entries
        ),
        select(
            literal(ALL_GROUPS),
            *(repeated.c[label.name] for label in labels),
            *zeros,
            *(-each for each in split_sums(repeated.c.bytes)),
        ).group_by(*(repeated.c[label.name] for label in labels)),
    ]
    for index in (TOTAL, *range(len(groups))):
        names = () if index == TOTAL else (f"group_{index}",)
        files = _once(repeated, *(repeated.c[name] for name in names))
        group = [files.c[name] for name in names]
        row = [group[0] if at == index else cast(null(), Text) for at in range(len(groups))]
        sums = split_sums(files.c.bytes)
        parts.append(select(literal(index), *row, *zeros, *sums).group_by(*group))
    if are_counters_exact is not None:
        unknown = [cast(null(), Text)] * len(groups)
        exactness = select(literal(EXACTNESS), *unknown, are_counters_exact, *zeros, literal(0))
        parts.insert(0, exactness)
    return union_all(*parts)


def _sum_sizes(labels: Sequence[Label[Any]], where: Sequence[ColumnElement[bool]]) -> CTE:
    high, low = split_sums(model_columns.size_bytes)
    sums = (func.count().label("models"), high.label("high"), low.label("low"))
    groups = [label.element for label in labels]
    models = select(*labels, *sums).select_from(MODELS).where(*where).group_by(*groups)
    return models.cte("sizes")


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
    unlisted = select(*labels, path.label("id"), model_columns.size_bytes.label("bytes")).where(
        model_columns.inventoried_at.is_(None), model_columns.size_bytes.is_not(None), *where
    )
    return union_all(_select_listed(labels, where), unlisted)


def _select_listed(
    labels: Sequence[ColumnElement[Any]], where: Sequence[ColumnElement[bool]]
) -> Select[Any]:
    """Select the identity and the bytes of the files that are listed."""
    own_id = "/" + cast(FILES.c.model_id, Text) + "/" + type_coerce(FILES.c.path, Text)
    return (
        select(
            *labels,
            func.coalesce(FILES.c.file_id, FILES.c.fingerprint, own_id).label("id"),
            func.coalesce(FILES.c.disk_bytes, FILES.c.size_bytes).label("bytes"),
        )
        .select_from(MODELS.join(FILES, FILES.c.model_id == model_columns.id))
        .where(model_columns.inventoried_at.is_not(None), *where)
    )


def _select_repeated(
    labels: Sequence[ColumnElement[Any]], where: Sequence[ColumnElement[bool]]
) -> CTE:
    """Select the files that occur more than once, each time that they do."""
    # Two selects of the files: a CTE of all of them would be stored with all its columns.
    every = _select_files((), where).subquery()
    repeated = select(every.c.id).group_by(every.c.id).having(func.count() > 1).cte("repeated_ids")
    files = _select_files(labels, where).subquery()
    return (
        select(files)
        # If there are none, the files are not read again.
        .where(select(repeated.c.id).exists(), files.c.id.in_(select(repeated.c.id)))
        .cte("repeated")
    )


def _once(files: Any, *groups: ColumnElement[Any]) -> Subquery:
    """Select each file once in a group."""
    # A file that was read at two times can have two numbers of bytes. One of them is counted.
    return (
        select(*groups, func.max(files.c.bytes).label("bytes"))
        .group_by(*groups, files.c.id)
        .subquery()
    )
