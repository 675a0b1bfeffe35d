"""How values are stored in columns, the same on every database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from sqlalchemy import BigInteger, ColumnElement, Dialect, Integer, Text, UnaryExpression
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from model_catalog.domain.file_record import FileState

# SQLite numbers rows by itself only in a column that is an INTEGER to the letter.
BigInt: Final = BigInteger().with_variant(Integer(), "sqlite")

# PostgreSQL would order by the server's locale: the same listing would come in another order on
# another machine. SQLite compares bytes; so does "C".
KeyText: Final = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


class UnixTimestamp(TypeDecorator[datetime]):
    """A UTC datetime in Python; whole seconds since 1970 in the database, as the hive had it."""

    impl = BigInt
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else int(value.timestamp() // 1)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else decode_timestamp(value)


def decode_timestamp(stored: int) -> datetime:
    """A moment of the number that it was stored as."""
    return datetime.fromtimestamp(stored, UTC)


_MARK: Final = "bytes:"


def decode_path(stored: str | bytes | None) -> str | None:
    """A path of the bytes that it had when it was stored as a PathText."""
    if isinstance(stored, bytes):
        # A text to SQLite's mind: an old file may hold a path as the bytes it is.
        return stored.decode("utf-8", "surrogateescape")
    if stored is None or not stored.startswith(_MARK):
        return stored
    return unquote_to_bytes(stored[len(_MARK) :]).decode("utf-8", "surrogateescape")


class PathText(TypeDecorator[str]):
    """
    A path as text, whatever its bytes.

    A path that is UTF-8 is stored as it is. One that is not (or that begins like one that is not)
    is stored as `bytes:` and its percent-encoded bytes: neither database takes the surrogates
    that `os.fsdecode` makes of such bytes.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None or (value.isascii() and not value.startswith(_MARK)):
            return value
        raw = value.encode("utf-8", "surrogateescape")
        try:
            raw.decode()
        except UnicodeDecodeError:
            return _MARK + quote_from_bytes(raw)
        return _MARK + quote_from_bytes(raw) if value.startswith(_MARK) else value

    def process_result_value(self, value: str | bytes | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return decode_path(value)


class FileNameText(PathText):
    """A path inside a model, in a key: compared by its bytes on every database."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        return dialect.type_descriptor(KeyText)


class StateText(TypeDecorator[FileState]):
    """A FileState by its name; a name that nobody knows says as much as that nobody looked."""

    impl = KeyText
    cache_ok = True

    def process_bind_param(self, value: FileState | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> FileState | None:  # noqa: ARG002
        return None if value is None else decode_state(value)


_STATES: Final = {state.value: state for state in FileState}


def decode_state(stored: str) -> FileState:
    """A state of the text that it was stored as."""
    return _STATES.get(stored, FileState.UNCHECKED)


class NullsLast(UnaryExpression[Any]):
    """
    Numbers from the greatest down and NULL behind them, in an index.

    It is what SQLite does anyway with a descending order, and what it refuses to be told there.
    """

    inherit_cache = True

    @classmethod
    def of(cls, descending: ColumnElement[Any]) -> NullsLast:
        return cls(descending, modifier=operators.nulls_last_op)


@compiles(NullsLast)
def _say(element: NullsLast, compiler: SQLCompiler, **more: Any) -> str:
    return f"{_leave_unsaid(element, compiler, **more)} NULLS LAST"


@compiles(NullsLast, "sqlite")
def _leave_unsaid(element: NullsLast, compiler: SQLCompiler, **more: Any) -> str:
    text: str = compiler.process(element.element, **more)
    return text
