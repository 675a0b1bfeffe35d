"""Export a whole catalog as NDJSON, and import it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Insert,
    ScalarSelect,
    Select,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import NullType

from model_catalog.connection.database_info import host_of, is_autocommit
from model_catalog.domain.fields import (
    KEY_FIELDS,
    UNIQUE_COLUMNS,
)
from model_catalog.domain.ndjson import ImportLine, LineError
from model_catalog.domain.search_text import fold_case, search_columns
from model_catalog.errors import InvalidImportError, InvalidModelError
from model_catalog.execution.executor import Operation, read, write_alone
from model_catalog.execution.observation.changed_rows import (
    ChangedRows,
    Child,
    recording,
    records_changes,
    rows_with_alias,
)
from model_catalog.execution.postgresql.driver_statements import fetch_in_parts
from model_catalog.mapping.child_tables import ALIASES, FILES, TAGS
from model_catalog.mapping.search_index.indexing import MAX_WAITING, index_if_many_wait
from model_catalog.repository.operations.model_files import FILE_COLUMNS
from model_catalog.repository.statements.batches import array_table
from model_catalog.repository.statements.filters import MODELS, model_columns, own_models
from model_catalog.repository.statements.models import insert_into
from model_catalog.repository.statements.row_conversion import aggregate_children
from model_catalog.repository.statements.totals.model_totals import count_new_models

OnConflict: TypeAlias = Literal["keep", "replace", "newer"]
"""What an import does with a model that exists."""

# A row has up to 64 KiB of description, and a page is in memory in five forms. With an asynchronous
# driver it is converted in the event loop, which goes on after each page.
_ROWS_PER_PAGE: Final = 100
# The beginnings of the codes of a value that the database cannot store: SQLite's constraint and
# length errors; PostgreSQL's classes "data exception", "integrity constraint violation" and
# "program limit exceeded", which an index entry raises that is too long.
_CHILDREN: Final[tuple[Child, ...]] = ("tags", "aliases", "files")
_REFUSED_VALUE: Final = ("SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH", "22", "23", "54")


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


class RowSpool(Protocol):
    """Where an export keeps the rows of its snapshot; see `ExportSpool`."""

    def clear(self) -> None:
        """Delete all pages."""

    def add(self, page: Sequence[tuple[Any, ...]]) -> None:
        """Add a page."""

    def pages(self) -> Iterator[Sequence[tuple[Any, ...]]]:
        """Yield the pages in the order in which they were added."""


def export_rows(spool: RowSpool) -> Operation[RowSpool, int]:
    """Return the operation that reads the whole catalog in one snapshot, into a spool."""
    return read(spool_export_rows, spool)


def spool_export_rows(connection: Connection, spool: RowSpool) -> int:
    """
    Write all models with their tags, aliases and files into a spool, sorted by key.

    Returns the number of models. A page is in memory at a time.
    """
    # The operation may be run again.
    spool.clear()
    statement = _export_statement(connection.dialect.name).where(*own_models(connection))
    if connection.dialect.name == "sqlite" or not is_autocommit(connection):
        # A cursor of a server needs a transaction.
        statement = statement.execution_options(yield_per=_ROWS_PER_PAGE)
    count = 0
    for rows in fetch_in_parts(connection, statement, _ROWS_PER_PAGE):
        spool.add([tuple(row) for row in rows])
        count += len(rows)
    return count


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


@cache
def export_names() -> tuple[str, ...]:
    """Return the names of the values of a row in a spool."""
    return tuple(_export_statement("sqlite").selected_columns.keys())


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


@records_changes
def write_import(connection: Connection, value: ImportedModels) -> WrittenLines:
    """Write models with their tags, aliases and files, a page at a time."""
    written = 0
    refused: list[LineError] = []
    for page in value.pages():
        written += _write_page(connection, page, value, refused)
    if connection.dialect.name == "sqlite":
        index_if_many_wait(connection, max(MAX_WAITING, 2 * written))
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
        with recording(connection, _rows_of_page(connection, lines), *_CHILDREN):
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


def _rows_of_page(connection: Connection, lines: Sequence[ImportLine]) -> ChangedRows:
    """Return the models of some lines, and the models from which they take an alias."""
    aliases = [
        (line.row["provider"], line.row["reference"], alias)
        for line in lines
        for alias in (*line.aliases, *line.store_aliases)
    ]
    return ChangedRows(rows_with_alias(connection, aliases), [line.key for line in lines])


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
    ids = _upsert_models(connection, page, on_conflict)
    lines = [(ids[line.key], line) for line in page if line.key in ids]
    if lines:
        for table in (TAGS, ALIASES, FILES):
            _delete_children(connection, table, list(ids.values()))
    _insert_tags(connection, lines)
    _insert_files(connection, lines)
    _insert_aliases(connection, lines, moves=on_conflict != "keep")
    count_new_models(connection)
    return len(lines)


def _upsert_models(
    connection: Connection, lines: Sequence[ImportLine], on_conflict: OnConflict
) -> dict[tuple[str, ...], int]:
    """Write the rows of models, and return the ids of those that were written, by key."""
    rows = [line.row | search_columns(line.row) for line in lines]
    names = tuple(rows[0])
    host = host_of(connection)
    values: Any
    if connection.dialect.name == "postgresql":
        values = {f"all_{name}": [row[name] for row in rows] for name in names}
        values["host"] = host
    else:
        values = [{**row, "host": host} for row in rows]
    upsert = _upsert_statement(connection.dialect.name, names, on_conflict)
    return {tuple(key): model_id for model_id, *key in connection.execute(upsert, values)}


# Made once. The object for the excluded row refers to itself, so the collector would have to find
# it after each page: 16 KiB a page.
@cache
def _upsert_statement(
    dialect: str, names: tuple[str, ...], on_conflict: OnConflict
) -> ReturningInsert[Any]:
    """Return the statement that writes the rows of models, and returns their ids and keys."""
    # The upsert decides whether a model exists. A SELECT before it would race with other writers.
    if dialect == "postgresql":
        # One array for each column: a row of parameters for each line would take four times as
        # long, most of it in the thread of the event loop.
        given = array_table(model_columns[name] for name in names)
        host = bindparam("host", type_=model_columns.host.type)
        upsert = insert_into(MODELS, dialect).from_select(
            ("host", *names),
            select(host, *(given.c[name] for name in names)),
            include_defaults=False,
        )
    else:
        upsert = insert_into(MODELS, dialect)
    if on_conflict == "keep":
        upsert = upsert.on_conflict_do_nothing(index_elements=UNIQUE_COLUMNS)
    else:
        new = upsert.excluded
        is_newer = _comparable(new.downloaded_at) > _comparable(model_columns.downloaded_at)
        upsert = upsert.on_conflict_do_update(
            index_elements=UNIQUE_COLUMNS,
            set_={name: new[name] for name in names if name not in UNIQUE_COLUMNS},
            where=is_newer if on_conflict == "newer" else None,
        )
    return upsert.returning(model_columns.id, *(model_columns[name] for name in KEY_FIELDS))


def _comparable(timestamp: ColumnElement[datetime]) -> ColumnElement[int]:
    """Return a timestamp as a number; NULL is older than every time."""
    return func.coalesce(type_coerce(timestamp, BigInteger), -(2**62))


def _delete_children(connection: Connection, table: Table, ids: Sequence[int]) -> None:
    if connection.dialect.name == "postgresql":
        listed = bindparam("ids", type_=ARRAY(BigInteger))
        connection.execute(delete(table).where(table.c.model_id == any_(listed)), {"ids": ids})
    else:
        children = delete(table).where(table.c.model_id == bindparam("of_id"))
        connection.execute(children, [{"of_id": model_id} for model_id in ids])


# The ids of models, and their lines.
_Lines: TypeAlias = Sequence[tuple[int, ImportLine]]


def _insert_tags(connection: Connection, lines: _Lines) -> None:
    rows = [
        {"model_id": model_id, "folded": fold_case(tag), "tag": tag}
        for model_id, line in lines
        for tag in line.tags
    ]
    if rows:
        insert = insert_into(TAGS, connection.dialect.name)
        connection.execute(insert.on_conflict_do_nothing(), rows)


def _insert_files(connection: Connection, lines: _Lines) -> None:
    rows = [
        {"model_id": model_id, **{each.key: getattr(file, each.key) for each in FILE_COLUMNS}}
        for model_id, line in lines
        for file in line.files
    ]
    if rows:
        connection.execute(insert_into(FILES, connection.dialect.name), rows)


def _insert_aliases(connection: Connection, lines: _Lines, *, moves: bool) -> None:
    """Insert aliases; with `moves`, those that exist are changed to point at the new models."""
    host = host_of(connection)
    rows = [
        {
            "model_id": model_id,
            "host": host,
            "provider": line.row["provider"],
            "reference": line.row["reference"],
            "alias": alias,
            "store": store,
        }
        for model_id, line in lines
        for store, aliases in ((None, line.aliases), (line.row["store"], line.store_aliases))
        for alias in aliases
    ]
    if rows:
        connection.execute(_alias_statement(connection.dialect.name, moves=moves), rows)


@cache
def _alias_statement(dialect: str, *, moves: bool) -> Insert:
    """Return the statement that inserts aliases, and with `moves` changes those that exist."""
    insert = insert_into(ALIASES, dialect)
    if not moves:
        return insert.on_conflict_do_nothing()
    changes = {name: insert.excluded[name] for name in ("model_id", "store")}
    names = ("host", "provider", "reference", "alias")
    return insert.on_conflict_do_update(index_elements=names, set_=changes)
