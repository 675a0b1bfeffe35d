"""Batching: concurrent calls share a query or a transaction, and each gets its own result."""

import asyncio
import time
from contextlib import closing, contextmanager

import postgres
import psycopg
import pytest
from child_programs import PROCESSES
from conftest import a_model, moment
from sqlalchemy import event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    CatalogError,
    CatalogUnavailableError,
    InvalidModelError,
    ModelCatalog,
    TransactionError,
    open_catalog,
)
from model_catalog.concurrency.batching import Coalescer
from model_catalog.repository.operations.registration import UpsertRow, group_by_statement

ON_POSTGRESQL = pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
PROMPT_S = 1.5
"""Much longer than a call that is not blocked, and far less than its timeout of 30 seconds."""


def values_of(model):
    """Return all attributes of a model."""
    if model is None:
        return None
    return {name: value for name, value in vars(model).items() if name != "_sa_instance_state"}


@contextmanager
def recorded_statements(engine):
    """Record the statements and the commits of an engine during the block."""
    statements, commits = [], []

    def record_statement(_connection, _cursor, statement, *_):
        statements.append(statement)

    def record_commit(connection):
        commits.append(connection)

    event.listen(engine, "before_cursor_execute", record_statement)
    event.listen(engine, "commit", record_commit)
    yield statements, commits
    event.remove(engine, "before_cursor_execute", record_statement)
    event.remove(engine, "commit", record_commit)


@contextmanager
def locked_row(database, reference):
    """Lock the row of one model from another connection."""
    with closing(psycopg.connect(postgres.dsn(database.url))) as other:
        other.execute("SELECT FROM models WHERE reference = %s FOR UPDATE", [reference])
        yield
        other.rollback()


@contextmanager
def installed_trigger(database, body, *, at_commit=False):
    """Install a trigger whose body runs for each model that is written."""
    database.run(
        "CREATE OR REPLACE FUNCTION test_trigger() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} RETURN NEW; END $$"
    )
    kind, when = (
        ("CONSTRAINT TRIGGER", "AFTER INSERT OR UPDATE ON models DEFERRABLE INITIALLY DEFERRED")
        if at_commit
        else ("TRIGGER", "BEFORE INSERT OR UPDATE ON models")
    )
    database.run(f"CREATE {kind} test_trigger {when} FOR EACH ROW EXECUTE FUNCTION test_trigger()")
    try:
        yield
    finally:
        database.run("DROP FUNCTION test_trigger CASCADE")


async def until_a_query_waits_for_a_lock(database):
    while not await asyncio.to_thread(
        database.run,
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()",
    ):
        await asyncio.sleep(0.01)


async def timed(call):
    """Return the result or the error of a call, and its duration in seconds."""
    start = time.monotonic()
    try:
        result = await call
    except CatalogError as error:
        result = error
    return result, time.monotonic() - start


async def fill(catalog, database):
    """Register models with one or more versions, aliases, tags, and a missing download time."""
    for number, version in enumerate(("v1", "v2", "v3")):
        await catalog.register_model(a_model("m", version=version, downloaded_at=moment(number)))
    await catalog.register_models(
        [a_model("n", version=version, downloaded_at=moment(7)) for version in ("", "b", "a")]
    )
    await catalog.register_model(a_model("M", provider="other", size_bytes=7, license="mit"))
    await catalog.register_model(a_model("old"))
    await catalog.register_model(a_model("older", version="1"))
    await catalog.register_model(a_model("older", version="2", downloaded_at=moment(1)))
    database.run("UPDATE models SET downloaded_at = NULL WHERE reference = 'old' OR version = '1'")
    await catalog.set_alias("m", "hf", "stable", "v1")
    await catalog.set_alias("n", "hf", "stable", "b")
    # An alias with the name of a version: the version is found first.
    await catalog.set_alias("m", "hf", "later", "v2")
    await catalog.register_model(a_model("m", version="later", downloaded_at=moment(0)))
    await catalog.tag_model("m", "hf", "chat", "Äpfel", version="v2")


KEYS = [
    *(("m", "hf", version) for version in ("v1", "v2", "v3", "stable", "later", "", "V1", None)),
    *(("n", "hf", version) for version in ("", "a", "b", "c", "stable", None)),
    *(("M", "hf", None), ("M", "other", None), ("M", "other", ""), ("m", "other", None)),
    *(("old", "hf", None), ("old", "hf", ""), ("older", "hf", None), ("older", "hf", "1")),
    *(("nothing", "hf", None), ("nothing", "hf", "v1"), ("'", '"', "{,}\\"), ("m ", "hf", None)),
]


async def test_concurrent_finds_return_the_same_as_single_finds(catalog, database):
    """
    By version, by alias, the newest, and no model; also when a key is requested twice.
    """
    await fill(catalog, database)
    single = [await catalog.find_model(*key) for key in KEYS]

    concurrent = await asyncio.gather(*(catalog.find_model(*key) for key in KEYS * 2))

    assert [values_of(each) for each in concurrent] == [values_of(each) for each in single] * 2
    assert sum(each is not None for each in single) == 17
    assert len({id(each) for each in concurrent if each is not None}) == 34


@ON_POSTGRESQL
async def test_concurrent_finds_are_one_query(database):
    """
    Sixty-four finds are one query, and its text does not depend on their number.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_models(a_model(f"m{n}") for n in range(64))
        with recorded_statements(catalog._executor._engine) as (statements, _):
            found = await asyncio.gather(*(catalog.find_model(f"m{n}", "hf") for n in range(64)))
            await asyncio.gather(*(catalog.find_model(f"m{n}", "hf") for n in range(7)))

    assert [model.reference for model in found] == [f"m{n}" for n in range(64)]
    queries = [text for text in statements if "FROM unnest" in text]
    assert len(queries) == 2
    assert len(set(queries)) == 1
    assert len(statements) <= 4


@ON_POSTGRESQL
async def test_concurrent_registrations_share_transactions(database):
    """
    Sixty-four registrations need at most two commits, and each returns its own model.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("m7"))
        await catalog.tag_model("m7", "hf", "chat")
        with recorded_statements(catalog._executor._engine) as (_, commits):
            models = await asyncio.gather(
                *(catalog.register_model(a_model(f"m{n}", size_bytes=n)) for n in range(64))
            )

        assert len(commits) <= 2
        assert [(each.reference, each.size_bytes) for each in models] == [
            (f"m{n}", n) for n in range(64)
        ]
        assert {each.reference: each.tags for each in models if each.tags} == {"m7": ("chat",)}
        stored = [await catalog.get_model(f"m{n}", "hf") for n in range(64)]
        assert [values_of(each) for each in models] == [values_of(each) for each in stored]


async def test_concurrent_registrations_of_one_key_are_all_counted(catalog):
    """
    Each registration increments `download_count` and writes only the fields that it sets.
    """
    fields = [{"license": "mit"}, {"size_bytes": 7}, {"description": "good"}, {}]

    models = await asyncio.gather(
        *(
            catalog.register_model(a_model("m", version=version, **fields[n % 4]))
            for n in range(24)
            for version in ("v1", "v2")
        )
    )

    for version in ("v1", "v2"):
        counts = [each.download_count for each in models if each.version == version]
        assert sorted(counts) == list(range(1, 25))
        last = await catalog.get_model("m", "hf", version)
        assert (last.license, last.size_bytes, last.description) == ("mit", 7, "good")


@ON_POSTGRESQL
async def test_locked_row_delays_only_its_own_caller(database):
    """
    The other calls of the same batch are completed without it after a short wait.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("locked"))
        with locked_row(database, "locked"):
            blocked = asyncio.create_task(catalog.register_model(a_model("locked")))
            others = await asyncio.gather(
                *(timed(catalog.register_model(a_model(f"m{n}"))) for n in range(20))
            )
            later = await asyncio.gather(
                *(timed(catalog.register_model(a_model(f"n{n}"))) for n in range(20))
            )
            assert not blocked.done()
        model = await asyncio.wait_for(blocked, PROMPT_S)

        assert model.download_count == 2
        assert max(seconds for _, seconds in others) < PROMPT_S
        assert max(seconds for _, seconds in later) < PROMPT_S
        assert await catalog.count_models() == 41


@pytest.mark.slow_with("conflict at commit")
@ON_POSTGRESQL
@pytest.mark.parametrize(
    ("state", "at_commit"),
    [("23514", False), ("42501", False), ("40001", False), ("23514", True), ("40001", True)],
    ids=["check", "permission", "conflict", "check at commit", "conflict at commit"],
)
async def test_rejected_row_fails_only_its_own_call(database, state, at_commit):
    """
    The other calls of the batch are stored exactly once, whatever the error and its time.
    """
    refuse = f"IF NEW.reference = 'bad' THEN RAISE 'no' USING ERRCODE = '{state}'; END IF;"
    # A conflict is repeated until the timeout. The other errors are raised at once: with a short
    # timeout, a busy machine would have no time for the 21 transactions and their connections.
    timeout_s = 1 if state == "40001" else 30
    async with open_catalog(database.target, timeout_s=timeout_s) as catalog:
        with installed_trigger(database, refuse, at_commit=at_commit):
            names = [*(f"m{n}" for n in range(10)), "bad", *(f"n{n}" for n in range(10))]
            found = await asyncio.gather(
                *(timed(catalog.register_model(a_model(name))) for name in names)
            )

        failed = [
            name
            for name, (each, _) in zip(names, found, strict=True)
            if isinstance(each, CatalogError)
        ]
        assert failed == ["bad"]
        assert {each.download_count for each in await catalog.list_models()} == {1}
        assert await catalog.count_models() == 20


async def test_invalid_model_does_not_join_a_batch(catalog):
    """
    A model that validation rejects fails alone, before anything is sent to the database.
    """
    results = await asyncio.gather(
        *(catalog.register_model(a_model(name)) for name in ("a", "\0", "b")),
        return_exceptions=True,
    )

    assert [type(each).__name__ for each in results] == ["Model", "InvalidModelError", "Model"]
    assert isinstance(results[1], InvalidModelError)
    assert await catalog.count_models() == 2


@pytest.mark.slow
@ON_POSTGRESQL
async def test_slow_row_leaves_time_for_the_other_calls(database):
    """
    If one row takes too long, the other calls still have time to be stored without it.
    """
    slow = "IF NEW.reference = 'slow' THEN PERFORM pg_sleep(60); END IF;"
    async with open_catalog(database.target, timeout_s=2) as catalog:
        with installed_trigger(database, slow):
            (slow, seconds), *others = await asyncio.gather(
                *(timed(catalog.register_model(a_model(name))) for name in ("slow", "a", "b"))
            )

        assert isinstance(slow, CatalogBusyError)
        assert 1.8 < seconds < 2 + PROMPT_S
        assert [model.reference for model, _ in others] == ["a", "b"]
        database.assert_no_lock()


@ON_POSTGRESQL
async def test_unanswered_commit_fails_all_calls_of_the_batch(database):
    """
    Whether they were committed is unknown, and each call says so.
    """
    async with open_catalog(database.target, timeout_s=0.4) as catalog:
        with installed_trigger(database, "PERFORM pg_sleep(5);", at_commit=True):
            found = await asyncio.gather(
                *(timed(catalog.register_model(a_model(f"m{n}"))) for n in range(8))
            )

        for error, seconds in found:
            assert isinstance(error, CatalogUnavailableError)
            assert "not known" in str(error)
            assert seconds < PROMPT_S


@ON_POSTGRESQL
async def test_lost_commit_is_not_repeated(database):
    """
    If the server drops the connection at COMMIT, no model is registered a second time.
    """
    database.run("CREATE SEQUENCE IF NOT EXISTS commits")
    database.run("ALTER SEQUENCE commits RESTART")
    once = "IF nextval('commits') = 1 THEN PERFORM pg_sleep(60); END IF;"
    async with open_catalog(database.target) as catalog:
        with installed_trigger(database, once, at_commit=True):
            calls = asyncio.gather(
                *(timed(catalog.register_model(a_model(f"m{n}"))) for n in range(8))
            )
            while not database.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE wait_event = 'PgSleep' AND datname = current_database()"
            ):
                await asyncio.sleep(0.01)
            found = await asyncio.wait_for(calls, PROMPT_S)

        assert {type(error) for error, _ in found} == {CatalogUnavailableError}
        assert await catalog.count_models() == 0
    database.run("DROP SEQUENCE commits")


@ON_POSTGRESQL
@pytest.mark.parametrize("kind", ["find", "register"])
async def test_cancelled_call_does_not_affect_the_other_calls(database, kind):
    """
    The other calls get their results. A cancelled read ends at once, a cancelled write after its
    transaction has ended.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_models(a_model(f"m{n}") for n in range(8))
        with postgres.table_locked(database.url):
            tasks = [
                asyncio.create_task(
                    catalog.find_model(f"m{n}", "hf")
                    if kind == "find"
                    else catalog.register_model(a_model(f"m{n}"))
                )
                for n in range(8)
            ]
            await until_a_query_waits_for_a_lock(database)
            for task in tasks[::2]:
                task.cancel()
            done, _ = await asyncio.wait(tasks[::2], timeout=PROMPT_S)
            assert len(done) == 4
            assert not any(task.done() for task in tasks[1::2])
        others = await asyncio.wait_for(asyncio.gather(*tasks[1::2]), PROMPT_S)

        assert all(task.cancelled() for task in tasks[::2])
        assert [model.reference for model in others] == ["m1", "m3", "m5", "m7"]


@ON_POSTGRESQL
async def test_query_without_callers_is_cancelled(database):
    """
    When all callers have been cancelled, the query is cancelled in the server.
    """
    async with open_catalog(database.target) as catalog:
        with postgres.table_locked(database.url):
            tasks = [asyncio.create_task(catalog.find_model(f"m{n}", "hf")) for n in range(8)]
            await until_a_query_waits_for_a_lock(database)
            for task in tasks:
                task.cancel()
            done, _ = await asyncio.wait(tasks, timeout=PROMPT_S)

            assert len(done) == 8
            assert (
                database.run(
                    "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%unnest%' "
                    "AND state = 'active' AND pid <> pg_backend_pid()"
                )
                == []
            )
        assert await catalog.find_model("m", "hf") is None


@pytest.mark.slow
@ON_POSTGRESQL
async def test_each_call_has_its_own_timeout(database):
    """
    Calls that start later time out later, each after its own timeout.
    """
    async with open_catalog(database.target, timeout_s=0.6) as catalog:
        with postgres.table_locked(database.url):
            tasks = []
            for number in range(30):
                tasks += [
                    asyncio.create_task(timed(catalog.find_model(f"m{number}", "hf"))),
                    asyncio.create_task(timed(catalog.register_model(a_model(f"m{number}")))),
                ]
                await asyncio.sleep(0.01)
            found = await asyncio.gather(*tasks)

        assert {type(error) for error, _ in found} == {CatalogBusyError}
        assert min(error.waited_s for error, _ in found) > 0.5
        assert max(seconds for _, seconds in found) < 0.6 + PROMPT_S / 3
        database.assert_no_lock()


async def test_calls_in_a_transaction_are_not_batched(catalog):
    """
    They are part of the transaction. A write of the outer catalog would wait for it, and raises.
    """
    async with catalog.transaction() as inner:
        await asyncio.gather(*(inner.register_model(a_model(f"m{n}")) for n in range(4)))
        assert await catalog.find_model("m0", "hf") is None
        found = await asyncio.gather(*(inner.find_model(f"m{n}", "hf") for n in range(4)))
        assert None not in found
        with pytest.raises(TransactionError):
            await catalog.register_model(a_model("outside"))


@ON_POSTGRESQL
async def test_calls_over_host_sessions_are_not_batched(database):
    """
    A host's tasks may use sessions of different tenants.
    """
    engine = create_async_engine(database.target_url)
    catalogs = [ModelCatalog(async_sessionmaker(engine))]
    try:
        async with open_catalog(engine) as opened:
            catalogs.append(opened)
            for number, catalog in enumerate(catalogs):
                with recorded_statements(engine.sync_engine) as (statements, commits):
                    await asyncio.gather(
                        *(catalog.register_model(a_model(f"{number}-{n}")) for n in range(8)),
                        *(catalog.find_model(f"m{n}", "hf") for n in range(8)),
                    )
                assert not [text for text in statements if "unnest" in text]
                assert len(commits) == 16
    finally:
        await engine.dispose()


async def test_queued_calls_are_completed_on_close(database):
    """
    Calls that were made before the end of the block are completed, also those in a queue.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("m"))
        tasks = []
        for number in range(8):
            tasks += [
                asyncio.create_task(catalog.find_model("m", "hf")),
                asyncio.create_task(catalog.register_model(a_model(f"m{number}"))),
            ]
            await asyncio.sleep(0)
    found = await asyncio.gather(*tasks)

    assert [each.reference for each in found[::2]] == ["m"] * 8
    assert [each.reference for each in found[1::2]] == [f"m{number}" for number in range(8)]


def register_repeatedly(target, names):
    async def run():
        async with open_catalog(target, timeout_s=20) as catalog:
            for _ in range(5):
                await asyncio.gather(*(catalog.register_model(a_model(name)) for name in names))

    asyncio.run(run())


@ON_POSTGRESQL
async def test_processes_that_register_the_same_models_do_not_deadlock(database):
    """
    Each process locks the rows in the same order, whatever the order of its tasks.
    """
    names = [f"m{n}" for n in range(32)]
    count_deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = database.run(count_deadlocks)
    writers = [
        PROCESSES.Process(target=register_repeatedly, args=(database.target, each))
        for each in (names, names[::-1], names[16:] + names[:16])
    ]

    for writer in writers:
        writer.start()
    await asyncio.to_thread(lambda: [writer.join(60) for writer in writers])

    assert [writer.exitcode for writer in writers] == [0] * 3
    assert set(database.run("SELECT download_count FROM models")) == {(15,)}
    assert database.run(count_deadlocks) == before


def test_rows_are_locked_in_the_order_of_their_keys():
    """
    So two transactions cannot deadlock, whatever the order of the calls and the fields they set. A
    second registration of a key is in another statement.
    """
    shapes = [{"license": "mit"}, {"size_bytes": 7}]
    models = [a_model(f"m{n % 7}", **shapes[n % 2]) for n in (5, 3, 6, 1, 12, 0, 2, 4, 10)]
    registrations = [UpsertRow.from_model(model) for model in models]

    statements = [
        [registrations[at] for at in batch] for batch in group_by_statement(registrations)
    ]

    locked = [each.row["reference"] for batch in statements for each in batch]
    assert locked == ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m3", "m5"]
    assert all(len({each.statement_key for each in batch}) == 1 for batch in statements)
    assert all(len({each.key for each in batch}) == len(batch) for batch in statements)


@pytest.mark.parametrize(("reads", "timeout_s"), [(False, 5), (True, 9)], ids=["write", "read"])
async def test_write_batch_has_the_shortest_timeout_and_read_batch_the_longest(reads, timeout_s):
    """
    A call cannot leave a write batch before it ends, but it can leave a read batch.
    """
    timeouts_s = []

    async def run(items, left_s):
        timeouts_s.append(left_s)
        return items

    coalescer = Coalescer(run, reads=reads)
    await asyncio.gather(coalescer.submit("a", 9), coalescer.submit("b", 5))

    assert timeouts_s == [pytest.approx(timeout_s, abs=0.5)]


async def test_calls_during_a_batch_form_the_next_batch():
    """
    The calls of one loop iteration form a batch; the calls during that batch form the next one.
    """
    batches, proceed = [], asyncio.Event()

    async def run(items, _left_s):
        batches.append(items)
        await proceed.wait()
        return [-item for item in items]

    coalescer = Coalescer(run)
    first = [asyncio.create_task(coalescer.submit(n, 5)) for n in range(100)]
    await asyncio.sleep(0.01)
    second = [asyncio.create_task(coalescer.submit(n, 5)) for n in range(100, 120)]
    await asyncio.sleep(0.01)
    second[3].cancel()
    proceed.set()
    results = await asyncio.gather(*first, *second, return_exceptions=True)

    assert batches == [[*range(100)], [n for n in range(100, 120) if n != 103]]
    assert [n for n, each in enumerate(results) if each != -n] == [103]


async def test_number_of_concurrent_batches_is_limited():
    """
    A stuck batch does not block later ones until all allowed batches are stuck.
    """
    release, completed = asyncio.Event(), []

    async def run(items, _left_s):
        if "stuck" in items:
            await release.wait()
        completed.extend(items)
        return items

    coalescer = Coalescer(run, max_concurrent=2)
    tasks = []
    for name in ("stuck", "a", "b", "stuck", "c"):
        tasks.append(asyncio.create_task(coalescer.submit(name, 5)))
        await asyncio.sleep(0.01)
    assert completed == ["a", "b"]
    release.set()
    assert await asyncio.gather(*tasks) == ["stuck", "a", "b", "stuck", "c"]


def test_ending_loop_cancels_batches_quietly():
    """
    If a loop ends during a batch or before it, nothing hangs and no error is reported.
    """
    reported = []

    async def run(items, _left_s):
        await asyncio.sleep(60)
        return items

    async def program(iterations):
        asyncio.get_running_loop().set_exception_handler(lambda _, each: reported.append(each))
        coalescer = Coalescer(run)
        tasks = [asyncio.create_task(coalescer.submit(n, 90)) for n in range(3)]
        for _ in range(iterations):
            await asyncio.sleep(0)
        assert len(tasks) == 3

    start = time.monotonic()
    for iterations in range(4):
        asyncio.run(program(iterations))

    assert reported == []
    assert time.monotonic() - start < 5


async def test_calls_of_a_failed_batch_raise_errors_of_their_own():
    """
    What one task adds to its error does not appear in the errors of the other tasks.
    """

    async def run(_items, _left_s):
        raise CatalogUnavailableError("here", "it is gone") from OSError("unplugged")

    coalescer = Coalescer(run)
    errors = await asyncio.gather(
        *(coalescer.submit(n, 5) for n in range(3)), return_exceptions=True
    )
    errors[0].add_note("of the first task")

    assert len({id(error) for error in errors}) == 3
    assert [getattr(error, "__notes__", None) for error in errors[1:]] == [None, None]
    assert all(isinstance(error.__cause__, OSError) and error.reason for error in errors)
