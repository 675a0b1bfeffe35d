"""The blocking catalog has the methods of ModelCatalog, for code without an event loop."""

import ast
import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sync_stub
from conftest import a_model

from model_catalog import (
    CatalogClosedError,
    CatalogError,
    Fleet,
    HostNotFoundError,
    HostRegistry,
    HostState,
    InvalidTargetError,
    ModelCatalog,
    ModelNotFoundError,
    TransactionError,
    sync,
)
from model_catalog.upkeep import check_models, verify_models, watch

FORK_PROGRAM = """
import os, sys
from model_catalog import WrongLoopError, sync

with sync.open_catalog(sys.argv[1]) as catalog:
    child = os.fork()
    if child == 0:
        try:
            catalog.count_models()
        except WrongLoopError as error:
            print("open it again in this process" in str(error), flush=True)
        with sync.open_catalog(sys.argv[1]) as reopened:
            print(reopened.count_models(), flush=True)
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), catalog.count_models(), flush=True)
"""


@pytest.fixture
def catalog(database):
    with sync.open_catalog(database.target) as found:
        yield found


@pytest.fixture
def on_sqlite(sqlite_file):
    """An open catalog on SQLite, for tests that do not depend on the database."""
    with sync.open_catalog(sqlite_file) as found:
        yield found


def test_the_stub_has_the_signatures_of_the_catalog():
    """`python tests/sync/sync_stub.py` writes the file."""

    def imports_and_rest(tree):
        rest = [ast.dump(node) for node in tree.body if not isinstance(node, ast.ImportFrom)]
        return sync_stub.imports(tree), rest

    stub = ast.parse(sync_stub.STUB.read_text())

    assert imports_and_rest(stub) == imports_and_rest(sync_stub.generate())


CLASSES = {
    "catalog": (sync.SyncCatalog, ModelCatalog),
    "fleet": (sync.SyncFleet, Fleet),
    "hosts": (sync.SyncHostRegistry, HostRegistry),
}


@pytest.mark.parametrize(("blocking", "asynchronous"), CLASSES.values(), ids=CLASSES)
def test_every_public_method_blocks_and_keeps_its_documentation(blocking, asynchronous):
    """None of them returns something to await."""
    names = {name for name in vars(asynchronous) if not name.startswith("_")}

    for name in names:
        ours, original = getattr(blocking, name), getattr(asynchronous, name)
        assert inspect.getdoc(ours) == inspect.getdoc(original)
        assert not inspect.iscoroutinefunction(ours)
        if callable(original):
            assert inspect.signature(ours) == inspect.signature(original)
    assert names <= set(dir(blocking))


def test_calls_return_their_values(catalog, database):
    """A value, an error, an iterator and a property are those of ModelCatalog."""
    recorded = catalog.register_model(a_model("m", size_bytes=7))

    assert catalog.get_model("m", "hf").id == recorded.id
    assert catalog.get_total_size() == 7
    assert [model.reference for model in catalog.iter_models()] == ["m"]
    assert catalog.database_files[:1] == (() if database.path is None else (database.path,))
    with pytest.raises(ModelNotFoundError):
        catalog.get_model("n", "hf")


def test_the_hosts_and_the_fleet_block(catalog):
    """A block of heartbeats is a plain context manager."""
    hosts = sync.SyncHostRegistry(catalog, lost_after_s=60)
    hosts.register_host("gpu-07", free_bytes=9)
    catalog.register_model(a_model("m", size_bytes=7))

    with hosts.beat("gpu-07"):
        alive = [host.state for host in hosts.list_hosts()]
    fleet = catalog.fleet()
    with catalog.transaction() as inner:
        inner.register_model(a_model("n"))
        listed = [model.reference for model in inner.fleet().iter_models()]

    assert alive == [HostState.ALIVE]
    assert [copy.host for copy in fleet.who_has("hf:m")] == [""]
    assert [each.model_count for each in fleet.totals_by_host()] == [2, 0]
    assert [each.host.name for each in fleet.plan_placement("hf:m").offers] == ["gpu-07"]
    assert listed == ["m", "n"]
    with pytest.raises(HostNotFoundError):
        hosts.heartbeat("gpu-08")


def test_an_iteration_can_be_left_early(on_sqlite):
    """The async iterator is closed in its loop, without a warning."""
    on_sqlite.register_models(a_model(str(number)) for number in range(3))

    for model in on_sqlite.iter_models():
        assert model.reference == "0"
        break

    assert on_sqlite.count_models() == 3


def test_a_transaction_is_committed_or_rolled_back(catalog):
    """Also if the block ends with an exception that is no Exception."""
    with catalog.transaction() as inner:
        inner.register_model(a_model("kept"))
        with pytest.raises(KeyboardInterrupt), inner.transaction() as nested:
            nested.register_model(a_model("undone by the savepoint"))
            raise KeyboardInterrupt
    with pytest.raises(StopIteration), catalog.transaction() as inner:
        inner.register_model(a_model("undone"))
        next(iter(()))

    assert [model.reference for model in catalog.list_models()] == ["kept"]


def test_a_write_beside_a_transaction_of_the_same_thread_is_refused(on_sqlite):
    """It would wait for the end of the transaction. A write of another thread does wait."""
    with ThreadPoolExecutor() as threads:
        with on_sqlite.transaction() as inner:
            inner.register_model(a_model("a"))
            with pytest.raises(TransactionError, match="transaction open"):
                on_sqlite.register_model(a_model("b"))
            other = threads.submit(on_sqlite.register_model, a_model("c"))
        other.result()
    on_sqlite.register_model(a_model("d"))

    assert {model.reference for model in on_sqlite.list_models()} == {"a", "c", "d"}


def test_many_threads_share_a_catalog(catalog):
    """Their calls run at the same time in the one loop."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: catalog.register_model(a_model(str(number))), range(64)))

    assert catalog.count_models() == 64


async def test_a_catalog_works_beside_a_running_loop(sqlite_file):
    """A notebook runs its cells in a loop."""
    with sync.open_catalog(sqlite_file) as catalog:
        catalog.register_model(a_model("m"))

        assert catalog.count_models() == 1


def test_upkeep_is_called_through_run(on_sqlite, tmp_path):
    """Coroutines, async iterators and async context managers become their plain forms."""
    (tmp_path / "m.bin").write_bytes(b"weights")
    on_sqlite.register_model(a_model("m", local_path=str(tmp_path / "m.bin")))
    checked = threading.Event()

    report = on_sqlite.run(check_models, roots=[tmp_path])
    verified = [result.model.reference for result in on_sqlite.run(verify_models, level="quick")]
    with on_sqlite.run(watch, interval_s=60, on_event=lambda _: checked.set()) as counters:
        assert checked.wait(10)

    assert report.is_as_recorded
    assert verified == ["m"]
    assert counters.check_count == 1


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also if the tests run in the background of a shell."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_cancels_the_call_and_waits_for_its_end(on_sqlite):
    """Then KeyboardInterrupt is raised, and the catalog can be used further."""
    ended = threading.Event()

    async def wait_forever(catalog):
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        on_sqlite.run(wait_forever)

    assert ended.is_set()
    assert on_sqlite.count_models() == 0


@pytest.mark.usefixtures("interruptible")
def test_interrupted_write_is_whole(on_sqlite):
    """A write that has begun is committed before KeyboardInterrupt is raised."""

    def models():
        yield a_model("a")
        os.kill(os.getpid(), signal.SIGINT)
        yield a_model("b")

    with pytest.raises(KeyboardInterrupt):
        on_sqlite.register_models(models())

    assert on_sqlite.count_models() in (0, 2)


def test_a_call_that_would_wait_for_its_own_thread_is_refused(on_sqlite):
    """A generator runs in the thread of the loop, which cannot wait for itself."""
    on_sqlite.register_model(a_model("m"))

    with pytest.raises(CatalogError, match="collect the values first"):
        on_sqlite.register_models(on_sqlite.iter_models())

    assert on_sqlite.register_models(list(on_sqlite.iter_models())) == 1


def test_a_generator_that_exits_does_not_end_the_loop(on_sqlite):
    """SystemExit reaches the caller, and the catalog can be used further."""

    def models():
        yield a_model("m")
        sys.exit(3)

    with pytest.raises(SystemExit):
        on_sqlite.register_models(models())

    assert on_sqlite.count_models() == 0


def test_a_closed_catalog_refuses_calls(database):
    """`close` does what the end of the block does, and may be called again."""
    catalog = sync.open_catalog(database.target)

    with pytest.raises(CatalogClosedError), catalog.transaction() as inner:
        catalog.close()
        catalog.close()
        for closed in (catalog, inner):
            with pytest.raises(CatalogClosedError):
                closed.count_models()

    database.assert_nothing_left()


def test_a_catalog_that_cannot_be_opened_leaves_no_thread():
    """The error is the one of open_catalog."""
    with pytest.raises(InvalidTargetError):
        sync.open_catalog(":memory:")

    assert [each.name for each in threading.enumerate() if "model-catalog" in each.name] == []


@pytest.mark.slow
def test_a_forked_child_opens_the_catalog_again(database):
    """It cannot use the catalog of its parent, leaves it alone, and ends with its own exit code."""
    with closing(sync.open_catalog(database.target)) as catalog:
        catalog.register_model(a_model("m"))

    # Python 3.12 and later warn of any fork beside a thread.
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK_PROGRAM]
    words.append(database.target)
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)

    assert (done.stdout.split(), done.stderr) == (["True", "1", "7", "1"], "")


@pytest.mark.slow
def test_a_program_that_does_not_close_its_catalog_exits(database):
    """Also with an open transaction. Nothing waits for the thread of the loop, a daemon."""
    program = (
        "import sys; from model_catalog import sync; catalog = sync.open_catalog(sys.argv[1]);"
        "transaction = catalog.transaction(); inner = transaction.__enter__();"
        "print(inner.count_models())"
    )
    words = [sys.executable, "-c", program, database.target]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
