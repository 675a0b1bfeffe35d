"""Export a whole catalog as NDJSON, and import it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import IO, Any, Final, Literal, NamedTuple, TypeAlias, get_args

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
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.types import NullType

from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.database_info import host_of
from model_catalog.domain.fields import (
    COLUMN_DEFAULTS,
    FIELD_TYPES,
    KEY_FIELDS,
    UNIQUE_COLUMNS,
    is_nullable,
)
from model_catalog.domain.file_record import FileRecord, sorted_by_path
from model_catalog.domain.ndjson import HEADER, ImportLine, LineError, to_line
from model_catalog.domain.search_text import fold_case, search_columns
from model_catalog.errors import InvalidImportError, InvalidModelError
from model_catalog.execution.executor import Operation, read, write_alone
from model_catalog.mapping.column_types import decode_path, decode_timestamp
from model_catalog.repository.operations.model_files import FILE_COLUMNS
from model_catalog.repository.statements.filters import (
    FILES,
    MODELS,
    TAGS,
    model_columns,
    own_models,
)
from model_catalog.repository.statements.model_key import ALIASES
from model_catalog.repository.statements.models import insert_into
from model_catalog.repository.statements.row_conversion import aggregate_children, split_aggregate

_VALUE_TYPES: Final = {name: get_args(kind) or (kind,) for name, kind in FIELD_TYPES.items()}

OnConflict: TypeAlias = Literal["keep", "replace", "newer"]
"""What an import does with a model that exists."""

_LINES_PER_PAGE: Final = 1000
# The beginnings of the codes of a value that the database cannot store: SQLite's constraint and
# length errors; PostgreSQL's classes "data exception", "integrity constraint violation" and
# "program limit exceeded", which an index entry raises that is too long.
_REFUSED_VALUE: Final = ("SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH", "22", "23", "54")

# Child rows are written with the key of their model: the ids of new models are not known.
_MODEL_ID: Final = select(model_columns.id).where(
    *(model_columns[name] == bindparam(f"of_{name}", type_=Text) for name in UNIQUE_COLUMNS)
)


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The outcome of an import: the numbers of models that were written and that were kept."""

    written: int
    kept: int
    problems: tuple[LineError, ...]
    """The lines that were skipped, because they are invalid or the database refused them."""


class ImportedModels(NamedTuple):
    """The lines to import, and what to do with models that exist and with refused lines."""

    pages: Callable[[], Iterable[list[ImportLine]]]
    """Returns the lines, sorted by key. It is called again if the transaction is repeated."""
    on_conflict: OnConflict
    skip_broken: bool


class WrittenLines(NamedTuple):
    """The number of models that an import wrote, and the lines that the database refused."""

    written: int
    refused: tuple[LineError, ...]


def export_rows() -> Operation[None, list[dict[str, Any]]]:
    """Return the operation that reads the whole catalog in one snapshot."""
    return read(select_export_rows, None)


def select_export_rows(connection: Connection, _value: None = None) -> list[dict[str, Any]]:
    """Return all models with their tags, aliases and files, sorted by key."""
    statement = _export_statement(connection.dialect.name)
    rows = connection.execute(statement.where(*own_models(connection)))
    return [row._asdict() for row in rows]


def _export_statement(dialect: str) -> Select[Any]:
    columns = (
        column
        for column in model_columns
        if column.key not in ("id", "host") and not column.key.endswith("_folded")
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
    listed = row["files"] or "[]"
    if isinstance(listed, bytes):
        listed = listed.decode("utf-8", "replace")
    files = tuple(sorted_by_path(map(_to_file_record, json.loads(listed))))
    row = {name: _readable(name, value) for name, value in row.items()}
    texts = {name: split_aggregate(row[name]) for name in ("tags", "aliases", "store_aliases")}
    return to_line({**row, **texts, "files": files})


def _readable(name: str, value: object) -> object:
    """Return a value of a row, or the default in place of a value of a wrong type."""
    if isinstance(value, _VALUE_TYPES.get(name, object)):
        return value
    # A text that is not UTF-8 is read as bytes. A name must be exported all the same.
    return value if isinstance(value, bytes) and not is_nullable(name) else COLUMN_DEFAULTS[name]


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


def import_lines(
    pages: Callable[[], Iterable[list[ImportLine]]],
    on_conflict: OnConflict,
    *,
    skip_broken: bool,
    timeout_s: float | None,
) -> Operation[ImportedModels, WrittenLines]:
    """Return the operation that writes the models of an import."""
    operation = write_alone(write_import, ImportedModels(pages, on_conflict, skip_broken))
    operation.timeout_s = timeout_s
    return operation


def write_import(connection: Connection, value: ImportedModels) -> WrittenLines:
    """Write models with their tags, aliases and files, a page at a time."""
    written = 0
    refused: list[LineError] = []
    for page in value.pages():
        written += _write_page(connection, page, value, refused)
    return WrittenLines(written, tuple(refused))


def _write_page(
    connection: Connection,
    lines: Sequence[ImportLine],
    value: ImportedModels,
    refused: list[LineError],
) -> int:
    """
    Write lines in a savepoint, and return the number of models written.

    If the database refuses a value, the lines are divided until the one that has it is found. That
    line is added to `refused`, or raises InvalidImportError.
    """
    savepoint = connection.begin_nested()
    try:
        written = _write_lines_of_page(connection, lines, value.on_conflict)
        savepoint.commit()
    except (DBAPIError, UnicodeError) as error:
        if not _is_refused_value(error):
            # SQLite may have rolled back the transaction, so that it has no savepoint any more.
            raise
        savepoint.rollback()
        if len(lines) > 1:
            middle = len(lines) // 2
            halves = (lines[:middle], lines[middle:])
            return sum(_write_page(connection, half, value, refused) for half in halves)
        cause = error.orig if isinstance(error, DBAPIError) else error
        problem = LineError(lines[0].line, f"the database refuses it: {cause}".splitlines()[0])
        if not value.skip_broken:
            raise InvalidImportError(problem.line, problem.reason) from error
        refused.append(problem)
        return 0
    return written


def _is_refused_value(error: Exception) -> bool:
    """Return whether an error is about a value, and not about the state of the database."""
    if not isinstance(error, DBAPIError):
        return True
    driver_error = error.driver_exception
    code = getattr(driver_error, "sqlite_errorname", None) or getattr(driver_error, "sqlstate", "")
    if code:
        return str(code).startswith(_REFUSED_VALUE)
    # A driver that cannot encode a value has no code.
    return isinstance(error, DataError) or isinstance(driver_error, UnicodeError | ValueError)


def _write_lines_of_page(
    connection: Connection, page: Sequence[ImportLine], on_conflict: OnConflict
) -> int:
    written = _upsert_models(connection, page, on_conflict)
    lines = [line for line in page if line.key in written]
    host = {"of_host": host_of(connection)}
    keys = [{**host, **{f"of_{name}": line.row[name] for name in KEY_FIELDS}} for line in lines]
    for table in (TAGS, ALIASES, FILES):
        children = delete(table).where(table.c.model_id == _MODEL_ID.scalar_subquery())
        if keys:
            connection.execute(children, keys)
    pairs = list(zip(keys, lines, strict=True))
    _insert_tags(connection, pairs)
    _insert_files(connection, pairs)
    _insert_aliases(connection, pairs, moves=on_conflict != "keep")
    return len(lines)


def _upsert_models(
    connection: Connection, lines: Sequence[ImportLine], on_conflict: OnConflict
) -> set[tuple[str, ...]]:
    """Write the rows of models, and return the keys of the rows that were written."""
    # The upsert decides whether a model exists. A SELECT before it would race with other writers.
    upsert = insert_into(MODELS, connection.dialect.name)
    host = {"host": host_of(connection)}
    rows = [line.row | search_columns(line.row) | host for line in lines]
    if on_conflict == "keep":
        upsert = upsert.on_conflict_do_nothing(index_elements=UNIQUE_COLUMNS)
    else:
        new = upsert.excluded
        is_newer = _comparable(new.downloaded_at) > _comparable(model_columns.downloaded_at)
        upsert = upsert.on_conflict_do_update(
            index_elements=UNIQUE_COLUMNS,
            set_={name: new[name] for name in rows[0] if name not in UNIQUE_COLUMNS},
            where=is_newer if on_conflict == "newer" else None,
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
    names = ("host", "provider", "reference", "alias")
    values = (bindparam(name, type_=Text) for name in ("alias", "of_store"))
    insert = insert_into(ALIASES, connection.dialect.name).from_select(
        ["model_id", *names, "store"],
        _MODEL_ID.add_columns(
            model_columns.host, model_columns.provider, model_columns.reference, *values
        ),
    )
    if moves:
        changes = {name: insert.excluded[name] for name in ("model_id", "store")}
        insert = insert.on_conflict_do_update(index_elements=names, set_=changes)
    else:
        insert = insert.on_conflict_do_nothing()
    connection.execute(insert, rows)
