"""What a check reads and writes of very many models: few columns, as the database has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar, Unpack

from sqlalchemy import Connection, Text, bindparam, case, func, literal, select, type_coerce

from model_catalog.domain.file_record import FileState
from model_catalog.domain.file_validation import MAX_FILES
from model_catalog.domain.model_ref import ModelRef
from model_catalog.mapping.column_types import decode_path, decode_state
from model_catalog.repository.statements.filters import (
    FILES,
    MODELS,
    Filters,
    build_where,
    model_columns,
)
from model_catalog.repository.statements.models import Records

F: Final = FILES.c

T = TypeVar("T")

Row: TypeAlias = Sequence[Any]
"""A file of a model, or a model without files: see _COLUMNS. Texts are as they are stored."""

# Without what SQLAlchemy makes of each value: of a hundred thousand rows most are as they were, and
# are compared as they come.
_COLUMNS: Final = (
    model_columns.id,
    type_coerce(model_columns.local_path, Text),
    model_columns.size_bytes,
    type_coerce(model_columns.state, Text),
    model_columns.state_detail,
    type_coerce(model_columns.mount_point, Text),
    model_columns.found_digest,
    type_coerce(F.path, Text),
    F.size_bytes,
    F.fingerprint,
)


@dataclass(slots=True)
class CheckedModel:
    """A model as a check needs it; `files` is empty where they are not known."""

    id: int
    local_path: str
    size_bytes: int | None
    state: FileState
    state_detail: str | None
    mount_point: str | None
    is_damaged: bool
    files: list[tuple[str, int, str | None]] = field(default_factory=list)
    """The path, the size and the fingerprint of each."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> CheckedModel:
        """The model of which these are the rows."""
        model_id, path, size_bytes, state, detail, mount, found_digest, *_ = rows[0]
        return cls(
            model_id,
            decode_path(path) or "",
            size_bytes,
            decode_state(state),
            detail,
            decode_path(mount),
            found_digest is not None,
            [(decode_path(row[7]) or "", row[8], row[9]) for row in rows if row[7] is not None],
        )


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found of a model: its new state, why, and on which disk it was seen."""

    holding: CheckedModel
    state: FileState
    detail: str | None = None
    mount_point: str | None = None

    @property
    def is_news(self) -> bool:
        """Whether it is anything but what was recorded before."""
        held = self.holding
        return (
            self.state is not held.state
            or self.detail != held.state_detail
            or self.mount_point not in (None, held.mount_point)
        )


class Holdings(Records):
    """The operations of a check."""

    async def holdings(
        self, after_id: int | None, limit: int, **filters: Unpack[Filters]
    ) -> Sequence[Row]:
        """
        The files of the models that pass the filters and have a greater id, all of each; by id.

        At most `limit` rows, but for the first model, which may have as many files as a model has.
        A model of which no files are known is one row with None for them.
        """
        listed = (F.model_id == model_columns.id) & model_columns.inventoried_at.is_not(None)
        statement = (
            select(*_COLUMNS)
            .select_from(MODELS.outerjoin(FILES, listed))
            .where(*build_where(filters, self._work.database.dialect))
            .order_by(model_columns.id)
        )
        if after_id is not None:
            statement = statement.where(model_columns.id > after_id)

        async def at_most(wanted: int) -> Sequence[Row]:
            def unit(connection: Connection) -> Sequence[Row]:
                return (connection.execute(statement.limit(wanted))).all()

            return await self._work.read(unit)

        rows = await at_most(limit + 1)
        if len(rows) > limit and rows[0][0] == rows[-1][0]:
            limit = max(limit, MAX_FILES)
            rows = await at_most(limit + 1)
        if len(rows) <= limit:
            return rows
        # The last of them may have more.
        whole = len(rows) - 1
        while whole and rows[whole - 1][0] == rows[-1][0]:
            whole -= 1
        return rows[:whole] if whole else rows

    async def refs(self, model_ids: Sequence[int]) -> dict[int, ModelRef]:
        """The names of models by their ids; those that are gone are not among them."""
        names = select(
            model_columns.id, model_columns.provider, model_columns.reference, model_columns.version
        )

        def unit(connection: Connection) -> dict[int, ModelRef]:
            found: dict[int, ModelRef] = {}
            for some in _parts(model_ids):
                rows = connection.execute(names.where(model_columns.id.in_(some)))
                found |= {row[0]: ModelRef(*row[1:]) for row in rows}
            return found

        return await self._work.read(unit)

    async def store_checks(
        self, looks: Iterable[CheckResult], now: datetime, present_ids: Sequence[int] = ()
    ) -> None:
        """
        Record what a check found, where the model is still the one that was looked at.

        `present_ids` are those that were present and are. What is recorded of digests is not
        touched. What is there again is missing no more.
        """
        same: dict[FileState, list[int]] = {FileState.PRESENT: list(present_ids)}
        news = []
        for look in looks:
            if look.is_news:
                news.append(_update_values(look))
            else:
                same.setdefault(look.state, []).append(look.holding.id)
        # By the state it had: whatever was registered meanwhile with other contents is unchecked.
        quiet = [
            MODELS.update()
            .where(model_columns.id.in_(some), model_columns.state == state)
            .values(checked_at=now)
            for state, ids in same.items()
            for some in _parts(ids)
        ]
        update = self._update_state(now)

        def unit(connection: Connection) -> None:
            for statement in quiet:
                connection.execute(statement)
            for some in _parts(news):
                connection.execute(update, some)

        if quiet or news:
            await self._work.write_all(unit)

    def _update_state(self, now: datetime) -> Any:
        state = bindparam("new_state", type_=model_columns.state.type)
        at = literal(now, model_columns.checked_at.type)
        missing, offline, unreadable = (
            state == literal(each, model_columns.state.type)
            for each in (FileState.MISSING, FileState.OFFLINE, FileState.UNREADABLE)
        )
        since = case(
            (missing, func.coalesce(model_columns.missing_since, at)),
            # Of a disk that is not there nothing is learned.
            (offline | unreadable, model_columns.missing_since),
            else_=None,
        )
        mount = bindparam("new_mount", type_=model_columns.mount_point.type)
        return (
            MODELS.update()
            .where(
                model_columns.id == bindparam("of_id"),
                self._lies_at(bindparam("of_path", type_=model_columns.local_path.type)),
                model_columns.state == bindparam("of_state", type_=model_columns.state.type),
            )
            .values(
                state=state,
                state_detail=bindparam("new_detail", type_=Text),
                checked_at=at,
                missing_since=since,
                mount_point=func.coalesce(mount, model_columns.mount_point),
            )
        )


_AT_ONCE: Final = 1000
"""Rows in a statement: their parameters are made in the event loop, which is to be free again."""


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), _AT_ONCE):
        yield items[at : at + _AT_ONCE]


def _update_values(look: CheckResult) -> dict[str, Any]:
    held = look.holding
    return {
        "of_id": held.id,
        "of_path": held.local_path,
        "of_state": held.state,
        "new_state": look.state,
        "new_detail": look.detail,
        "new_mount": look.mount_point,
    }
