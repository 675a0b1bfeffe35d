"""
Which model a key means, as SQL. This module is the only place that states the rule.

A key is a provider, a reference and perhaps a version, on the catalog's host:

- With a version it means the model of exactly this version. If there is none, it means the model
  that the alias of this name points at.
- Without a version it means the model downloaded last. A model without `downloaded_at` comes after
  all others. Of models downloaded in the same second it means the one with the greatest id.

The rule has four forms: one key, many keys in arrays (PostgreSQL), and a fast path for one key and
for many (SQLite). A fast path covers the usual case. If it does not find exactly one row for a key,
the form for one key has to be asked.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Select,
    TableValuedAlias,
    case,
    func,
    literal_column,
    select,
)

from model_catalog.mapping.child_tables import ALIASES
from model_catalog.repository.statements.filters import (
    MODELS,
    model_columns,
    of_host,
    own_models,
)

_MAX_NAMES: Final = 1_000
"""More names are not compared one by one."""


def select_model_id(host: Any, provider: Any, reference: Any, version: Any) -> Select[int]:
    """Select the id of the model that one key means on a host; no row if there is none."""
    ids = select(model_columns.id).where(
        model_columns.host == host,
        model_columns.provider == provider,
        model_columns.reference == reference,
    )
    if version is None:
        return ids.order_by(
            model_columns.downloaded_at.desc().nulls_last(), model_columns.id.desc()
        ).limit(1)
    exact = model_columns.version == version
    aliased = _aliased_id(host, provider, reference, version)
    by_alias = model_columns.id == aliased.scalar_subquery()
    return ids.where(exact | by_alias).order_by(exact.desc()).limit(1)


def select_model_id_of_each(keys: TableValuedAlias, host: Any) -> Select[int]:
    """Select the model that a row of `keys` means on a host: a subquery for a LATERAL join."""
    models, key = MODELS.alias("candidates").c, keys.c
    exact = models.version == key.version
    aliased = _aliased_id(host, key.provider, key.reference, key.version).correlate(keys)
    return (
        select(models.id)
        .where(
            models.host == host,
            models.provider == key.provider,
            models.reference == key.reference,
            key.version.is_(None) | exact | (models.id == aliased.scalar_subquery()),
        )
        # Without a version no row is exact, so the newest is first.
        .order_by(
            func.coalesce(exact, False).desc(),
            models.downloaded_at.desc().nulls_last(),
            models.id.desc(),
        )
        .limit(1)
        .correlate(keys)
    )


def only_candidate(
    models: Select[Any], host: Any, provider: Any, reference: Any, version: Any
) -> Select[Any]:
    """
    Narrow a SELECT of models to the rows of the fast path.

    If it finds exactly one row, the key means that model: it is the exact version, or the only
    model of a reference. If it finds none or two, use `select_model_id`.
    """
    named = models.where(
        model_columns.host == host,
        model_columns.provider == provider,
        model_columns.reference == reference,
    )
    return named.limit(2) if version is None else named.where(model_columns.version == version)


def only_candidates(
    models: Select[Any], host: Any, keys: TableValuedAlias, *, newest: bool
) -> Select[Any]:
    """
    Narrow a SELECT of models to the fast path of many keys, on SQLite.

    Each row of `keys` is a JSON array of a reference, a provider and a version. `newest` is for
    keys without a version. If the SELECT has a row of a key, the key means that model. If it has
    none, use `select_model_id`.
    """
    candidates = MODELS.alias("candidates").c
    reference, provider, version = (
        func.json_extract(keys.c.value, literal_column(f"'$[{place}]'")) for place in range(3)
    )
    ids = select(candidates.id).where(
        candidates.host == host,
        candidates.provider == provider,
        candidates.reference == reference,
    )
    if newest:
        # NULL if there are several, so that they cost no more than one.
        some = ids.limit(2).correlate(keys).subquery()
        ids = select(case((func.count() == 1, func.max(some.c.id))))
    else:
        ids = ids.where(candidates.version == version)
    only_id = ids.correlate(keys).scalar_subquery()
    return models.select_from(keys.join(MODELS, model_columns.id == only_id))


def _aliased_id(host: Any, provider: Any, reference: Any, version: Any) -> Select[int]:
    return select(ALIASES.c.model_id).where(
        ALIASES.c.host == host,
        ALIASES.c.provider == provider,
        ALIASES.c.reference == reference,
        ALIASES.c.alias == version,
    )


def select_several_versions(
    connection: Connection, names: Collection[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Return the names that have several versions, and perhaps names that were not asked for."""
    if not names:
        return set()
    key = (model_columns.provider, model_columns.reference)
    versions = select(*key).group_by(*key).having(func.count() > 1)
    if len(names) > _MAX_NAMES:
        versions = versions.where(*own_models(connection))
    else:
        # Not pairs: SQLite would read the keys of all models of the host.
        wanted = (
            column.in_(sorted(set(values)))
            for column, values in zip(key, zip(*names, strict=True), strict=False)
        )
        versions = versions.where(of_host(connection), *wanted)
    return {(provider, reference) for provider, reference in connection.execute(versions)}
