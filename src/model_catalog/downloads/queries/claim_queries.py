"""
Queries of claims: take one, renew it, and end it with the row of its download.

A claim is the right of one process to download or to evict a model. It is taken, renewed and ended
by short transactions. Between them its holder has no lock, no connection and no transaction, so it
also works behind a connection pooler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Row

from model_catalog.connection.database_info import host_of
from model_catalog.domain.file_record import FileState
from model_catalog.domain.key_validation import ALL_HOSTS
from model_catalog.downloads.states import Holder
from model_catalog.errors import ClaimLostError
from model_catalog.execution.observation.changed_rows import changes_no_model
from model_catalog.mapping.child_tables import CLAIMS, DOWNLOADS
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.lookup import LookupKey, find_one
from model_catalog.repository.statements.database_time import is_valid, now_ms
from model_catalog.repository.statements.filters import model_columns, of_host
from model_catalog.repository.statements.models import insert_into

C: Final = CLAIMS.c
D: Final = DOWNLOADS.c

CHANNEL: Final = "model_catalog_downloads"
"""The channel of PostgreSQL on which the end of a claim is announced, with its token."""

HISTORY_LIMIT: Final = 1000
"""The number of ended downloads that are kept."""

# Without IN, whose list cannot be used with the rows of an executemany.
_IS_ACTIVE: Final = or_(D.state == "queued", D.state == "running")


class Purpose(StrEnum):
    """What a claim is for."""

    DOWNLOAD = "download"
    EVICT = "evict"


class ClaimedName(NamedTuple):
    """The name under which a model is asked for, on one host or for a disk of all hosts."""

    key: LookupKey
    """As the caller has given it; None as version is `""`."""
    is_shared: bool = False
    """Whether all hosts share the disk, so that one of them downloads for all."""

    def host_on(self, connection: Connection) -> str:
        """Return the host of its claims and downloads."""
        return ALL_HOSTS if self.is_shared else host_of(connection)


class ClaimRequest(NamedTuple):
    """A claim to take."""

    name: ClaimedName
    purpose: Purpose
    holder: Holder
    duration_ms: int
    known_bad: tuple[int, str] | None = None
    """The id and the path of the recorded model if its files were found to be absent."""
    seen_id: int | None = None
    """The newest ended download of the name that the caller knows of; None if it does not count."""
    is_queued: bool = False
    """Whether the download waits for a slot before it runs."""


class ClaimOutcome(NamedTuple):
    """The result of a request: the recorded model, or whether the claim was taken."""

    model: Model | None
    is_taken: bool
    other: Holder | None = None
    """The holder of the claim that stands in the way. None if the status is to be read again."""


@changes_no_model
def take_claim(connection: Connection, request: ClaimRequest) -> ClaimOutcome:
    """
    Take the claim of a model to download, unless it is recorded, or another holder has the claim.

    A claim that has expired is taken over, and its download is recorded as failed. The claim of an
    eviction stands in the way of all versions, because the caller may not name the version. The
    rows of the reference are locked until the end, so that no eviction of them begins meanwhile.
    """
    key = request.name.key
    lock_versions(connection, key, is_shared=request.name.is_shared)
    model = find_one(connection, key)
    if model is not None and is_usable(model) and request.known_bad != (model.id, model.local_path):
        return ClaimOutcome(model, is_taken=False)
    in_the_way = or_(C.version == (key.version or ""), C.purpose == Purpose.EVICT)
    other = insert_claim(connection, request, in_the_way)
    if other is not None:
        return ClaimOutcome(None, is_taken=False, other=other)
    if _has_ended_since(connection, request):
        connection.execute(delete(CLAIMS).where(C.token == request.holder.token))
        return ClaimOutcome(None, is_taken=False)
    _begin_download(connection, request)
    return ClaimOutcome(None, is_taken=True)


def _has_ended_since(connection: Connection, request: ClaimRequest) -> bool:
    """Whether a download has ended that the caller has not counted yet."""
    if request.seen_id is None:
        return False
    is_of_name = _is_of(connection, request.name)
    ended = select(D.id).where(is_of_name, ~_IS_ACTIVE, D.id > request.seen_id)
    return connection.scalar(ended.limit(1)) is not None


def _is_of(connection: Connection, name: ClaimedName) -> ColumnElement[bool]:
    key = name.key
    return and_(
        D.host == name.host_on(connection),
        D.provider == key.provider,
        D.reference == key.reference,
        D.version == (key.version or ""),
    )


def is_usable(model: Model) -> bool:
    """Return whether the files of a model are there, as last checked."""
    return model.state in {FileState.UNCHECKED, FileState.PRESENT}


def lock_versions(connection: Connection, key: LookupKey, *, is_shared: bool = False) -> None:
    """
    Lock the rows of all versions of a reference until the transaction ends, on PostgreSQL.

    With `is_shared` these are the rows of all hosts. A host that downloads to a shared disk may
    have no row yet, and then shares only this lock with the host that deletes.
    """
    if connection.dialect.name == "sqlite":
        # A write transaction is alone.
        return
    rows = select(model_columns.id).where(
        model_columns.provider == key.provider, model_columns.reference == key.reference
    )
    if not is_shared:
        rows = rows.where(of_host(connection))
    connection.execute(rows.order_by(model_columns.id).with_for_update())


def insert_claim(
    connection: Connection, request: ClaimRequest, in_the_way: ColumnElement[bool]
) -> Holder | None:
    """
    Insert a claim; return the holder of a valid claim that stands in the way, or None.

    Expired claims that stand in the way are deleted, so their holders cannot write any more.
    """
    key, dialect = request.name.key, connection.dialect.name
    now = now_ms(dialect)
    of_reference = claims_of(connection, key)
    blocking = delete(CLAIMS).where(of_reference, in_the_way, ~is_valid(CLAIMS, now))
    connection.execute(blocking)
    concerned = claims_of(connection, key, is_shared=request.name.is_shared) & in_the_way
    if (other := _find_holder(connection, concerned & is_valid(CLAIMS, now))) is not None:
        return other
    insert = insert_into(CLAIMS, dialect).values(
        host=request.name.host_on(connection),
        provider=key.provider,
        reference=key.reference,
        version=key.version or "",
        purpose=request.purpose,
        **request.holder.columns,
        renewed_at_ms=now,
        expires_at_ms=now + request.duration_ms,
    )
    inserted = connection.scalar(insert.on_conflict_do_nothing().returning(C.token))
    if inserted is not None:
        return None
    # On PostgreSQL another transaction has inserted its claim since the statement before.
    return _find_holder(connection, of_reference & (C.version == (key.version or ""))) or Holder()


def claims_of(
    connection: Connection, key: LookupKey, *, is_shared: bool = False
) -> ColumnElement[bool]:
    """
    Return the condition of the claims of a reference that concern the catalog's host.

    These are its own, and those for a disk that all hosts share. With `is_shared` its own disk is
    that disk, so that the claims of all hosts count.
    """
    of_reference = and_(C.provider == key.provider, C.reference == key.reference)
    if is_shared:
        return of_reference
    return and_(or_(C.host == host_of(connection), C.host == ALL_HOSTS), of_reference)


def _find_holder(connection: Connection, condition: ColumnElement[bool]) -> Holder | None:
    row = connection.execute(
        select(C.token, C.holder_host, C.holder_process_id).where(condition)
    ).first()
    return None if row is None else Holder(*row)


def _begin_download(connection: Connection, request: ClaimRequest) -> None:
    """Insert the row of a download; fail that of the same name whose claim was taken over."""
    key, dialect = request.name.key, connection.dialect.name
    now = now_ms(dialect)
    connection.execute(
        update(DOWNLOADS)
        .where(_is_of(connection, request.name), _IS_ACTIVE)
        .values(state="failed", finished_at_ms=now, error=STOPPED)
    )
    connection.execute(
        insert_into(DOWNLOADS, dialect).values(
            host=request.name.host_on(connection),
            provider=key.provider,
            reference=key.reference,
            version=key.version or "",
            **request.holder.columns,
            state="queued" if request.is_queued else "running",
            queued_at_ms=now,
            started_at_ms=None if request.is_queued else now,
        )
    )


STOPPED: Final = "its process was killed, or stopped for longer than its claim lasts"
"""The error of a download whose claim has expired."""

CANCELLED: Final = "it was cancelled"
"""The error of a download whose caller was cancelled."""


@changes_no_model
def renew_claims(connection: Connection, durations_ms: Mapping[str, int]) -> set[str]:
    """
    Renew claims for the milliseconds of each token; return the tokens that are still held.

    Claims of the same duration are renewed by one statement.
    """
    held: set[str] = set()
    by_duration: dict[int, list[str]] = {}
    for token, duration_ms in durations_ms.items():
        by_duration.setdefault(duration_ms, []).append(token)
    now = now_ms(connection.dialect.name)
    for duration_ms, tokens in by_duration.items():
        statement = (
            update(CLAIMS)
            .where(C.token.in_(sorted(tokens)))
            .values(renewed_at_ms=now, expires_at_ms=now + duration_ms)
            .returning(C.token)
        )
        held.update(connection.scalars(statement))
    return held


@changes_no_model
def save_progress(connection: Connection, progress: Iterable[tuple[str, int, int | None]]) -> None:
    """
    Record how many bytes of running downloads are done: tokens, done bytes, and total bytes.

    A download whose claim was taken over is not running.
    """
    rows = [
        {"of_token": token, "done": done_bytes, "total": total_bytes}
        for token, done_bytes, total_bytes in sorted(progress)
    ]
    if rows:
        statement = update(DOWNLOADS).where(D.token == bindparam("of_token"), _IS_ACTIVE)
        connection.execute(
            statement.values(done_bytes=bindparam("done"), total_bytes=bindparam("total")), rows
        )


@changes_no_model
def start_download(connection: Connection, token: str) -> None:
    """Record that a queued download runs. Raises ClaimLostError."""
    started = connection.scalar(
        update(DOWNLOADS)
        .where(D.token == token, D.state == "queued", _holds_claim(token))
        .values(state="running", started_at_ms=now_ms(connection.dialect.name))
        .returning(D.id)
    )
    if started is None:
        raise ClaimLostError


def _holds_claim(token: str) -> ColumnElement[bool]:
    return select(C.token).where(C.token == token).exists()


class EndedDownload(NamedTuple):
    """How a download has ended: `error` is None if it is done."""

    token: str
    error: str | None
    done_bytes: int
    total_bytes: int | None


@changes_no_model
def end_download(connection: Connection, ended: EndedDownload) -> None:
    """
    Delete the claim of a download, and record how it has ended.

    Raises ClaimLostError if another holder took the claim over, and then writes nothing.
    """
    end_claim(connection, ended.token)
    host = connection.scalar(
        update(DOWNLOADS)
        .where(D.token == ended.token)
        .values(
            state="done" if ended.error is None else "failed",
            finished_at_ms=now_ms(connection.dialect.name),
            error=ended.error,
            done_bytes=ended.done_bytes,
            total_bytes=ended.total_bytes,
        )
        .returning(D.host)
    )
    _delete_oldest(connection, host)


def end_claim(connection: Connection, token: str) -> None:
    """Delete a claim, and wake up the processes that wait for it. Raises ClaimLostError."""
    deleted = connection.scalar(delete(CLAIMS).where(C.token == token).returning(C.token))
    if deleted is None:
        raise ClaimLostError
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(CHANNEL, token)))


def _delete_oldest(connection: Connection, host: str | None) -> None:
    """Delete the oldest downloads of a host."""
    ended = select(D.id).where(D.host == host, ~_IS_ACTIVE).order_by(D.id.desc())
    newest_to_delete = ended.offset(HISTORY_LIMIT).limit(1).scalar_subquery()
    connection.execute(
        delete(DOWNLOADS).where(D.host == host, ~_IS_ACTIVE, D.id <= newest_to_delete)
    )


class KeyStatus(NamedTuple):
    """What the database knows about the downloads under one name."""

    holder: Holder | None
    """The holder of a valid claim that stands in the way of a download."""
    downloads: Sequence[Row[tuple[int, str, str | None, int | None]]]
    """The newest downloads first: id, state, error, and the milliseconds since their end."""


def select_key_status(connection: Connection, name: ClaimedName) -> KeyStatus:
    """Return who has the claim of a name, and its last ten downloads."""
    key = name.key
    now = now_ms(connection.dialect.name)
    holder = _find_holder(
        connection,
        claims_of(connection, key, is_shared=name.is_shared)
        & or_(C.version == (key.version or ""), C.purpose == Purpose.EVICT)
        & is_valid(CLAIMS, now),
    )
    downloads = connection.execute(
        select(D.id, D.state, D.error, (now - D.finished_at_ms).label("ended_ms_ago"))
        .where(_is_of(connection, name))
        .order_by(D.id.desc())
        .limit(10)
    ).all()
    return KeyStatus(holder, downloads)


def select_state(connection: Connection, token: str) -> str | None:
    """Return the state of a download; None if it is not in the history any more."""
    return connection.scalar(select(D.state).where(D.token == token))


def failed_tokens(connection: Connection, name: ClaimedName) -> list[str]:
    """Return the tokens of the attempts to download a name that have failed."""
    is_of_name = _is_of(connection, name)
    return list(connection.scalars(select(D.token).where(is_of_name, D.state == "failed")))
