"""The renewal of many leases: short transactions, between which other processes can write."""

import asyncio
from contextlib import AsyncExitStack, contextmanager

import pytest
from download_helpers import Downloader, until
from sqlalchemy import Engine, event

from model_catalog import Model
from model_catalog.downloads import get_or_download, leases, use_model
from model_catalog.downloads.leases import keeper_of
from model_catalog.downloads.queries import batches

pytestmark = pytest.mark.slow

BATCH_SIZE = 50
"""The leases that a statement renews in the test. They are 500 otherwise."""

LEASE_COUNT = BATCH_SIZE + 1
"""Of claims, and of uses."""


@contextmanager
def recorded_transactions():
    """Yield the transactions of all engines in the process, as lists of their changes."""
    transactions = []

    def begin(_connection):
        transactions.append([])

    def execute(_connection, _cursor, statement, *_):
        if statement.startswith("BEGIN"):
            transactions.append([])
        elif statement.startswith(("INSERT", "UPDATE", "DELETE")):
            transactions[-1].append(statement)

    event.listen(Engine, "begin", begin)
    event.listen(Engine, "before_cursor_execute", execute)
    try:
        yield transactions
    finally:
        event.remove(Engine, "begin", begin)
        event.remove(Engine, "before_cursor_execute", execute)


@pytest.mark.parametrize("backend", ["sqlite", "asyncpg"])
async def test_the_renewal_of_many_leases_holds_no_lock_for_two_statements(
    catalog, database, tmp_path, monkeypatch
):
    """
    Another process can write after each statement: it ends its transaction. The bytes of downloads
    are written apart from the leases.
    """
    monkeypatch.setattr(leases, "_BATCH_SIZE", BATCH_SIZE)
    monkeypatch.setattr(batches, "_BATCH_SIZE", BATCH_SIZE)
    release = asyncio.Event()
    download = Downloader(tmp_path / "m", release=release)
    names = [f"local:m{number}" for number in range(LEASE_COUNT)]
    await catalog.register_models(
        Model(provider="hf", reference=f"u{number}", local_path=f"/u{number}")
        for number in range(LEASE_COUNT)
    )

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(get_or_download(catalog, name, download, lease_s=600))
        for number in range(LEASE_COUNT):
            await stack.enter_async_context(use_model(catalog, f"hf:u{number}", lease_s=600))
        await until(lambda: download.count == LEASE_COUNT)
        before = expiries(database)
        with recorded_transactions() as transactions:
            await keeper_of(catalog).renew()
            for claim in download.claims:
                claim.report(1, 2)
            await until(lambda: all(count == 1 for count in done_bytes(database)))
        after = expiries(database)
        release.set()

    changes = [each for each in transactions if each]
    # Two batches of claims, of uses, and of progress.
    assert [len(each) for each in changes] == [1] * 6
    assert len(before) == 2 * LEASE_COUNT
    assert all(after[token] > before[token] for token in before)


def expiries(database):
    """When each lease of the database ends."""
    claims = database.run("SELECT token, expires_at_ms FROM model_claims")
    return dict(claims + database.run("SELECT token, expires_at_ms FROM model_uses"))


def done_bytes(database):
    return [count for (count,) in database.run("SELECT done_bytes FROM model_downloads")]
