"""Queries for a disk that all hosts share: the records that other hosts have of its files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    literal,
    null,
    or_,
    select,
    union_all,
)

from model_catalog.connection.database_info import host_of
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.downloads.queries.batches import in_batches
from model_catalog.downloads.queries.claim_queries import Purpose
from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.mapping.child_tables import ALIASES, CLAIMS, FILES, TAGS
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.lookup import LookupKey, load_model
from model_catalog.repository.operations.model_files import FILE_COLUMNS
from model_catalog.repository.statements.database_time import is_valid, now_ms
from model_catalog.repository.statements.filters import HAS_HOST, HAS_NO_HOST, MODELS, model_columns
from model_catalog.repository.statements.models import insert_into

_MAX_COPIES: Final = 100
"""The number of records of other hosts that a call looks at."""

# What another host has done with its record, and what is true of its machine only.
_NOT_COPIED: Final = {
    *("id", "host", "download_count", "use_count", "last_used_at", "pinned_at", "pin_reason"),
    "mount_point",
}
_COPIED: Final = [column.key for column in model_columns if column.key not in _NOT_COPIED]


class RecordQuery(NamedTuple):
    """The name of a model whose records on other hosts are wanted."""

    key: LookupKey
    is_whole: bool
    """Whether all versions of the reference are wanted, whatever version the key has."""


class RecordedCopy(NamedTuple):
    """The record that another host has of a model."""

    id: int
    host: str
    provider: str
    reference: str
    version: str
    local_path: str


def select_records(connection: Connection, query: RecordQuery) -> list[RecordedCopy]:
    """
    Return the records of other hosts that a key may mean, the ones to look at first first.

    An exact version comes first, and then the one downloaded last.
    """
    key = query.key
    named = [
        model_columns.host != host_of(connection),
        model_columns.provider == key.provider,
        model_columns.reference == key.reference,
        _is_usable(),
    ]
    is_exact: ColumnElement[bool] = model_columns.version == key.version
    if key.version is not None and not query.is_whole:
        aliased = select(ALIASES.c.model_id).where(
            ALIASES.c.model_id == model_columns.id, ALIASES.c.alias == key.version
        )
        named.append(is_exact | aliased.exists())
    columns = [model_columns[name] for name in RecordedCopy._fields]
    found = union_all(
        *(
            select(*columns, model_columns.downloaded_at).where(*named, part)
            for part in (HAS_HOST, HAS_NO_HOST)
        )
    ).subquery()
    order = (found.c.downloaded_at.desc().nulls_last(), found.c.id.desc())
    rows = connection.execute(
        select(*(found.c[name] for name in RecordedCopy._fields)).order_by(*order)
    )
    copies = sorted(
        (RecordedCopy(*row) for row in rows), key=lambda each: each.version != key.version
    )
    return copies[:_MAX_COPIES]


def _rows_of_copy(_connection: Connection, copy: RecordedCopy) -> ChangedRows:
    return ChangedRows(keys=[(copy.provider, copy.reference, copy.version)])


@changes(_rows_of_copy, "tags", "aliases", "files")
def copy_record(connection: Connection, copy: RecordedCopy) -> Model | None:
    """
    Record a model for the catalog's host as another host has recorded it, and return it.

    Its files, tags and aliases are copied, and its uses and its pin are not. Returns None if the
    other record has changed since it was read, or if a host deletes the files.
    """
    dialect = connection.dialect.name
    deleting = select(CLAIMS.c.token).where(
        CLAIMS.c.provider == copy.provider,
        CLAIMS.c.reference == copy.reference,
        CLAIMS.c.purpose == Purpose.EVICT,
        is_valid(CLAIMS, now_ms(dialect)),
    )
    source = and_(
        *(model_columns[name] == getattr(copy, name) for name in RecordedCopy._fields), _is_usable()
    )
    # A deletion changes the record before it looks at those of other hosts. So it finds this copy,
    # or this statement waits for it and finds no record.
    locked = select(model_columns.id).where(source).with_for_update(read=True)
    if connection.scalar(locked) is None or connection.scalar(deleting.limit(1)) is not None:
        return None
    host = literal(host_of(connection), model_columns.host.type)
    insert = insert_into(MODELS, dialect).from_select(
        ["host", *_COPIED],
        select(host, *(model_columns[name] for name in _COPIED)).where(source),
        include_defaults=False,
    )
    changed = {name: insert.excluded[name] for name in _COPIED if name not in KEY_FIELDS}
    upsert = insert.on_conflict_do_update(index_elements=["host", *KEY_FIELDS], set_=changed)
    model_id = connection.execute(upsert.returning(model_columns.id)).scalar_one()
    _copy_children(connection, copy, model_id)
    return load_model(connection, model_id)


def _copy_children(connection: Connection, copy: RecordedCopy, model_id: int) -> None:
    dialect = connection.dialect.name
    new_id = literal(model_id, model_columns.id.type)
    connection.execute(delete(FILES).where(FILES.c.model_id == model_id))
    # Another host gives the disk another number, which is a part of the file's id.
    files = [null() if column.key == "file_id" else column for column in FILE_COLUMNS]
    connection.execute(
        insert_into(FILES, dialect).from_select(
            ["model_id", *(column.key for column in FILE_COLUMNS)],
            select(new_id, *files).where(FILES.c.model_id == copy.id),
        )
    )
    connection.execute(
        insert_into(TAGS, dialect)
        .from_select(
            ["model_id", "folded", "tag"],
            select(new_id, TAGS.c.folded, TAGS.c.tag).where(TAGS.c.model_id == copy.id),
        )
        .on_conflict_do_nothing()
    )
    names = ("provider", "reference", "alias", "store")
    host = literal(host_of(connection), model_columns.host.type)
    connection.execute(
        insert_into(ALIASES, dialect)
        .from_select(
            ["host", "model_id", *names],
            select(host, new_id, *(ALIASES.c[name] for name in names)).where(
                ALIASES.c.model_id == copy.id
            ),
        )
        .on_conflict_do_nothing()
    )


def _is_usable() -> ColumnElement[bool]:
    states = (FileState.UNCHECKED, FileState.PRESENT)
    return or_(*(model_columns.state == state for state in states))


class OtherSharers(NamedTuple):
    """The models of other hosts that may need the files of models of the catalog's host."""

    names: dict[int, str]
    """The name of each model with its host, by id."""
    at_paths: Sequence[tuple[int, str]]
    """The id and the path of those that have one of the paths."""


NO_SHARERS: Final = OtherSharers({}, ())


def select_other_sharers(connection: Connection, paths: Collection[str]) -> OtherSharers:
    """
    Return the models of other hosts at some paths.

    No index has the paths, so this reads the whole table, in a few statements.
    """
    names: dict[int, str] = {}
    at_paths: list[tuple[int, str]] = []
    others = _select_others(connection).add_columns(model_columns.local_path)
    for batch in in_batches(sorted(paths)):
        for *named, path in connection.execute(others.where(model_columns.local_path.in_(batch))):
            names[named[0]] = _name(*named)
            at_paths.append((named[0], path))
    return OtherSharers(names, at_paths)


def select_names_of_others(connection: Connection, ids: Collection[int]) -> dict[int, str]:
    """Return the names of models of other hosts, with their hosts, by id."""
    others = _select_others(connection)
    return {
        row[0]: _name(*row)
        for batch in in_batches(sorted(ids))
        for row in connection.execute(others.where(model_columns.id.in_(batch)))
    }


def _select_others(connection: Connection) -> Select[Any]:
    columns = (model_columns[name] for name in ("id", "host", *KEY_FIELDS))
    return select(*columns).where(model_columns.host != host_of(connection))


def _name(_id: int, host: str, provider: str, reference: str, version: str) -> str:
    name = ModelRef(provider, reference, version)
    return f"{name} of host {host}" if host else f"{name} of no host"
