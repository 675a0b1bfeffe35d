"""Export a whole catalog as NDJSON, and import it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import IO, Any, Final, Literal, NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    Text,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.types import NullType

from model_catalog.concurrency.threads import to_thread
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import FileRecord, sorted_by_path
from model_catalog.domain.ndjson import HEADER, MAX_LINE, ImportLine, LineError, parse, to_line
from model_catalog.domain.search_text import fold_case, search_columns
from model_catalog.errors import InvalidImportError, InvalidModelError
from model_catalog.execution.executor import Operation, read, write_alone
from model_catalog.mapping.column_types import decode_path, decode_timestamp
from model_catalog.repository.operations.model_files import FILE_COLUMNS
from model_catalog.repository.statements.filters import FILES, MODELS, TAGS, model_columns
from model_catalog.repository.statements.model_key import ALIASES
from model_catalog.repository.statements.models import insert_into
from model_catalog.repository.statements.row_conversion import aggregate_children, split_aggregate

OnConflict: TypeAlias = Literal["keep", "replace", "newer"]
"""What an import does with a model that exists."""

_LINES_PER_PAGE: Final = 1000
_CHARACTERS_PER_PAGE: Final = 2 * MAX_LINE
# An index entry of PostgreSQL has at most 2704 bytes, some of which are overhead.
_MAX_POSTGRES_KEY_BYTES: Final = 2660

# Child rows are written with the key of their model: the ids of new models are not known.
_MODEL_ID: Final = select(model_columns.id).where(
    *(model_columns[name] == bindparam(f"of_{name}", type_=Text) for name in KEY_FIELDS)
)


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The outcome of an import: the numbers of models that were written and that were kept."""

    written: int
    kept: int
    problems: tuple[LineError, ...]
    """The invalid lines that were skipped."""


class ImportedModels(NamedTuple):
    """The lines to import, sorted by key, and what to do with models that exist."""

    lines: Sequence[ImportLine]
    on_conflict: OnConflict


def export_rows() -> Operation[None, list[dict[str, Any]]]:
    """Return the operation that reads the whole catalog in one snapshot."""
    return read(select_export_rows, None)


def select_export_rows(connection: Connection, _value: None = None) -> list[dict[str, Any]]:
    """Return all models with their tags, aliases and files, sorted by key."""
    rows = connection.execute(_export_statement(connection.dialect.name))
    return [row._asdict() for row in rows]


def _export_statement(dialect: str) -> Select[Any]:
    columns = (
        column
        for column in model_columns
        if column.key != "id" and not column.key.endswith("_folded")
    )
    own_aliases = aggregate_children(dialect, ALIASES.c.alias, ALIASES.c.store.is_(None))
    store_aliases = aggregate_children(dialect, ALIASES.c.alias, ALIASES.c.store.is_not(None))
    return select(
        *columns,
        aggregate_children(dialect, TAGS.c.tag).label("tags"),
        own_aliases.label("aliases"),
        store_aliases.label("store_aliases"),
        _files_as_json(dialect).label("files"),
    ).order_by(*(model_columns[name] for name in KEY_FIELDS))


def _files_as_json(dialect: str) -> ScalarSelect[str]:
    """Select the files of a model as one JSON text: a second statement has another snapshot."""
    pairs: list[ColumnElement[Any]] = []
    for column in FILE_COLUMNS:
        # Raw values: JSON has no timestamps.
        pairs += [literal_column(f"'{column.key}'"), type_coerce(column, NullType())]
    if dialect == "sqlite":
        listed = cast(func.json_group_array(func.json_object(*pairs)), Text)
    else:
        listed = cast(func.json_agg(func.json_build_object(*pairs)), Text)
    children = select(listed).where(
        FILES.c.model_id == model_columns.id, model_columns.inventoried_at.is_not(None)
    )
    return children.correlate(MODELS).scalar_subquery()


async def write_export(rows: Sequence[Mapping[str, Any]], stream: IO[Any]) -> None:
    """Write the header and one line for each row, a page at a time, in a thread."""
    lines = (_export_line(row) for row in rows)
    await to_thread(_write_lines, stream, [HEADER])
    while page := list(islice(lines, _LINES_PER_PAGE)):
        await to_thread(_write_lines, stream, page)


def _export_line(row: Mapping[str, Any]) -> str:
    files = tuple(sorted_by_path(map(_to_file_record, json.loads(row["files"] or "[]"))))
    texts = {name: split_aggregate(row[name]) for name in ("tags", "aliases", "store_aliases")}
    return to_line({**row, **texts, "files": files})


def _to_file_record(values: Mapping[str, Any]) -> FileRecord:
    """Return a file from the raw column values that the database wrote as JSON."""
    hashed_at = values["hashed_at"]
    decoded = {
        "path": decode_path(values["path"]),
        "hashed_at": None if hashed_at is None else decode_timestamp(hashed_at),
    }
    return FileRecord(**{**values, **decoded})


def _write_lines(stream: IO[Any], lines: Sequence[str]) -> None:
    text = "".join(lines)
    # Only a text stream has an encoding.
    stream.write(text if hasattr(stream, "encoding") else text.encode("ascii"))


def validate_on_conflict(value: object) -> None:
    """Raise InvalidModelError for a value that is not an OnConflict."""
    if value not in ("keep", "replace", "newer"):
        raise InvalidModelError("on_conflict", value, "is none of keep, replace, newer")


async def read_import(
    stream: IO[str] | IO[bytes], dialect: str, *, skip_broken: bool
) -> tuple[list[ImportLine], list[LineError]]:
    """
    Read and validate the lines of an export, in a thread.

    Returns the valid lines sorted by key, and the invalid ones. Without `skip_broken` the first
    invalid line raises InvalidImportError; an invalid header always does.
    """
    lines: dict[tuple[str, ...], ImportLine] = {}
    problems: list[LineError] = []
    async for number, text in _numbered_lines(stream):
        parsed = parse(text, number)
        if isinstance(parsed, ImportLine) and (reason := _key_too_long(parsed, dialect)):
            parsed = LineError(number, reason)
        if isinstance(parsed, ImportLine):
            first = lines.setdefault(parsed.key, parsed)
            if first is not parsed:
                parsed = LineError(number, f"it repeats the model of line {first.line}")
        if isinstance(parsed, LineError):
            if number == 1 or not skip_broken:
                raise InvalidImportError(parsed.line, parsed.reason)
            problems.append(parsed)
    return [lines[key] for key in sorted(lines)], problems


def _key_too_long(line: ImportLine, dialect: str) -> str | None:
    if dialect != "postgresql":
        return None
    provider, reference, version = (len(part.encode()) for part in line.key)
    longest = max(version, *(len(alias.encode()) for alias in line.aliases), 0)
    size_bytes = provider + reference + longest
    if size_bytes <= _MAX_POSTGRES_KEY_BYTES:
        return None
    return (
        f"its provider and reference with its version or an alias are {size_bytes} bytes, but "
        f"PostgreSQL can store {_MAX_POSTGRES_KEY_BYTES}"
    )


async def _numbered_lines(
    stream: IO[str] | IO[bytes],
) -> AsyncIterator[tuple[int, str | bytes]]:
    """
    Yield each line of a stream with its number, from 1.

    A line that is too long is cut to a length that `parse` still refuses. Raises InvalidImportError
    for an empty stream, and for text that cannot be decoded.
    """
    number = 0
    while True:
        try:
            lines = await to_thread(_read_page, stream)
        except UnicodeDecodeError as error:
            # A text stream cannot be read beyond the invalid bytes; a binary stream can.
            raise InvalidImportError(
                number + 1,
                f"the stream is not valid {error.encoding} from this line on: open it in binary "
                "mode",
            ) from error
        for line in lines:
            number += 1
            yield number, line
        if not lines:
            break
    if not number:
        raise InvalidImportError(1, "the stream is empty")


def _read_page(stream: IO[str] | IO[bytes]) -> list[str | bytes]:
    lines: list[str | bytes] = []
    length = 0
    while (
        len(lines) < _LINES_PER_PAGE
        and length < _CHARACTERS_PER_PAGE
        and (line := stream.readline(2 * MAX_LINE))
    ):
        lines.append(line)
        length += len(line)
        while len(line) == 2 * MAX_LINE and line[-1:] not in ("\n", b"\n"):
            line = stream.readline(2 * MAX_LINE)
    return lines


def import_lines(
    lines: Sequence[ImportLine], on_conflict: OnConflict
) -> Operation[ImportedModels, int]:
    """Return the operation that writes the models of an import; it returns how many it wrote."""
    return write_alone(write_import, ImportedModels(lines, on_conflict))


def write_import(connection: Connection, value: ImportedModels) -> int:
    """Write models with their tags, aliases and files; return the number of models written."""
    written = _upsert_models(connection, value)
    lines = [line for line in value.lines if line.key in written]
    keys = [{f"of_{name}": line.row[name] for name in KEY_FIELDS} for line in lines]
    for table in (TAGS, ALIASES, FILES):
        children = delete(table).where(table.c.model_id == _MODEL_ID.scalar_subquery())
        if keys:
            connection.execute(children, keys)
    pairs = list(zip(keys, lines, strict=True))
    _insert_tags(connection, pairs)
    _insert_files(connection, pairs)
    _insert_aliases(connection, pairs, moves=value.on_conflict != "keep")
    return len(lines)


def _upsert_models(connection: Connection, value: ImportedModels) -> set[tuple[str, ...]]:
    """Write the rows of models, and return the keys of the rows that were written."""
    # The upsert decides whether a model exists. A SELECT before it would race with other writers.
    upsert = insert_into(MODELS, connection.dialect.name)
    rows = [line.row | search_columns(line.row) for line in value.lines]
    if value.on_conflict == "keep":
        upsert = upsert.on_conflict_do_nothing(index_elements=KEY_FIELDS)
    else:
        new = upsert.excluded
        is_newer = _comparable(new.downloaded_at) > _comparable(model_columns.downloaded_at)
        upsert = upsert.on_conflict_do_update(
            index_elements=KEY_FIELDS,
            set_={name: new[name] for name in rows[0] if name not in KEY_FIELDS},
            where=is_newer if value.on_conflict == "newer" else None,
        )
    returned = connection.execute(
        upsert.returning(*(model_columns[name] for name in KEY_FIELDS)), rows
    )
    return {tuple(row) for row in returned}


def _comparable(timestamp: ColumnElement[datetime]) -> ColumnElement[int]:
    """Return a timestamp as a number; NULL is older than every time."""
    return func.coalesce(type_coerce(timestamp, BigInteger), -(2**62))


# The key parameters of a model, and its line.
_Pairs: TypeAlias = Sequence[tuple[dict[str, str], ImportLine]]


def _insert_tags(connection: Connection, pairs: _Pairs) -> None:
    rows = [
        {**key, "folded": fold_case(tag), "tag": tag} for key, line in pairs for tag in line.tags
    ]
    if rows:
        values = (bindparam(name, type_=Text) for name in ("folded", "tag"))
        insert = insert_into(TAGS, connection.dialect.name).from_select(
            ["model_id", "folded", "tag"], _MODEL_ID.add_columns(*values)
        )
        connection.execute(insert.on_conflict_do_nothing(), rows)


def _insert_files(connection: Connection, pairs: _Pairs) -> None:
    rows = [
        {**key, **{column.key: getattr(file, column.key) for column in FILE_COLUMNS}}
        for key, line in pairs
        for file in line.files
    ]
    if rows:
        values = (bindparam(column.key, type_=column.type) for column in FILE_COLUMNS)
        insert = insert_into(FILES, connection.dialect.name).from_select(
            ["model_id", *(column.key for column in FILE_COLUMNS)],
            _MODEL_ID.add_columns(*values),
        )
        connection.execute(insert, rows)


def _insert_aliases(connection: Connection, pairs: _Pairs, *, moves: bool) -> None:
    """Insert aliases; with `moves`, those that exist are changed to point at the new models."""
    rows = [
        {**key, "alias": alias, "of_store": store}
        for key, line in pairs
        for store, aliases in ((None, line.aliases), (line.row["store"], line.store_aliases))
        for alias in aliases
    ]
    if not rows:
        return
    names = ("provider", "reference", "alias")
    values = (bindparam(name, type_=Text) for name in ("alias", "of_store"))
    insert = insert_into(ALIASES, connection.dialect.name).from_select(
        ["model_id", *names, "store"],
        _MODEL_ID.add_columns(model_columns.provider, model_columns.reference, *values),
    )
    if moves:
        changes = {name: insert.excluded[name] for name in ("model_id", "store")}
        insert = insert.on_conflict_do_update(index_elements=names, set_=changes)
    else:
        insert = insert.on_conflict_do_nothing()
    connection.execute(insert, rows)
