"""The command `ps`: running downloads, and models in use."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from model_catalog.cli.catalog_access import short_ref, use_existing_catalog
from model_catalog.cli.exit_codes import DONE
from model_catalog.cli.output import (
    human_size,
    human_time,
    pluralize,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.domain.ndjson import iso_time
from model_catalog.downloads import (
    Download,
    DownloadState,
    ModelUser,
    list_downloads,
    list_users,
)
from model_catalog.repository.model_catalog import ModelCatalog

_ACTIVE: Final = (DownloadState.QUEUED, DownloadState.RUNNING)


@dataclass(frozen=True, slots=True)
class _Processes:
    downloads: Sequence[Download] = ()
    users: Sequence[ModelUser] = ()


async def ps(options: Namespace) -> int:
    """Print running downloads and models in use."""

    async def read(catalog: ModelCatalog) -> _Processes:
        downloads = await list_downloads(catalog, states=None if options.all else _ACTIVE)
        return _Processes(downloads, await list_users(catalog))

    found = await use_existing_catalog(options, read, _Processes())
    rows = [*map(_download_row, found.downloads), *map(_user_row, found.users)]
    if options.format == "json":
        print_json(rows)
    elif options.format == "tsv":
        print_tsv(_FIELDS, [[row[name] for name in _FIELDS] for row in rows])
    elif options.format == "quiet":
        for row in rows:
            print_line(row["model"])
    else:
        _print_processes(found)
    return DONE


_FIELDS: Final = (
    *("state", "model", "host", "process_id", "done_bytes", "total_bytes"),
    *("started_at", "finished_at", "error"),
)


def _download_row(download: Download) -> dict[str, Any]:
    values = (
        str(download.state),
        str(download.ref),
        download.host,
        download.process_id,
        download.done_bytes,
        download.total_bytes,
        _time(download.started_at or download.queued_at),
        _time(download.finished_at),
        download.error,
    )
    return dict(zip(_FIELDS, values, strict=True))


def _user_row(user: ModelUser) -> dict[str, Any]:
    started_at = _time(user.started_at)
    values = ("in use", str(user.ref), user.host, user.process_id, None, None, started_at)
    return dict.fromkeys(_FIELDS) | dict(zip(_FIELDS, values, strict=False))


def _time(time: datetime | None) -> str | None:
    return None if time is None else iso_time(time.replace(microsecond=0))


def _print_processes(found: _Processes) -> None:
    cells = [
        [
            str(download.state),
            short_ref(download.ref),
            _progress(download),
            human_time(download.started_at or download.queued_at),
            f"{download.host}:{download.process_id}",
            download.error or "",
        ]
        for download in found.downloads
    ]
    cells += [
        [
            "in use",
            short_ref(user.ref),
            "",
            human_time(user.started_at),
            f"{user.host}:{user.process_id}",
            "",
        ]
        for user in found.users
    ]
    names = ["STATE", "MODEL", "PROGRESS", "SINCE", "PROCESS", "ERROR"]
    if not any(row[-1] for row in cells):
        names.pop()
        cells = [row[:-1] for row in cells]
    if cells:
        print_table(names, cells, cut=["ERROR", "MODEL"])
    running = [each for each in found.downloads if each.state.is_active]
    used = {user.ref for user in found.users}
    ended_count = len(found.downloads) - len(running)
    ended = f", {ended_count:,} ended" if ended_count else ""
    downloads = f"{pluralize(len(running), 'running download')}{ended}"
    print_notice(f"{downloads}, {pluralize(len(used), 'model')} in use")


def _progress(download: Download) -> str:
    done = human_size(download.done_bytes)
    if not download.total_bytes:
        return done
    fraction = min(download.done_bytes / download.total_bytes, 1.0)
    return f"{fraction:.0%} of {human_size(download.total_bytes)}"
