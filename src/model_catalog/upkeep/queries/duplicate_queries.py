"""Query of the search for duplicates: which files and models have the same digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, Text, func, null, select, type_coerce, union_all

from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.execution.executor import read
from model_catalog.execution.prepared_statement import Row
from model_catalog.mapping.child_tables import FILES
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.statements.filters import MODELS, model_columns, own_models

DUPLICATE_COLUMNS: Final = (
    *("digest", "size_bytes", "path", "fingerprint"),
    *(*KEY_FIELDS, "local_path", "store"),
)
"""The columns of a row; `path` is None for a model whose files are not listed."""


class _DigestPage(NamedTuple):
    after: str | None
    limit: int


async def duplicate_digest_rows(
    catalog: ModelCatalog, after: str | None, limit: int
) -> Sequence[Row]:
    """
    Return the files and models of the next `limit` digests that are recorded more than once.

    Sorted by digest; `after` is the last digest of the page before. The columns are
    DUPLICATE_COLUMNS, with paths as they are stored. Files whose content was found to differ from
    the expected digest are left out.
    """
    return await executor_of(catalog).run(read(select_duplicates, _DigestPage(after, limit)))


def select_duplicates(connection: Connection, page: _DigestPage) -> Sequence[Row]:
    """Return the rows of a page of digests."""
    parts = (_files_with_digest(), _models_with_digest())
    own = (each.where(*own_models(connection)) for each in parts)
    recorded = union_all(*own).subquery("recorded")
    digest = recorded.c[0]
    repeated = select(digest).group_by(digest).having(func.count() > 1)
    if page.after is not None:
        repeated = repeated.where(digest > page.after)
    repeated = repeated.order_by(digest).limit(page.limit)
    return connection.execute(select(recorded).where(digest.in_(repeated)).order_by(digest)).all()


def _files_with_digest() -> Select[Any]:
    file = FILES.c
    return (
        select(
            file.digest,
            file.size_bytes,
            type_coerce(file.path, Text),
            file.fingerprint,
            *_of_model(),
        )
        .join(MODELS, model_columns.id == file.model_id)
        .where(
            model_columns.inventoried_at.is_not(None),
            file.digest.is_not(None),
            file.found_digest.is_(None),
        )
    )


def _models_with_digest() -> Select[Any]:
    return select(
        model_columns.digest, model_columns.size_bytes, null(), null(), *_of_model()
    ).where(
        model_columns.inventoried_at.is_(None),
        model_columns.digest.is_not(None),
        model_columns.found_digest.is_(None),
    )


def _of_model() -> tuple[Any, ...]:
    return (
        *(model_columns[name] for name in KEY_FIELDS),
        type_coerce(model_columns.local_path, Text),
        model_columns.store,
    )
