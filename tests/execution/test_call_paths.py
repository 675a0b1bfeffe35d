"""The path of a call from the public method to the driver: few files, and downward only."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import FrameType

import greenlet
import pytest
from conftest import a_model
from public_calls import PUBLIC_READS, PUBLIC_WRITES, fill
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import model_catalog
from model_catalog import ModelCatalog, open_catalog

PACKAGE = Path(model_catalog.__file__).parent

LAYERS = [
    {"errors"},
    {"files", "concurrency"},
    {"domain"},
    {"mapping", "stores"},
    {"connection"},
    {"execution", "schema"},
    {"repository"},
    {"alembic", "opening"},
    {"sync", "testing", "upkeep", "backups"},
    {"cli"},
]
"""The layers of the package, from the lowest to the highest."""

MAX_PATH_FILES = 6
"""The most files of ours between a public method and the driver."""

MORE_PATH_FILES = {"asyncpg": 2, "psycopg": 2}
"""A server's calls are batched, and a lone statement is handed to the driver without SQLAlchemy."""

MAX_FILES = {"register_model": 23, "find_model": 19}
"""The most files of ours in which any code runs during a call."""

MORE_FILES = {"sessions": 4, "asyncpg": 2, "psycopg": 2}
"""
A server's calls are batched, and the limits of a session are set once.
Over a host's sessions: they are examined, and a connection is borrowed from the host's pool. The
call runs in a task that a forked child does not continue.
"""

DRIVER_ADAPTERS = ("sqlalchemy.connectors.asyncio", "sqlalchemy.dialects.")
"""The modules in which SQLAlchemy hands a statement to an async driver, by `execute`."""

DRIVER_CALL = ("execution/postgresql/driver_statements.py", "_run")
"""The file and the function that hand a lone statement to the driver of a server themselves."""

BORROWED_CONNECTION = "execution/sqlite_threads/borrowed_connection.py"
COROUTINE_RUNNER = "run_in_batch_task"

CONTEXT_MANAGERS = "concurrency/context_managers.py"

EXECUTORS = ["threads", "inline", "sessions", "asyncpg", "psycopg"]


def file_of(frame: FrameType) -> str | None:
    """Return the file of a frame as a path in the package, or None if it is not ours."""
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None


def layer_of(file: str) -> int:
    name = Path(file).parts[0].removesuffix(".py")
    return next(number for number, names in enumerate(LAYERS) if name in names)


def method_owner(frame: FrameType) -> type | None:
    """Return the class whose method a frame runs, or None for a function."""
    code = frame.f_code
    if not code.co_varnames or code.co_varnames[0] not in ("self", "cls"):
        return None
    instance = frame.f_locals.get(code.co_varnames[0])
    kind = instance if isinstance(instance, type) else type(instance)
    return kind if hasattr(kind, code.co_name) else None


class Trace:
    """What a profile function sees of one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.files: set[str] = set()
        """The files of ours in which code ran."""
        self.paths: list[list[str]] = []
        """For each statement: the places of ours between the public method and the driver."""
        self.upward_calls: set[str] = set()
        """The calls of methods of a higher layer."""

    def profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "c_call":
            owner = type(getattr(argument, "__self__", None))
            if owner.__module__ == "sqlite3" and argument.__name__ == "execute":
                self._record_path(frame)
            return
        if event != "call":
            return
        file = file_of(frame)
        if file is not None:
            self.files.add(file)
            self._check_direction(frame, file)
            if (file, frame.f_code.co_name) == DRIVER_CALL:
                self._record_path(frame)
        else:
            module = frame.f_globals.get("__name__", "")
            if frame.f_code.co_name == "execute" and module.startswith(DRIVER_ADAPTERS):
                self._record_path(frame)

    def _check_direction(self, frame: FrameType, file: str) -> None:
        caller = frame.f_back
        # A listener is called by SQLAlchemy, whoever caused the event.
        # A context manager runs its generator, as those of contextlib do.
        # A batch runs the coroutine that it was handed.
        while caller is not None and (
            file_of(caller) in (None, CONTEXT_MANAGERS) or caller.f_code.co_name == COROUTINE_RUNNER
        ):
            if "/sqlalchemy/event/" in caller.f_code.co_filename:
                return
            caller = caller.f_back
        # A borrowed connection stands for one of SQLAlchemy, which every layer uses.
        if caller is None or method_owner(frame) is None or file == BORROWED_CONNECTION:
            return
        caller_file = file_of(caller)
        assert caller_file is not None
        if layer_of(caller_file) < layer_of(file):
            self.upward_calls.add(
                f"{caller_file}:{caller.f_code.co_name} -> {file}:{frame.f_code.co_qualname}"
            )

    def _record_path(self, frame: FrameType) -> None:
        """Record the frames of ours in this stack, and in the tasks that wait for it."""
        stack = list(stack_of(frame))
        if any("/sqlalchemy/event/" in each.f_code.co_filename for each in stack):
            # A listener of ours sends BEGIN or a PRAGMA: it is not a part of the call's path.
            return
        frames = [*waiting_frames(self._loop), *reversed(stack)]
        path = [
            f"{file}:{each.f_code.co_name}"
            for each in frames
            if (file := file_of(each)) is not None
        ]
        self.paths.append(list(dict.fromkeys(path)))


def stack_of(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers, also those outside the greenlet that it runs in."""
    inside = greenlet.getcurrent()
    while frame is not None:
        yield frame
        frame = frame.f_back
        if frame is None and inside is not None and inside.parent is not None:
            inside = inside.parent
            frame = inside.gr_frame


def waiting_frames(loop: asyncio.AbstractEventLoop) -> Iterator[FrameType]:
    """Yield the suspended frames of all tasks, in the order in which the tasks were made."""
    for task in sorted(
        asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name())
    ):
        waiting = task.get_coro()
        while waiting is not None:
            frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
            if frame is not None:
                yield frame
            waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)


@contextmanager
def profiling(trace: Trace) -> Iterator[None]:
    """Have a trace see every call in this thread; other threads ask for it themselves."""
    Recorder.trace = trace
    sys.setprofile(Recorder.profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        Recorder.trace = None


class Recorder:
    """The profile function of all threads, which passes on what the current trace has to see."""

    trace: Trace | None = None

    @classmethod
    def profile(cls, frame: FrameType, event: str, argument: object) -> None:
        if cls.trace is not None:
            cls.trace.profile(frame, event, argument)


@pytest.fixture(params=EXECUTORS)
def executor(request) -> str:
    return request.param


@pytest.fixture
def backend(executor) -> str:
    return executor if executor in ("asyncpg", "psycopg") else "sqlite"


@pytest.fixture
async def warm_catalog(executor, database):
    """A catalog on each executor, whose connections are open and whose statements are compiled."""
    threading.setprofile(Recorder.profile)
    async with AsyncExitStack() as stack:
        if executor == "sessions":
            engine = create_async_engine(database.target_url)
            stack.push_async_callback(engine.dispose)
            catalog = ModelCatalog(async_sessionmaker(engine))
        else:
            reads = "inline" if executor == "inline" else "threads"
            catalog = await stack.enter_async_context(open_catalog(database.target, reads=reads))
        for name in ("m", "m", "n"):
            await catalog.register_model(a_model(name))
            await catalog.find_model(name, "hf")
        yield catalog
    threading.setprofile(None)


CALLS = {
    "register_model": lambda catalog: catalog.register_model(a_model("m")),
    "find_model": lambda catalog: catalog.find_model("m", "hf"),
}


OPERATIONS = {"register_model": "registration", "find_model": "lookup"}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_goes_through_few_files_and_only_downward(
    warm_catalog, executor, name, record_property
):
    """
    For each statement that the driver executes, at most six files of ours, or eight for a server,
    have a frame between the public method and the driver, in all threads and tasks that take part.
    No layer calls a method of a higher layer. Helpers that have returned by then count only in the
    number of all files.
    """
    trace = Trace(asyncio.get_running_loop())

    with profiling(trace):
        await CALLS[name](warm_catalog)

    operations = f"repository/operations/{OPERATIONS[name]}.py"
    assert any(operations in files_of(path) for path in trace.paths), trace.paths
    most_on_path = MAX_PATH_FILES + MORE_PATH_FILES.get(executor, 0)
    for path in trace.paths:
        record_property("path", " > ".join(path))
        assert files_of(path)[0] == "repository/model_catalog.py", "\n".join(path)
        assert len(files_of(path)) <= most_on_path, "\n".join(path)
    assert trace.upward_calls == set()
    record_property("file_count", len(trace.files))
    most = MAX_FILES[name] + MORE_FILES.get(executor, 0)
    assert len(trace.files) <= most, "\n".join(sorted(trace.files))


def files_of(path: list[str]) -> list[str]:
    return list(dict.fromkeys(place.partition(":")[0] for place in path))


@pytest.mark.slow
@pytest.mark.slow_with("sessions", "asyncpg")
@pytest.mark.parametrize("executor", ["threads", "sessions", "asyncpg"])
async def test_no_public_call_goes_upward(warm_catalog):
    """Whatever operation an executor runs, no layer calls a method of a higher layer."""
    await fill(warm_catalog)
    trace = Trace(asyncio.get_running_loop())

    with profiling(trace):
        for call in (PUBLIC_READS | PUBLIC_WRITES).values():
            await call(warm_catalog)

    assert trace.upward_calls == set()
