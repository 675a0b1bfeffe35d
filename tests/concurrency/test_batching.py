"""Calls that come together: one for the database, and to each caller as if he had come alone."""

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
SOON_S = 1.5
"""Many times what a call takes that nobody holds up, and far less than its thirty seconds."""


def values_of(model):
    """All that is to be read of a model."""
    if model is None:
        return None
    return {name: value for name, value in vars(model).items() if name != "_sa_instance_state"}


@contextmanager
def counted(engine):
    """The statements that an engine executes meanwhile, and its commits."""
    statements, commits = [], []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement)

    def note_commit(connection):
        commits.append(connection)

    event.listen(engine, "before_cursor_execute", note)
    event.listen(engine, "commit", note_commit)
    yield statements, commits
    event.remove(engine, "before_cursor_execute", note)
    event.remove(engine, "commit", note_commit)


@contextmanager
def row_taken(database, reference):
    """Somebody else's unfinished change of one model."""
    with closing(psycopg.connect(postgres.dsn(database.url))) as other:
        other.execute("SELECT FROM models WHERE reference = %s FOR UPDATE", [reference])
        yield
        other.rollback()


@contextmanager
def trigger(database, body, *, at_commit=False):
    """Something that the server does for each model that is written."""
    database.run(
        "CREATE OR REPLACE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} RETURN NEW; END $$"
    )
    kind, when = (
        ("CONSTRAINT TRIGGER", "AFTER INSERT OR UPDATE ON models DEFERRABLE INITIALLY DEFERRED")
        if at_commit
        else ("TRIGGER", "BEFORE INSERT OR UPDATE ON models")
    )
    database.run(f"CREATE {kind} meddle {when} FOR EACH ROW EXECUTE FUNCTION meddle()")
    try:
        yield
    finally:
        database.run("DROP FUNCTION meddle CASCADE")


async def waits_for_a_lock(database):
    while not await asyncio.to_thread(
        database.run,
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()",
    ):
        await asyncio.sleep(0.01)


async def timed(call):
    """What a call returned or raised, and how long it took."""
    start = time.monotonic()
    try:
        result = await call
    except CatalogError as error:
        result = error
    return result, time.monotonic() - start


async def fill(catalog, database):
    """Models of one version and of several, with and without a moment, with aliases and tags."""
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
    # An alias that is also a version: a name that came first is not taken away by the other.
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


async def test_finds_that_come_together_find_what_each_would_alone(catalog, database):
    """
    By a version, by an alias, the newest, nothing; also where one key is asked for twice.
    """
    await fill(catalog, database)
    alone = [await catalog.find_model(*key) for key in KEYS]

    together = await asyncio.gather(*(catalog.find_model(*key) for key in KEYS * 2))

    assert [values_of(each) for each in together] == [values_of(each) for each in alone] * 2
    assert sum(each is not None for each in alone) == 17
    assert len({id(each) for each in together if each is not None}) == 34


@ON_POSTGRESQL
async def test_finds_that_come_together_are_one_query(database):
    """
    Sixty-four tasks ask the server once, and their text is that of any other number's.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_models(a_model(f"m{n}") for n in range(64))
        with counted(catalog._executor._engine) as (statements, _):
            found = await asyncio.gather(*(catalog.find_model(f"m{n}", "hf") for n in range(64)))
            await asyncio.gather(*(catalog.find_model(f"m{n}", "hf") for n in range(7)))

    assert [model.reference for model in found] == [f"m{n}" for n in range(64)]
    queries = [text for text in statements if "FROM unnest" in text]
    assert len(queries) == 2
    assert len(set(queries)) == 1
    assert len(statements) <= 4


@ON_POSTGRESQL
async def test_registrations_that_come_together_share_transactions(database):
    """
    Sixty-four tasks commit a few times, and each is told of its own model.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("m7"))
        await catalog.tag_model("m7", "hf", "chat")
        with counted(catalog._executor._engine) as (_, commits):
            models = await asyncio.gather(
                *(catalog.register_model(a_model(f"m{n}", size_bytes=n)) for n in range(64))
            )

        assert len(commits) <= 2
        assert [(each.reference, each.size_bytes) for each in models] == [
            (f"m{n}", n) for n in range(64)
        ]
        assert {each.reference: each.tags for each in models if each.tags} == {"m7": ("chat",)}
        alone = [await catalog.get_model(f"m{n}", "hf") for n in range(64)]
        assert [values_of(each) for each in models] == [values_of(each) for each in alone]


async def test_who_registers_the_same_model_at_once_is_counted_each(catalog):
    """
    Of one key each registration is one more, and sets what it sets and nothing else.
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
async def test_a_row_that_is_taken_holds_up_its_own_caller_alone(database):
    """
    The others of the same transaction do without him after a moment.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("taken"))
        with row_taken(database, "taken"):
            held_up = asyncio.create_task(catalog.register_model(a_model("taken")))
            others = await asyncio.gather(
                *(timed(catalog.register_model(a_model(f"m{n}"))) for n in range(20))
            )
            late = await asyncio.gather(
                *(timed(catalog.register_model(a_model(f"n{n}"))) for n in range(20))
            )
            assert not held_up.done()
        model = await asyncio.wait_for(held_up, SOON_S)

        assert model.download_count == 2
        assert max(seconds for _, seconds in others) < SOON_S
        assert max(seconds for _, seconds in late) < SOON_S
        assert await catalog.count_models() == 41


@ON_POSTGRESQL
@pytest.mark.parametrize(
    ("state", "at_commit"),
    [("23514", False), ("42501", False), ("40001", False), ("23514", True), ("40001", True)],
    ids=["check", "rights", "conflict", "check at the commit", "conflict at the commit"],
)
async def test_what_is_refused_is_told_to_its_own_caller_alone(database, state, at_commit):
    """
    Whatever the server refuses one of them for, and when: the others are stored, and once.
    """
    refuse = f"IF NEW.reference = 'bad' THEN RAISE 'no' USING ERRCODE = '{state}'; END IF;"
    async with open_catalog(database.target, timeout_s=1) as catalog:
        with trigger(database, refuse, at_commit=at_commit):
            names = [*(f"m{n}" for n in range(10)), "bad", *(f"n{n}" for n in range(10))]
            found = await asyncio.gather(
                *(timed(catalog.register_model(a_model(name))) for name in names)
            )

        wrong = [
            name
            for name, (each, _) in zip(names, found, strict=True)
            if isinstance(each, CatalogError)
        ]
        assert wrong == ["bad"]
        assert {each.download_count for each in await catalog.list_models()} == {1}
        assert await catalog.count_models() == 20


async def test_what_may_not_be_stored_never_comes_to_the_others(catalog):
    """
    A model that is refused before the database sees it is refused alone.
    """
    results = await asyncio.gather(
        *(catalog.register_model(a_model(name)) for name in ("a", "\0", "b")),
        return_exceptions=True,
    )

    assert [type(each).__name__ for each in results] == ["Model", "InvalidModelError", "Model"]
    assert isinstance(results[1], InvalidModelError)
    assert await catalog.count_models() == 2


@ON_POSTGRESQL
async def test_a_slow_row_leaves_the_others_their_time(database):
    """
    Where one of them takes for ever, the others have time left to be stored without him.
    """
    slow = "IF NEW.reference = 'slow' THEN PERFORM pg_sleep(60); END IF;"
    async with open_catalog(database.target, timeout_s=2) as catalog:
        with trigger(database, slow):
            (slow, seconds), *others = await asyncio.gather(
                *(timed(catalog.register_model(a_model(name))) for name in ("slow", "a", "b"))
            )

        assert isinstance(slow, CatalogBusyError)
        assert 1.8 < seconds < 2 + SOON_S
        assert [model.reference for model, _ in others] == ["a", "b"]
        database.assert_no_lock()


@ON_POSTGRESQL
async def test_of_a_commit_without_an_answer_all_are_told(database):
    """
    Nobody knows of any of them whether it was kept.
    """
    async with open_catalog(database.target, timeout_s=0.4) as catalog:
        with trigger(database, "PERFORM pg_sleep(5);", at_commit=True):
            found = await asyncio.gather(
                *(timed(catalog.register_model(a_model(f"m{n}"))) for n in range(8))
            )

        for error, seconds in found:
            assert isinstance(error, CatalogUnavailableError)
            assert "not known" in str(error)
            assert seconds < SOON_S


@ON_POSTGRESQL
async def test_a_commit_that_was_lost_is_not_made_again(database):
    """
    Where the server drops the connection at the COMMIT, nobody is registered twice for it.
    """
    database.run("CREATE SEQUENCE IF NOT EXISTS commits")
    database.run("ALTER SEQUENCE commits RESTART")
    once = "IF nextval('commits') = 1 THEN PERFORM pg_sleep(60); END IF;"
    async with open_catalog(database.target) as catalog:
        with trigger(database, once, at_commit=True):
            calls = asyncio.gather(
                *(timed(catalog.register_model(a_model(f"m{n}"))) for n in range(8))
            )
            while not database.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE wait_event = 'PgSleep' AND datname = current_database()"
            ):
                await asyncio.sleep(0.01)
            found = await asyncio.wait_for(calls, SOON_S)

        assert {type(error) for error, _ in found} == {CatalogUnavailableError}
        assert await catalog.count_models() == 0
    database.run("DROP SEQUENCE commits")


@ON_POSTGRESQL
@pytest.mark.parametrize("kind", ["find", "register"])
async def test_who_is_cancelled_takes_nobody_with_him(database, kind):
    """
    The others are answered; who is cancelled in the midst of a write learns of it when it has
    ended, and of a read at once.
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
            await waits_for_a_lock(database)
            for task in tasks[::2]:
                task.cancel()
            done, _ = await asyncio.wait(tasks[::2], timeout=SOON_S)
            assert len(done) == 4
            assert not any(task.done() for task in tasks[1::2])
        others = await asyncio.wait_for(asyncio.gather(*tasks[1::2]), SOON_S)

        assert all(task.cancelled() for task in tasks[::2])
        assert [model.reference for model in others] == ["m1", "m3", "m5", "m7"]


@ON_POSTGRESQL
async def test_a_query_that_nobody_waits_for_is_ended(database):
    """
    When the last of them is gone the server need not go on.
    """
    async with open_catalog(database.target) as catalog:
        with postgres.table_locked(database.url):
            tasks = [asyncio.create_task(catalog.find_model(f"m{n}", "hf")) for n in range(8)]
            await waits_for_a_lock(database)
            for task in tasks:
                task.cancel()
            done, _ = await asyncio.wait(tasks, timeout=SOON_S)

            assert len(done) == 8
            assert (
                database.run(
                    "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%unnest%' "
                    "AND state = 'active' AND pid <> pg_backend_pid()"
                )
                == []
            )
        assert await catalog.find_model("m", "hf") is None


@ON_POSTGRESQL
async def test_each_has_the_time_that_it_is_given(database):
    """
    Who comes later to a server that does not answer gives up later; nobody is early or late.
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
        assert max(seconds for _, seconds in found) < 0.6 + SOON_S / 3
        database.assert_no_lock()


async def test_a_call_within_ones_own_transaction_is_not_shared(catalog):
    """
    It is part of that transaction, and the outer catalog would wait for it.
    """
    async with catalog.transaction() as inner:
        await asyncio.gather(*(inner.register_model(a_model(f"m{n}")) for n in range(4)))
        assert await catalog.find_model("m0", "hf") is None
        found = await asyncio.gather(*(inner.find_model(f"m{n}", "hf") for n in range(4)))
        assert None not in found
        with pytest.raises(TransactionError):
            await catalog.register_model(a_model("outside"))


@ON_POSTGRESQL
async def test_over_a_hosts_sessions_nothing_is_shared(database):
    """
    A host's sessions may be of another tenant for each of its tasks.
    """
    engine = create_async_engine(database.target_url)
    catalogs = [ModelCatalog(async_sessionmaker(engine))]
    try:
        async with open_catalog(engine) as opened:
            catalogs.append(opened)
            for number, catalog in enumerate(catalogs):
                with counted(engine.sync_engine) as (statements, commits):
                    await asyncio.gather(
                        *(catalog.register_model(a_model(f"{number}-{n}")) for n in range(8)),
                        *(catalog.find_model(f"m{n}", "hf") for n in range(8)),
                    )
                assert not [text for text in statements if "unnest" in text]
                assert len(commits) == 16
    finally:
        await engine.dispose()


async def test_what_waits_together_when_it_closes_is_done(database):
    """
    Calls that were made before the end of the block are answered, also those in a queue.
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


def register_over_and_over(target, names):
    async def run():
        async with open_catalog(target, timeout_s=20) as catalog:
            for _ in range(5):
                await asyncio.gather(*(catalog.register_model(a_model(name)) for name in names))

    asyncio.run(run())


@ON_POSTGRESQL
async def test_processes_that_register_the_same_models_do_not_block_one_another(database):
    """
    Whatever order their tasks come in, the rows are taken in one.
    """
    names = [f"m{n}" for n in range(32)]
    logged = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = database.run(logged)
    writers = [
        PROCESSES.Process(target=register_over_and_over, args=(database.target, each))
        for each in (names, names[::-1], names[16:] + names[:16])
    ]

    for writer in writers:
        writer.start()
    await asyncio.to_thread(lambda: [writer.join(60) for writer in writers])

    assert [writer.exitcode for writer in writers] == [0] * 3
    assert set(database.run("SELECT download_count FROM models")) == {(15,)}
    assert database.run(logged) == before


def test_rows_are_taken_in_the_order_of_their_keys():
    """
    Whatever comes first and whatever is set: two that take the same rows do not wait in a circle.
    Of a key that comes twice the second is of another statement.
    """
    shapes = [{"license": "mit"}, {"size_bytes": 7}]
    models = [a_model(f"m{n % 7}", **shapes[n % 2]) for n in (5, 3, 6, 1, 12, 0, 2, 4, 10)]
    registrations = [UpsertRow.from_model(model) for model in models]

    statements = [
        [registrations[at] for at in batch] for batch in group_by_statement(registrations)
    ]

    taken = [each.row["reference"] for batch in statements for each in batch]
    assert taken == ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m3", "m5"]
    assert all(len({each.statement_key for each in batch}) == 1 for batch in statements)
    assert all(len({each.key for each in batch}) == len(batch) for batch in statements)


@pytest.mark.parametrize(("reads", "given_s"), [(False, 5), (True, 9)])
async def test_a_run_has_the_time_of_its_first_call_or_if_it_reads_of_its_last(reads, given_s):
    """
    Nobody may leave a write before it ends, and anybody may leave a read.
    """
    found = []

    async def run(items, left_s):
        found.append(left_s)
        return items

    meeting = Coalescer(run, reads=reads)
    await asyncio.gather(meeting.submit("a", 9), meeting.submit("b", 5))

    assert found == [pytest.approx(given_s, abs=0.5)]


async def test_what_comes_while_others_run_is_one_run():
    """
    Of a hundred calls in one turn the first run has all; what comes meanwhile is in the next.
    """
    runs, go_on = [], asyncio.Event()

    async def run(items, _left_s):
        runs.append(items)
        await go_on.wait()
        return [-item for item in items]

    meeting = Coalescer(run)
    first = [asyncio.create_task(meeting.submit(n, 5)) for n in range(100)]
    await asyncio.sleep(0.01)
    second = [asyncio.create_task(meeting.submit(n, 5)) for n in range(100, 120)]
    await asyncio.sleep(0.01)
    second[3].cancel()
    go_on.set()
    results = await asyncio.gather(*first, *second, return_exceptions=True)

    assert runs == [[*range(100)], [n for n in range(100, 120) if n != 103]]
    assert [n for n, each in enumerate(results) if each != -n] == [103]


async def test_so_many_run_at_once_and_no_more():
    """
    One that is stuck does not hold up what comes after it, until all are.
    """
    stuck, answered = asyncio.Event(), []

    async def run(items, _left_s):
        if "stuck" in items:
            await stuck.wait()
        answered.extend(items)
        return items

    meeting = Coalescer(run, max_concurrent=2)
    tasks = []
    for name in ("stuck", "a", "b", "stuck", "c"):
        tasks.append(asyncio.create_task(meeting.submit(name, 5)))
        await asyncio.sleep(0.01)
    assert answered == ["a", "b"]
    stuck.set()
    assert await asyncio.gather(*tasks) == ["stuck", "a", "b", "stuck", "c"]


def test_a_loop_that_ends_leaves_nobody_waiting():
    """
    Where a program ends in the midst of it, or before it began, nothing hangs and nothing is said.
    """
    reported = []

    async def run(items, _left_s):
        await asyncio.sleep(60)
        return items

    async def program(turns):
        asyncio.get_running_loop().set_exception_handler(lambda _, each: reported.append(each))
        meeting = Coalescer(run)
        tasks = [asyncio.create_task(meeting.submit(n, 90)) for n in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        assert len(tasks) == 3

    start = time.monotonic()
    for turns in range(4):
        asyncio.run(program(turns))

    assert reported == []
    assert time.monotonic() - start < 5
