"""The column types: how Python values are stored, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from sqlalchemy import TEXT, BigInteger, ColumnElement, Dialect, Integer, Text, UnaryExpression
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from model_catalog.domain.file_record import FileState
from model_catalog.domain.search_text import fold_case

# SQLite assigns row ids only to a column whose type is spelled INTEGER.
BigInt: Final = BigInteger().with_variant(Integer(), "sqlite")

# PostgreSQL would sort by the server's locale, so the order of a listing would depend on the
# server. SQLite compares bytes, and so does the collation "C".
KeyText: Final = Text().with_variant(TEXT(collation="C"), "postgresql")


class UnixTimestamp(TypeDecorator[datetime]):
    """A datetime in UTC, stored as whole seconds since 1970 as rbee-hive stores it."""

    impl = BigInt
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else int(value.timestamp() // 1)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else decode_timestamp(value)


MIN_TIMESTAMP: Final = -62_135_596_800
"""The first second of the year 1."""
MAX_TIMESTAMP: Final = 253_402_300_799
"""The last second of the year 9999."""


def decode_timestamp(stored: int) -> datetime | None:
    """
    Convert the stored form of a UnixTimestamp to a datetime in UTC.

    Returns None for a value that another program wrote and that is not a time.
    """
    try:
        return datetime.fromtimestamp(stored, UTC)
    except (ValueError, OverflowError, TypeError, OSError):
        return None


BYTES_PREFIX: Final = "bytes:"
"""Marks a stored path as percent-encoded bytes."""


def decode_path(stored: str | bytes | None) -> str | None:
    """Convert the stored form of a PathText to the path as `os.fsdecode` returns it."""
    if isinstance(stored, bytes):
        # SQLite accepts a blob in a text column, and an old file may contain a path as a blob.
        return stored.decode("utf-8", "surrogateescape")
    if stored is None or not stored.startswith(BYTES_PREFIX):
        return stored
    return unquote_to_bytes(stored[len(BYTES_PREFIX) :]).decode("utf-8", "surrogateescape")


class PathText(TypeDecorator[str]):
    """
    A path of any bytes, stored as text.

    A UTF-8 path is stored unchanged. A path that is not UTF-8, or that begins with `bytes:`, is
    stored as `bytes:` and its percent-encoded bytes. `os.fsdecode` turns bytes that are not UTF-8
    into surrogates, which neither database accepts.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None or (value.isascii() and not value.startswith(BYTES_PREFIX)):
            return value
        raw = value.encode("utf-8", "surrogateescape")
        try:
            raw.decode()
        except UnicodeDecodeError:
            return BYTES_PREFIX + quote_from_bytes(raw)
        return BYTES_PREFIX + quote_from_bytes(raw) if value.startswith(BYTES_PREFIX) else value

    def process_result_value(self, value: str | bytes | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return decode_path(value)


class FileNameText(PathText):
    """A path inside a model, as part of a key: both databases compare it by its bytes."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        return dialect.type_descriptor(KeyText)


# A control character: no tag and no alias contains one.
TAG_SEPARATOR: Final = "\x1f"


class TagsText(TypeDecorator[tuple[str, ...]]):
    """The tags of a model as one text, sorted by their case-folded forms; read as a tuple."""

    impl = KeyText
    cache_ok = True

    def process_bind_param(self, value: Collection[str] | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        return TAG_SEPARATOR.join(sorted(value, key=lambda tag: (fold_case(tag), tag)))

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...]:  # noqa: ARG002
        return tuple(value.split(TAG_SEPARATOR)) if value else ()


class StateText(TypeDecorator[FileState]):
    """A FileState, stored by its value. An unknown value is read as `unchecked`."""

    impl = KeyText
    cache_ok = True

    def process_bind_param(self, value: FileState | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> FileState | None:  # noqa: ARG002
        return None if value is None else decode_state(value)


_STATES: Final = {state.value: state for state in FileState}


def decode_state(stored: str) -> FileState:
    """Convert the stored form of a StateText to a FileState."""
    return _STATES.get(stored, FileState.UNCHECKED)


# Alembic unwraps a UnaryExpression to find the column of an index. It treats any other class as an
# expression and, on SQLite, skips the index: check_schema would not report that it is missing.
class NullsFirst(UnaryExpression[Any]):
    """
    `NULLS FIRST` for an ascending column of an index, which is read backwards.

    SQLite rejects these words in an index, and sorts NULL first in ascending order without them.
    """

    inherit_cache = True

    @classmethod
    def of(cls, ascending: ColumnElement[Any]) -> NullsFirst:
        return cls(ascending, modifier=operators.nulls_first_op)


@compiles(NullsFirst)
def _compile_nulls_first(element: NullsFirst, compiler: SQLCompiler, **options: Any) -> str:
    return f"{_compile_without_nulls_first(element, compiler, **options)} NULLS FIRST"


@compiles(NullsFirst, "sqlite")
def _compile_without_nulls_first(element: NullsFirst, compiler: SQLCompiler, **options: Any) -> str:
    text: str = compiler.process(element.element, **options)
    return text
