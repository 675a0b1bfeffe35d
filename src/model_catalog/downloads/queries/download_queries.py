"""Queries of the downloads: those that run, and those that have ended."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, case, or_, select

from model_catalog.connection.database_info import host_of
from model_catalog.domain.key_validation import ALL_HOSTS
from model_catalog.domain.model_ref import ModelRef
from model_catalog.downloads.queries.claim_queries import STOPPED, D
from model_catalog.downloads.states import Download, DownloadState
from model_catalog.mapping.child_tables import CLAIMS
from model_catalog.repository.operations.lookup import LookupKey
from model_catalog.repository.statements.database_time import is_valid, now_ms, to_datetime

ACTIVE: Final = tuple(state for state in DownloadState if state.is_active)


class DownloadFilter(NamedTuple):
    """Which downloads to select; None selects all."""

    key: LookupKey | None = None
    states: tuple[DownloadState, ...] | None = None
    limit: int | None = None


def select_downloads(connection: Connection, wanted: DownloadFilter) -> list[Download]:
    """
    Return the downloads of the catalog's host, and those for a disk of all hosts, newest first.

    One whose claim has expired has failed.
    """
    now = now_ms(connection.dialect.name)
    is_alive = (
        select(CLAIMS.c.token).where(CLAIMS.c.token == D.token, is_valid(CLAIMS, now)).exists()
    )
    state = case((D.state.in_(ACTIVE) & ~is_alive, DownloadState.FAILED), else_=D.state)
    error = case((D.state.in_(ACTIVE) & ~is_alive, STOPPED), else_=D.error)
    statement = select(
        D.id,
        D.provider,
        D.reference,
        D.version,
        state.label("state"),
        D.done_bytes,
        D.total_bytes,
        D.queued_at_ms,
        D.started_at_ms,
        D.finished_at_ms,
        D.holder_host.label("host"),
        D.holder_process_id.label("process_id"),
        error.label("error"),
    ).where(or_(D.host == host_of(connection), D.host == ALL_HOSTS))
    statement = statement.order_by(D.id.desc())
    if wanted.key is not None:
        statement = statement.where(
            D.provider == wanted.key.provider,
            D.reference == wanted.key.reference,
            D.version == (wanted.key.version or ""),
        )
    if wanted.states is not None:
        statement = statement.where(state.in_(wanted.states))
    if wanted.limit is not None:
        statement = statement.limit(wanted.limit)
    return [_to_download(row._asdict()) for row in connection.execute(statement)]


def _to_download(row: dict[str, Any]) -> Download:
    name = ModelRef(row.pop("provider"), row.pop("reference"), row.pop("version") or None)
    times = {
        f"{name}_at": None if milliseconds is None else to_datetime(milliseconds)
        for name in ("queued", "started", "finished")
        for milliseconds in [row.pop(f"{name}_at_ms")]
    }
    state = DownloadState(row.pop("state"))
    values: dict[str, Any] = {**row, **times}
    return Download(ref=name, state=state, **values)
