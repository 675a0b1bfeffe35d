"""Find the copies of models on all hosts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    select,
    tuple_,
    union,
    union_all,
)

from model_catalog.domain.file_record import FileState
from model_catalog.domain.fleet.copies import ModelCopies, ModelCopy, best_first
from model_catalog.domain.model_ref import ModelRef
from model_catalog.execution.executor import Operation, lookup, read
from model_catalog.execution.prepared_statement import PreparedStatement, Row, raw_column
from model_catalog.mapping.child_tables import ALIASES, HOSTS
from model_catalog.mapping.column_types import decode_path, decode_state, decode_timestamp
from model_catalog.repository.operations.fleet.hosts import heartbeat_age_s, is_lost, state_of
from model_catalog.repository.operations.lookup import LookupKey
from model_catalog.repository.statements.database_time import now_ms
from model_catalog.repository.statements.filters import (
    HAS_HOST,
    HAS_NO_HOST,
    MODELS,
    model_columns,
)

_Key: TypeAlias = tuple[str, str, str]
"""A provider, a reference and a version."""
_STEP: Final = 200
"""The number of models whose copies are counted at once."""
_ONE: Final = literal_column("1", BigInteger)
_ZERO: Final = literal_column("0", BigInteger)
_KEY: Final = (model_columns.provider, model_columns.reference, model_columns.version)


class CopyQuery(NamedTuple):
    """A key whose copies are wanted; a version of None is all versions."""

    key: LookupKey
    lost_after_s: float


class CountQuery(NamedTuple):
    """
    Which versions of models are wanted, by the number of their usable copies.

    `after` is the last ref of the page before.
    """

    lost_after_s: float
    minimum: int
    maximum: int | None
    limit: int
    after: ModelRef | None


def find_copies(query: CopyQuery) -> Operation[CopyQuery, list[ModelCopy]]:
    """Return the operation that finds all copies of a model."""
    return lookup(select_copies, query, select_copies_of_each)


def select_copies(connection: Connection, query: CopyQuery) -> list[ModelCopy]:
    """
    Return the copies that a key means on each host, the best one first.

    On each host a version is an exact version, or an alias if the host has no such version.
    """
    version = query.key.version
    statement = _select_by_key(connection.dialect.name, every_version=version is None)
    values = query.key.parameters
    if version is None:
        del values["version"]
    copies = to_copies(statement.fetch_all(connection, values), query.lost_after_s)
    exact = {copy.host for copy in copies if copy.ref.version == version}
    return best_first(
        [copy for copy in copies if copy.host not in exact or copy.ref.version == version]
    )


def select_copies_of_each(
    connection: Connection, queries: Sequence[CopyQuery]
) -> list[list[ModelCopy]]:
    """Return the copies of each key: a statement for each, without a transaction."""
    return [select_copies(connection, query) for query in queries]


@cache
def _select_by_key(dialect: str, *, every_version: bool) -> PreparedStatement:
    provider, reference, version = (bindparam(column.name, type_=column.type) for column in _KEY)
    where = [model_columns.provider == provider, model_columns.reference == reference]
    if not every_version:
        # Of every version of the reference: an alias is then found by the id of its model.
        aliased = select(ALIASES.c.model_id).where(
            ALIASES.c.model_id == model_columns.id, ALIASES.c.alias == version
        )
        where.append((model_columns.version == version) | aliased.exists())
    # Each part has an index of its own: one SELECT for both would use neither.
    parts = [_select_rows(dialect).where(*where, part) for part in (HAS_HOST, HAS_NO_HOST)]
    return PreparedStatement(union_all(*parts))


def _ids_where(condition: ColumnElement[bool]) -> Select[Any]:
    """Select the ids of the models of all hosts that meet a condition on the key."""
    # Each part has an index of its own: one statement for both would use neither.
    parts = [select(model_columns.id).where(condition, part) for part in (HAS_HOST, HAS_NO_HOST)]
    return select(union_all(*parts).subquery().c[0])


def find_by_count(query: CountQuery) -> Operation[CountQuery, list[ModelCopies]]:
    """Return the operation that finds the models with some number of usable copies."""
    return read(select_by_count, query, may_lag=True)


def select_by_count(connection: Connection, query: CountQuery) -> list[ModelCopies]:
    """Return a page of versions of models with all their copies, sorted by their names."""
    dialect = connection.dialect.name
    keys: list[_Key] = []
    ref = query.after
    after = None if ref is None else (ref.provider, ref.reference, ref.version or "")
    # A step reads the copies of some hundred models, so that a page does not read those of all.
    is_last = False
    while len(keys) < query.limit and not is_last:
        row = connection.execute(_select_end_of_step(after)).one_or_none()
        end: _Key | None = None if row is None else (row[0], row[1], row[2])
        keys += map(_to_key, connection.execute(_select_keys(dialect, query, after, end)))
        after, is_last = end, end is None
    keys = keys[: query.limit]
    if not keys:
        return []
    with_key = _ids_where(tuple_(*_KEY).in_(keys))
    rows = connection.execute(
        _select_rows(dialect).where(model_columns.id.in_(with_key)).order_by(*_KEY)
    )
    copies = to_copies(rows.all(), query.lost_after_s)
    return [
        ModelCopies(ref, tuple(best_first(list(group))))
        for ref, group in groupby(copies, key=lambda copy: copy.ref)
    ]


def _to_key(row: Any) -> _Key:
    return row[0], row[1], row[2]


def _select_end_of_step(after: _Key | None) -> Select[Any, Any, Any]:
    """Select the last key of the next step; no row if fewer keys are left."""
    parts = [
        select(*_KEY)
        .where(part, *_between(after, None))
        .group_by(*_KEY)
        .order_by(*_KEY)
        .limit(_STEP)
        .subquery()
        for part in (HAS_HOST, HAS_NO_HOST)
    ]
    found = union(*(select(part) for part in parts)).subquery()
    key = (found.c.provider, found.c.reference, found.c.version)
    return select(*key).order_by(*key).offset(_STEP - 1).limit(1)


def _select_keys(
    dialect: str, query: CountQuery, after: _Key | None, end: _Key | None
) -> Select[Any, Any, Any]:
    """Select the keys of a step with the wanted number of usable copies, in their order."""
    parts = [
        select(*_KEY, _is_usable(dialect, query.lost_after_s).label("is_usable"))
        .select_from(_with_hosts())
        .where(part, *_between(after, end))
        for part in (HAS_HOST, HAS_NO_HOST)
    ]
    copies = union_all(*parts).subquery()
    key = (copies.c.provider, copies.c.reference, copies.c.version)
    count = func.sum(copies.c.is_usable)
    bounds = [count >= query.minimum]
    if query.maximum is not None:
        bounds.append(count <= query.maximum)
    return select(*key).group_by(*key).having(and_(*bounds)).order_by(*key)


def _between(after: _Key | None, end: _Key | None) -> list[ColumnElement[bool]]:
    """Return the conditions that a key comes after a key, and that it comes no later than one."""
    types = [column.type for column in _KEY]
    bounds: list[ColumnElement[bool]] = []
    if after is not None:
        bounds.append(tuple_(*_KEY) > tuple_(*after, types=types))
    if end is not None:
        bounds.append(tuple_(*_KEY) <= tuple_(*end, types=types))
    return bounds


def _is_usable(dialect: str, lost_after_s: float) -> ColumnElement[int]:
    """Return 1 for a copy that `ModelCopy.is_usable` is true for, otherwise 0."""
    is_usable = and_(
        model_columns.incomplete_reason.is_(None),
        model_columns.found_digest.is_(None),
        model_columns.state.in_([state for state in FileState if state.is_as_recorded]),
        ~is_lost(dialect, lost_after_s),
    )
    return case((is_usable, _ONE), else_=_ZERO)


def _select_rows(dialect: str) -> Select[Any]:
    """Select what `to_copies` converts, as raw values."""
    columns = (
        *_KEY,
        model_columns.host,
        model_columns.local_path,
        model_columns.size_bytes,
        model_columns.state,
        model_columns.incomplete_reason,
        model_columns.found_digest,
        model_columns.pinned_at,
        model_columns.downloaded_at,
        model_columns.last_used_at,
        HOSTS.c.name,
        HOSTS.c.heartbeat_at_ms,
        now_ms(dialect),
    )
    named = (raw_column(column).label(f"_{index}") for index, column in enumerate(columns))
    return select(*named).select_from(_with_hosts())


def _with_hosts() -> Any:
    return MODELS.outerjoin(HOSTS, HOSTS.c.name == model_columns.host)


def to_copies(rows: Iterable[Row], lost_after_s: float) -> list[ModelCopy]:
    """Convert rows of `_select_rows` to copies."""
    # To make and to validate a ref takes longer than everything else in a row.
    refs: dict[tuple[str, str, str], ModelRef] = {}
    copies: list[ModelCopy] = []
    for provider, reference, version, host, path, size, state, *facts in rows:
        reason, found_digest, pinned, downloaded, used, registered, heartbeat_at_ms, now = facts
        key = (provider, reference, version)
        if key not in refs:
            refs[key] = ModelRef(*key)
        age_s = heartbeat_age_s(heartbeat_at_ms, now)
        copies.append(
            ModelCopy(
                ref=refs[key],
                host=host,
                host_state=state_of(registered, age_s, lost_after_s),
                local_path=decode_path(path) or "",
                size_bytes=size,
                state=decode_state(state),
                is_whole=reason is None and found_digest is None,
                is_pinned=pinned is not None,
                downloaded_at=None if downloaded is None else decode_timestamp(downloaded),
                last_used_at=None if used is None else decode_timestamp(used),
            )
        )
    return copies
