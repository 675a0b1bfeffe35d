"""Objects of a wrong type that are given to ModelCatalog, open_catalog and the other functions."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from model_catalog import (
    InvalidTargetError,
    ModelCatalog,
    backup,
    downgrade,
    open_catalog,
    schema_state,
    upgrade,
)

URL = "postgresql+psycopg://user:hunter2@127.0.0.1:1/db?secret=hunter2"


def async_engine():
    return create_async_engine(URL)


def sync_engine():
    return sa.create_engine(URL)


# Each makes an object, and the words of the error that say what to give instead.
WRONG_FOR_BOTH: dict[str, tuple[Callable[[], object], str]] = {
    "class": (lambda: AsyncSession, "give an object of it"),
    "engine without asyncio": (sync_engine, "create_async_engine"),
    "session without asyncio": (lambda: Session(sync_engine()), "create_async_engine"),
    "factory without asyncio": (lambda: sessionmaker(sync_engine()), "create_async_engine"),
    "scoped session without asyncio": (
        lambda: scoped_session(sessionmaker(sync_engine())),
        "create_async_engine",
    ),
    "scoped session": (
        lambda: async_scoped_session(async_sessionmaker(async_engine()), scopefunc=id),
        "the AsyncSession that it returns",
    ),
    "connection": (
        lambda: AsyncConnection(async_engine()),
        r"ModelCatalog\(AsyncSession\(connection\)\)",
    ),
    "function": (lambda: async_engine, "an async_sessionmaker or an AsyncSession"),
    "number": (lambda: 3, "an async_sessionmaker or an AsyncSession"),
}
WRONG_FOR_MODEL_CATALOG = {
    **WRONG_FOR_BOTH,
    "engine": (
        async_engine,
        r"open_catalog\(engine\).* ModelCatalog\(async_sessionmaker\(engine\)\)",
    ),
    "path": (lambda: Path("catalog.db"), r"async with open_catalog\("),
    "text": (lambda: URL, r"async with open_catalog\("),
    "URL": (lambda: sa.make_url(URL), r"async with open_catalog\("),
    "None": (lambda: None, r"async with open_catalog\("),
}
WRONG_FOR_OPEN_CATALOG = {
    **WRONG_FOR_BOTH,
    "factory": (lambda: async_sessionmaker(async_engine()), r"ModelCatalog\("),
    "session": (lambda: AsyncSession(async_engine()), r"ModelCatalog\("),
}


def given(cases):
    return pytest.mark.parametrize(("make", "advice"), cases.values(), ids=cases)


@given(WRONG_FOR_MODEL_CATALOG)
def test_model_catalog_says_what_to_give_instead(make, advice):
    """
    Another object than a session or its factory is InvalidTargetError at once, without a secret.
    """
    with pytest.raises(InvalidTargetError, match=advice) as caught:
        ModelCatalog(make())

    assert "hunter2" not in str(caught.value)


@given(WRONG_FOR_OPEN_CATALOG)
@pytest.mark.parametrize("name", ["open_catalog", "upgrade", "downgrade", "schema_state", "backup"])
async def test_functions_with_a_target_say_what_to_give_instead(make, advice, name, tmp_path):
    """
    Another object than a path, a URL or an AsyncEngine is InvalidTargetError, without a secret.
    """
    target = make()
    calls = {
        "open_catalog": lambda: open_catalog(target).__aenter__(),
        "upgrade": lambda: upgrade(target),
        "downgrade": lambda: downgrade(target, "base"),
        "schema_state": lambda: schema_state(target),
        "backup": lambda: backup(target, tmp_path / "copy.db"),
    }

    with pytest.raises(InvalidTargetError, match=advice) as caught:
        await calls[name]()

    assert "hunter2" not in str(caught.value)


def test_factory_of_a_synchronous_engine_is_rejected():
    """
    A factory of async sessions over a synchronous engine raises CatalogError.
    """
    sessions = async_sessionmaker(sync_engine())

    with pytest.raises(InvalidTargetError, match="create_async_engine"):
        ModelCatalog(sessions)


async def test_engine_of_another_database_is_rejected():
    """
    An AsyncEngine of a database that is neither SQLite nor PostgreSQL raises InvalidTargetError.
    """
    # A driver of SQL Server that is never called.
    driver = SimpleNamespace(paramstyle="qmark", version="5.0", Cursor=object)
    engine = create_async_engine(
        "mssql+aioodbc://user:hunter2@127.0.0.1:1/db?driver=x", module=driver
    )

    for call in (
        lambda: ModelCatalog(async_sessionmaker(engine)),
        lambda: ModelCatalog(AsyncSession(engine)),
        lambda: open_catalog(engine).__aenter__(),
    ):
        with pytest.raises(InvalidTargetError, match="neither SQLite nor PostgreSQL") as caught:
            await call()
        assert "hunter2" not in str(caught.value)
