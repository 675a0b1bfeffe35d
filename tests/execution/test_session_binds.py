"""Sessions of a host that route reads and writes to different engines."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from conftest import Database, a_model
from sqlalchemy import Delete, Engine, Insert, Update, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from model_catalog import ModelCatalog


@dataclass
class Servers:
    """A leader, and a follower that takes no writes; `sessions` route between them."""

    sessions: async_sessionmaker[AsyncSession]
    statements: dict[str, list[str]]


@pytest.fixture(params=["as documented", "all statements that write"])
async def servers(request, database: Database, tmp_path) -> AsyncIterator[Servers]:
    """The routing session of SQLAlchemy's documentation, over two engines."""
    writing = {"as documented": (Update, Delete)}.get(request.param, (Insert, Update, Delete))
    leader = create_async_engine(database.target_url)
    if database.path is not None:
        replica = tmp_path / "replica.db"
        shutil.copy(database.path, replica)
        follower = create_async_engine(f"sqlite+aiosqlite:///{replica}")
    else:
        follower = create_async_engine(database.target_url)
    statements = {"leader": [], "follower": []}
    for name, engine in (("leader", leader), ("follower", follower)):
        record_statements(engine.sync_engine, statements[name])

    class RoutingSession(Session):
        def get_bind(self, mapper=None, clause=None):
            is_write = self._flushing or isinstance(clause, writing)
            return (leader if is_write else follower).sync_engine

    yield Servers(async_sessionmaker(sync_session_class=RoutingSession), statements)
    await leader.dispose()
    await follower.dispose()


def record_statements(engine: Engine, statements: list[str]) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def record(_connection, _cursor, statement, *_):
        statements.append(statement.split()[0])


def is_written(statements: list[str]) -> bool:
    return any(word in ("INSERT", "UPDATE", "DELETE", "WITH") for word in statements)


async def test_writes_of_a_routing_factory_go_to_the_leader(servers, database):
    """
    Every write is sent to the leader, and a read outside a transaction may go to a follower.
    """
    catalog = ModelCatalog(servers.sessions)

    await catalog.register_model(a_model("m"))
    await catalog.register_models([a_model("n"), a_model("o")])
    await catalog.update_model("m", "hf", description="changed")
    await catalog.remove_model("n", "hf")
    await catalog.list_models()

    assert database.run("SELECT reference FROM models ORDER BY 1") == [("m",), ("o",)]
    assert not is_written(servers.statements["follower"])
    assert "SELECT" in servers.statements["follower"]


async def test_transaction_of_a_routing_factory_is_on_the_leader(servers):
    """
    All calls in a transaction go to the leader, so that a read finds what was written before.
    """
    catalog = ModelCatalog(servers.sessions)

    async with catalog.transaction() as inner:
        await inner.register_model(a_model("m"))
        found = await inner.find_model("m", "hf")

    assert found is not None
    assert servers.statements["follower"] == []


async def test_calls_in_a_routing_session_are_on_the_leader(servers, database):
    """
    A catalog over a session that routes finds what it has written, and commits with the session.
    """
    async with servers.sessions() as session:
        catalog = ModelCatalog(session)
        await catalog.register_model(a_model("m"))
        found = await catalog.find_model("m", "hf")
        assert database.run("SELECT count(*) FROM models") == [(0,)]
        await session.commit()

    assert found is not None
    assert database.run("SELECT count(*) FROM models") == [(1,)]
