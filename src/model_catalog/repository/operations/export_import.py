"""The whole catalog as text, out and in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import IO, Any, Final, Literal, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    ScalarSelect,
    Text,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.types import NullType

from model_catalog.concurrency.threads import to_thread
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import FileRecord, sorted_by_path
from model_catalog.domain.ndjson import HEADER, MAX_LINE, ImportLine, LineError, parse, to_line
from model_catalog.errors import InvalidImportError, InvalidModelError
from model_catalog.mapping.column_types import FileNameText, UnixTimestamp
from model_catalog.mapping.tables import fold_case
from model_catalog.repository.operations.registration import search_columns
from model_catalog.repository.statements.filters import FILES, MODELS, TAGS, model_columns
from model_catalog.repository.statements.models import ALIASES, Records
from model_catalog.repository.statements.row_conversion import aggregate_children, split_aggregate

OnConflict: TypeAlias = Literal["keep", "replace", "newer"]

_LINES: Final = 1000
_CHARACTERS: Final = 2 * MAX_LINE
# PostgreSQL's index holds 2704 bytes a row, of which some are its own.
_LONGEST_KEY_BYTES: Final = 2660

_FILE_COLUMNS: Final = tuple(column for column in FILES.c if column.key != "model_id")
_PATH: Final = FileNameText()
_TIME: Final = UnixTimestamp()
_ANY_DIALECT: Final = DefaultDialect()

# Children are written by the key of their model: of a new one nobody knows the id yet.
_ID: Final = select(model_columns.id).where(
    *(model_columns[name] == bindparam(f"of_{name}", type_=Text) for name in KEY_FIELDS)
)


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did: how many models were written, and how many were left as they were."""

    written: int
    kept: int
    problems: tuple[LineError, ...]
    """The lines that were skipped."""


class Exchange(Records):
    """The operations that write and read a whole catalog."""

    async def export_catalog(self, stream: IO[str] | IO[bytes]) -> int:
        """
        Write everything that is recorded to a stream, as NDJSON; return how many models.

        The first line names the format and its version, each other one is a model with its tags
        and aliases, by provider, reference and version: the same catalog is the same bytes on every
        database. ASCII; times are ISO 8601 in UTC. It is the state of one moment, read before
        anything is written. The stream is written in a thread, and not closed.
        """
        dialect = self._work.database.dialect
        statement = select(
            *(
                column
                for column in model_columns
                if column.key != "id" and not column.key.endswith("_folded")
            ),
            aggregate_children(dialect, TAGS.c.tag).label("tags"),
            aggregate_children(dialect, ALIASES.c.alias, ALIASES.c.store.is_(None)).label(
                "aliases"
            ),
            aggregate_children(dialect, ALIASES.c.alias, ALIASES.c.store.is_not(None)).label(
                "store_aliases"
            ),
            self._files_as_json().label("files"),
        ).order_by(*(model_columns[name] for name in KEY_FIELDS))

        def unit(connection: Connection) -> list[dict[str, Any]]:
            return [row._asdict() for row in connection.execute(statement)]

        rows = await self._work.read(unit)
        lines = (_line(row) for row in rows)
        await to_thread(_put, stream, [HEADER])
        while page := list(islice(lines, _LINES)):
            await to_thread(_put, stream, page)
        return len(rows)

    async def import_catalog(
        self,
        stream: IO[str] | IO[bytes],
        on_conflict: OnConflict = "keep",
        *,
        skip_broken: bool = False,
    ) -> ImportResult:
        """
        Record what `export_catalog` wrote, in one transaction: all of it, or, on an error, nothing.

        A model that is there already is kept as it is, or replaced with all that hangs on it, or,
        with `newer`, replaced when the line's `downloaded_at` is later. A replaced model's aliases
        are the line's, whatever they pointed at before.

        A broken line raises InvalidImportError with its number; with `skip_broken` it is left out
        and told of. A stream that does not begin as a catalog is refused in any case. The stream is
        read in a thread, and not closed.
        """
        if on_conflict not in ("keep", "replace", "newer"):
            raise InvalidModelError("on_conflict", on_conflict, "is none of keep, replace, newer")
        entries, problems = await _read(stream, self._unstorable, skip_broken=skip_broken)
        written = 0
        if entries:
            written = await self._work.write_all(
                lambda connection: self._import(connection, entries, on_conflict)
            )
        return ImportResult(written, len(entries) - written, tuple(problems))

    def _files_as_json(self) -> ScalarSelect[str]:
        """The files of a model in one text: a second statement would show another moment's."""
        pairs: list[ColumnElement[Any]] = []
        for column in _FILE_COLUMNS:
            # As they are stored: JSON knows no times.
            pairs += [literal_column(f"'{column.key}'"), type_coerce(column, NullType())]
        lite = self._work.database.dialect == "sqlite"
        each = (func.json_object if lite else func.json_build_object)(*pairs)
        listed = cast((func.json_group_array if lite else func.json_agg)(each), Text)
        children = select(listed).where(
            FILES.c.model_id == model_columns.id, model_columns.inventoried_at.is_not(None)
        )
        return children.correlate(MODELS).scalar_subquery()

    def _unstorable(self, entry: ImportLine) -> str | None:
        provider, reference, version = (len(part.encode()) for part in entry.key)
        size = provider + reference + max(version, *(len(a.encode()) for a in entry.aliases), 0)
        if self._work.database.dialect == "postgresql" and size > _LONGEST_KEY_BYTES:
            return (
                f"its provider and reference with its version or an alias are {size} bytes, too "
                f"long for PostgreSQL"
            )
        return None

    def _import(
        self, connection: Connection, entries: Sequence[ImportLine], on_conflict: OnConflict
    ) -> int:
        upsert = self._insert(MODELS)
        models = [entry.row | search_columns(entry.row) for entry in entries]
        changed = {name: upsert.excluded[name] for name in models[0] if name not in KEY_FIELDS}
        # Which are there already is for the statement to see: who looks before it writes may find
        # that another has written in between.
        if on_conflict == "keep":
            upsert = upsert.on_conflict_do_nothing(index_elements=KEY_FIELDS)
        else:
            later = _seconds(upsert.excluded.downloaded_at) > _seconds(model_columns.downloaded_at)
            upsert = upsert.on_conflict_do_update(
                index_elements=KEY_FIELDS,
                set_=changed,
                where=later if on_conflict == "newer" else None,
            )
        returned = connection.execute(
            upsert.returning(*(model_columns[name] for name in KEY_FIELDS)), models
        )
        written = {tuple(row) for row in returned}
        chosen = [entry for entry in entries if entry.key in written]

        keys = [{f"of_{name}": entry.row[name] for name in KEY_FIELDS} for entry in chosen]
        for table in (TAGS, ALIASES, FILES):
            here = delete(table).where(table.c.model_id == _ID.scalar_subquery())
            if keys:
                connection.execute(here, keys)
        self._attach(connection, keys, chosen, moves=on_conflict != "keep")
        return len(chosen)

    def _attach(
        self,
        connection: Connection,
        keys: Sequence[dict[str, str]],
        chosen: Sequence[ImportLine],
        *,
        moves: bool,
    ) -> None:
        """Write what hangs on models that have nothing; an alias of others' may be moved here."""
        pairs = list(zip(keys, chosen, strict=True))
        tags = [
            {**key, "folded": fold_case(tag), "tag": tag}
            for key, entry in pairs
            for tag in entry.tags
        ]
        if tags:
            columns = [bindparam(name, type_=Text) for name in ("folded", "tag")]
            insert = self._insert(TAGS)
            insert = insert.from_select(["model_id", "folded", "tag"], _ID.add_columns(*columns))
            connection.execute(insert.on_conflict_do_nothing(), tags)

        files = [
            {**key, **{c.key: getattr(file, c.key) for c in _FILE_COLUMNS}}
            for key, entry in pairs
            for file in entry.files
        ]
        if files:
            targets = ["model_id", *(column.key for column in _FILE_COLUMNS)]
            values = [bindparam(column.key, type_=column.type) for column in _FILE_COLUMNS]
            listed = self._insert(FILES).from_select(targets, _ID.add_columns(*values))
            connection.execute(listed, files)

        aliases = [
            {**key, "alias": alias, "of_store": store}
            for key, entry in pairs
            for store, those in ((None, entry.aliases), (entry.row["store"], entry.store_aliases))
            for alias in those
        ]
        if aliases:
            names = ("provider", "reference", "alias")
            texts = (bindparam(name, type_=Text) for name in ("alias", "of_store"))
            source = _ID.add_columns(model_columns.provider, model_columns.reference, *texts)
            insert = self._insert(ALIASES).from_select(["model_id", *names, "store"], source)
            pointed = {name: insert.excluded[name] for name in ("model_id", "store")}
            insert = (
                insert.on_conflict_do_update(index_elements=names, set_=pointed)
                if moves
                else insert.on_conflict_do_nothing()
            )
            connection.execute(insert, aliases)


def _seconds(moment: ColumnElement[datetime]) -> ColumnElement[int]:
    """A time to compare; what has none is older than any."""
    return func.coalesce(type_coerce(moment, BigInteger), -(2**62))


async def _read(
    stream: IO[str] | IO[bytes],
    unstorable: Callable[[ImportLine], str | None],
    *,
    skip_broken: bool,
) -> tuple[list[ImportLine], list[LineError]]:
    entries: dict[tuple[str, ...], ImportLine] = {}
    problems: list[LineError] = []
    async for number, line in _numbered(stream):
        found = parse(line, number)
        if isinstance(found, ImportLine) and (why := unstorable(found)):
            found = LineError(number, why)
        if isinstance(found, ImportLine):
            first = entries.setdefault(found.key, found)
            if first is not found:
                found = LineError(number, f"it repeats the model of line {first.line}")
        if isinstance(found, LineError):
            if number == 1 or not skip_broken:
                raise InvalidImportError(found.line, found.reason)
            problems.append(found)
    return [entries[key] for key in sorted(entries)], problems


async def _numbered(stream: IO[str] | IO[bytes]) -> AsyncIterator[tuple[int, str | bytes]]:
    """The lines of a stream; of one that is too long its beginning, which is too long as well."""

    def page() -> list[str | bytes]:
        lines: list[str | bytes] = []
        read = 0
        while (
            len(lines) < _LINES and read < _CHARACTERS and (line := stream.readline(2 * MAX_LINE))
        ):
            lines.append(line)
            read += len(line)
            while len(line) == 2 * MAX_LINE and line[-1:] not in ("\n", b"\n"):
                line = stream.readline(2 * MAX_LINE)
        return lines

    number = 0
    while True:
        try:
            lines = await to_thread(page)
        except UnicodeDecodeError as error:
            # A stream of text cannot go on behind it; one of bytes can.
            raise InvalidImportError(
                number + 1, f"from there on it is no {error.encoding}: open it as bytes"
            ) from error
        for line in lines:
            number += 1
            yield number, line
        if not lines:
            break
    if not number:
        raise InvalidImportError(1, "the stream is empty")


def _line(row: Mapping[str, Any]) -> str:
    listed = tuple(sorted_by_path(map(_file, json.loads(row["files"] or "[]"))))
    hung = {name: split_aggregate(row[name]) for name in ("tags", "aliases", "store_aliases")}
    return to_line({**row, **hung, "files": listed})


def _file(values: Mapping[str, Any]) -> FileRecord:
    """A file of which the database wrote the columns as JSON, as they are stored."""
    path, hashed_at = values["path"], values["hashed_at"]
    read = {
        "path": _PATH.process_result_value(path, _ANY_DIALECT),
        "hashed_at": _TIME.process_result_value(hashed_at, _ANY_DIALECT),
    }
    return FileRecord(**{**values, **read})


def _put(stream: IO[Any], lines: Sequence[str]) -> None:
    text = "".join(lines)
    # A stream of text alone has an encoding.
    stream.write(text if hasattr(stream, "encoding") else text.encode("ascii"))
