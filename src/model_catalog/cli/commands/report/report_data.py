"""The facts that a report shows: models with the reasons to keep them, duplicates, problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from model_catalog.domain.fields import ModelRow, Sort
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.downloads import ModelUser, list_users
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.operations.statistics import CatalogStats
from model_catalog.upkeep.duplicates import DuplicateSet, find_duplicates


@dataclass(frozen=True, slots=True)
class ReportedModel:
    """A model of a report."""

    row: ModelRow
    keepers: tuple[str, ...]
    """The reasons why no eviction deletes it: a pin, a process that uses it, its owner."""
    is_unused: bool
    """Whether it was not used for as long as the report asks for."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report shows."""

    database: str
    created_at: datetime
    unused_days: int
    stats: CatalogStats
    models: tuple[ReportedModel, ...]
    """The largest models, largest first."""
    duplicates: tuple[DuplicateSet, ...]

    @property
    def incomplete(self) -> list[ReportedModel]:
        """The models without a file that loading needs."""
        return [each for each in self.models if each.row.incomplete_reason]

    @property
    def not_as_recorded(self) -> list[ReportedModel]:
        """The models whose files a check has not found as they were recorded."""
        return [
            each
            for each in self.models
            if not FileState(each.row.state).is_as_recorded or each.row.found_digest
        ]

    @property
    def unused(self) -> list[ReportedModel]:
        """The models that were not used for `unused_days`."""
        return [each for each in self.models if each.is_unused]


async def read_report_data(
    catalog: ModelCatalog, database: str, *, max_models: int, unused_days: int
) -> ReportData:
    """
    Read the facts of a report about the `max_models` largest models.

    Reads the status of files that may be duplicates, in a thread. Writes nothing.
    """
    now = datetime.now(UTC)
    rows = await catalog.list_rows(sort=Sort.SIZE_BYTES, limit=max_models)
    users: dict[ModelRef, list[ModelUser]] = {}
    for user in await list_users(catalog):
        users.setdefault(user.ref, []).append(user)
    oldest_use = now - timedelta(days=unused_days)
    return ReportData(
        database,
        now,
        unused_days,
        await catalog.stats(),
        tuple(_report_model(row, users, oldest_use) for row in rows),
        await find_duplicates(catalog),
    )


def _report_model(
    row: ModelRow, users: Mapping[ModelRef, Sequence[ModelUser]], oldest_use: datetime
) -> ReportedModel:
    keepers = []
    if row.pinned_at is not None:
        keepers.append(f"pinned: {row.pin_reason}" if row.pin_reason else "pinned")
    keepers += [
        f"used by process {user.process_id} on {user.host}" for user in users.get(row.ref, ())
    ]
    if row.managed_root is None:
        keepers.append("recorded by you" if row.store is None else f"belongs to {row.store}")
    last_time = row.last_used_at or row.downloaded_at
    return ReportedModel(row, tuple(keepers), last_time is None or last_time < oldest_use)
