"""Opens a catalog: migrates the database, chooses the executor, and closes both at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, TypeAlias

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.context_managers import inner_contextmanager, outer_contextmanager
from model_catalog.concurrency.ownership import LoopOwner
from model_catalog.connection.database_info import catalog_schema, host_of
from model_catalog.connection.open_database import OpenDatabase, open_database
from model_catalog.connection.sqlite_pragmas import Durability, validate_durability
from model_catalog.connection.target import Target, resolve_target
from model_catalog.domain import validation
from model_catalog.errors import InvalidTargetError
from model_catalog.execution.observation.hooks import validate_hooks
from model_catalog.execution.sqlite_threads.thread_executor import (
    ReadMode,
    ThreadExecutor,
    validate_read_mode,
)
from model_catalog.repository.lazy_module import LazyModule
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.schema.revision import is_current_file, require_current_schema

if TYPE_CHECKING:
    from model_catalog.execution import postgres_executor, session_executor
    from model_catalog.execution.observation import records
    from model_catalog.execution.postgresql import replica as replicas

    _AnyExecutor: TypeAlias = (
        postgres_executor.PostgresExecutor
        | replicas.ReplicatedExecutor
        | session_executor.SessionExecutor
        | ThreadExecutor
    )
else:
    # A catalog in a SQLite file needs none of them. The annotations name classes through them, so
    # that `get_type_hints` finds these.
    postgres_executor, session_executor, records, replicas = (
        LazyModule(f"model_catalog.execution.{name}")
        for name in (
            "postgres_executor",
            "session_executor",
            "observation.records",
            "postgresql.replica",
        )
    )

# The timeout for each connection to a replica, unless its URL has one.
_CONNECT_TO_REPLICA_S: Final = "2"


@outer_contextmanager
async def open_catalog(
    target: Target | None = None,
    *,
    upgrade: bool = True,
    create: bool = True,
    timeout_s: float = 30.0,
    durability: Durability = "full",
    reads: ReadMode | str | URL = "threads",
    shared: bool = False,
    schema: str | None = None,
    host: str | None = None,
    on_call: records.CallHook | None = None,
    on_change: records.ChangeHook | None = None,
) -> AsyncIterator[ModelCatalog]:
    """
    Open a catalog, and close it when the block ends.

    `target` is a path, a URL, a URL object or a host's AsyncEngine. None is the environment
    variable `MODEL_CATALOG_URL`, or else `.rbee/models/catalog.db` in the working directory. A
    missing SQLite file is created, readable by its owner only, unless `create` is false. Its folder
    is created only for the default path.

    The tables are created or migrated to the newest revision. With `upgrade=False`, tables that are
    missing or older raise SchemaOutOfDateError. Tables of a newer package always raise
    SchemaTooNewError. In a database with another program's tables they are created only with
    `shared=True`, or over the program's own AsyncEngine. `schema` is their schema on PostgreSQL, as
    in `upgrade`. `timeout_s` is how long opening waits for locks, and how long a call may take.

    The catalog works on the models of `host`, as in `gpu-07`, and on those of no other host. None
    is `MODEL_CATALOG_HOST` for the default target, or else a catalog with the host `""`.

    Changes in a SQLite file survive a crash of the process once the call has returned. With
    `durability="full"` every transaction waits for the disk, so they survive a power failure too.
    With "normal" that may lose the last ones. A server and a host's engine keep their settings.

    With `reads="inline"` `find_model` and `get_model` read a SQLite file in the event loop's
    thread, which saves a thread switch: five times the query itself. A slow disk then blocks the
    loop, and no timeout ends such a read. With the URL of a PostgreSQL replica, finds, lists and
    totals run there when it has replayed every write of this catalog, and else on the primary.

    `on_call` is called with a `CatalogCall` after each call. `on_change` is called with one or more
    `ModelChange` after each commit of this catalog that changes models. They are plain functions.

    Raises InvalidTargetError, CatalogUnavailableError, CatalogReadOnlyError, CatalogCorruptError,
    ForeignDatabaseError, SchemaTooNewError, InvalidModelError for an invalid option, and what
    `upgrade` raises. No message contains the password of a URL.
    """
    replica = _validate_options(on_call, on_change, durability, reads, timeout_s)
    async with open_database(
        target,
        create=create,
        durability=durability,
        wait_s=timeout_s,
        shared=shared,
        schema=schema,
        host=host,
    ) as database:
        running = _running(database, target, timeout_s, reads, replica, upgrade=upgrade)
        async with running as executor:
            yield ModelCatalog(executor, on_call=on_call, on_change=on_change)


def _validate_options(
    on_call: records.CallHook | None,
    on_change: records.ChangeHook | None,
    durability: Durability,
    reads: ReadMode | str | URL,
    timeout_s: float,
) -> URL | None:
    """Raise InvalidModelError or InvalidTargetError; return the URL of the replica in `reads`."""
    validate_hooks(on_call, on_change)
    validate_durability(durability)
    replica = _replica_url(reads)
    validation.seconds("timeout_s", timeout_s)
    return replica


def _replica_url(reads: ReadMode | str | URL) -> URL | None:
    """Return the URL in the argument `reads` of a replica of PostgreSQL; None for a mode."""
    if not (isinstance(reads, URL) or "://" in str(reads)):
        validate_read_mode(reads)
        return None
    location = resolve_target(reads)
    url = location.url
    if url.get_backend_name() != "postgresql":
        raise InvalidTargetError(location.name, "reads= takes the URL of a PostgreSQL replica")
    if url.query.keys() & {"connect_timeout", "timeout"}:
        return url
    # While it is down, the primary answers. So there is nothing to wait for.
    return url.update_query_dict({"connect_timeout": _CONNECT_TO_REPLICA_S})


@inner_contextmanager
async def _opened_replica(
    database: OpenDatabase, target: Target | None, url: URL | None
) -> AsyncIterator[OpenDatabase | None]:
    """Open the replica of a database for the same schema and host. Does not connect."""
    if url is None:
        yield None
        return
    if database.path is not None or isinstance(target, AsyncEngine):
        raise InvalidTargetError(
            database.name, "only a catalog that is opened by the URL of a primary has a replica"
        )
    scope = database.engine.sync_engine
    async with open_database(
        url, create=False, schema=catalog_schema(scope), host=host_of(scope) or None
    ) as replica:
        yield replica


@inner_contextmanager
async def _running(
    database: OpenDatabase,
    target: Target | None,
    timeout_s: float,
    reads: ReadMode | str | URL,
    replica_url: URL | None,
    *,
    upgrade: bool,
) -> AsyncIterator[_AnyExecutor]:
    """Start the executor of an open database at the head revision, and close it at the end."""
    async with _opened_replica(database, target, replica_url) as replica:
        owner = LoopOwner(database.name)
        executor: _AnyExecutor = _make_executor(database, target, timeout_s, owner, reads)
        if replica is not None and isinstance(executor, postgres_executor.PostgresExecutor):
            executor = _with_replica(executor, replica, owner)
        try:
            if isinstance(executor, ThreadExecutor):
                await _open_file(executor, database, upgrade=upgrade)
            else:
                await _prepare_schema(database, upgrade=upgrade)
            yield executor
        finally:
            owner.is_closed = True
            # A forked child has none of the threads and connections.
            if owner.is_in_owner_process:
                await run_to_completion(executor.close())


async def _open_file(executor: ThreadExecutor, database: OpenDatabase, *, upgrade: bool) -> None:
    """Open a SQLite file of our own in the threads of its executor, and migrate it if needed."""
    if database.is_on_network:
        await _prepare_schema(database, upgrade=upgrade)
        await executor.open_writer()
    # The first reader's own connection: another one would take a third of the time of opening.
    is_current = await executor.open(is_current_file)
    if not is_current:
        await _prepare_schema(database, upgrade=upgrade)


async def _prepare_schema(database: OpenDatabase, *, upgrade: bool) -> None:
    if upgrade:
        # A database at the head revision does not need it.
        from model_catalog.schema.migrate import migrate_to  # noqa: PLC0415

        await migrate_to(database, "head")
    else:
        await require_current_schema(database)
    if database.sync_engine is not None:
        # The async engine was needed for the migration only.
        await database.dispose()


def _make_executor(
    database: OpenDatabase,
    target: Target | None,
    timeout_s: float,
    owner: LoopOwner,
    reads: ReadMode | str | URL,
) -> _AnyExecutor:
    if database.sync_engine is not None:
        mode: ReadMode = "inline" if reads == "inline" else "threads"
        return ThreadExecutor(database.sync_engine, timeout_s, owner, mode)
    if isinstance(target, AsyncEngine):
        return session_executor.SessionExecutor(
            async_sessionmaker(database.engine), timeout_s, owner
        )
    return postgres_executor.PostgresExecutor(database.engine, timeout_s, owner, owns_engine=True)


def _with_replica(
    primary: postgres_executor.PostgresExecutor, replica: OpenDatabase, owner: LoopOwner
) -> replicas.ReplicatedExecutor:
    # A transaction in a stricter mode would read a snapshot from before its question.
    engine = replica.engine.execution_options(isolation_level="READ COMMITTED")
    reading = postgres_executor.PostgresExecutor(engine, primary.timeout_s, owner, owns_engine=True)
    return replicas.ReplicatedExecutor(primary, reading)
