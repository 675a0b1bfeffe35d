"""The time of the database's clock, and leases that expire by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Table, cast, extract, func

_UNIX_EPOCH: Final = 2440587.5
"""The Julian day of 1970-01-01: https://www.sqlite.org/lang_datefunc.html"""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def now_ms(dialect: str) -> ColumnElement[int]:
    """
    Return the database's time in milliseconds since 1970.

    All hosts that share a PostgreSQL database share its clock. SQLite has that of its host.
    """
    milliseconds: ColumnElement[Any]
    if dialect == "sqlite":
        milliseconds = (func.julianday("now") - _UNIX_EPOCH) * 86_400_000
    else:
        # now() would be the time at which the transaction began.
        milliseconds = extract("epoch", func.clock_timestamp()) * 1000
    return cast(milliseconds, BigInteger)


def is_valid(table: Table, now: ColumnElement[int]) -> ColumnElement[bool]:
    """
    Return whether the lease of a row has not expired at a time in milliseconds.

    A clock that was set back must not extend a lease: one that begins in the future has expired.
    """
    return now.between(table.c.renewed_at_ms, table.c.expires_at_ms)


def to_datetime(milliseconds: int) -> datetime:
    """Return a time in UTC, from milliseconds since 1970."""
    return _EPOCH + timedelta(milliseconds=milliseconds)
