"""The ways in which a host sets up its SQLite engine."""

import sys

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from model_catalog import prepare_engine

HAS_AUTOCOMMIT = sys.version_info >= (3, 12)
NEEDS_AUTOCOMMIT = pytest.mark.skipif(
    not HAS_AUTOCOMMIT, reason="sqlite3 has `autocommit` since Python 3.12"
)


def send_begin(engine: AsyncEngine) -> None:
    """Have SQLAlchemy send BEGIN, as its documentation advises."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection, _record):
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection):
        connection.exec_driver_sql("BEGIN")


def plain(url) -> AsyncEngine:
    return create_async_engine(url)


def prepared(url) -> AsyncEngine:
    engine = create_async_engine(url)
    prepare_engine(engine)
    return engine


def own_begin(url) -> AsyncEngine:
    engine = create_async_engine(url)
    send_begin(engine)
    return engine


def own_begin_prepared(url) -> AsyncEngine:
    engine = own_begin(url)
    prepare_engine(engine)
    return engine


def prepared_own_begin(url) -> AsyncEngine:
    engine = prepared(url)
    send_begin(engine)
    return engine


def autocommit_off(url) -> AsyncEngine:
    return create_async_engine(url, connect_args={"autocommit": False})


def autocommit_off_prepared(url) -> AsyncEngine:
    engine = autocommit_off(url)
    prepare_engine(engine)
    return engine


PLAIN = {"plain": plain, "prepared": prepared}
WITH_OWN_TRANSACTIONS = {
    "own BEGIN": own_begin,
    "own BEGIN, then prepared": own_begin_prepared,
    "prepared, then own BEGIN": prepared_own_begin,
    "autocommit off": autocommit_off,
    "autocommit off, prepared": autocommit_off_prepared,
}
ENGINES = PLAIN | WITH_OWN_TRANSACTIONS


def marks(name: str) -> list:
    """Return the marks of a test on an engine of this name."""
    if name.startswith("autocommit"):
        # CI runs only the default tests on a newer Python.
        return [NEEDS_AUTOCOMMIT]
    return [] if name in ("plain", "own BEGIN, then prepared") else [pytest.mark.slow]
