"""The public class `ModelCatalog`. Each method builds an operation and an executor runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Self, Unpack, overload

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.concurrency.gc_pauses import full_collections_paused
from model_catalog.concurrency.threads import CountReporter
from model_catalog.connection.database_info import DatabaseInfo, main_path
from model_catalog.connection.target import wrong_object
from model_catalog.domain import key_validation, validation
from model_catalog.domain.fields import ModelChanges, ModelRow, Sort
from model_catalog.domain.file_record import FileRecord
from model_catalog.domain.fleet import DEFAULT_LOST_AFTER_S
from model_catalog.domain.model_ref import ModelName, ModelRef, NamedModel, split_arguments
from model_catalog.errors import ModelNotFoundError, WrongLoopError
from model_catalog.execution.executor import Executor, Operation
from model_catalog.execution.observation.observed_executor import observe, observe_calls
from model_catalog.execution.scoped_executor import ScopedExecutor
from model_catalog.execution.transaction import TransactionExecutor
from model_catalog.mapping.tables import Model
from model_catalog.repository.lazy_module import LazyModule
from model_catalog.repository.operations import bulk_registration, lookup, registration
from model_catalog.repository.operations.lookup import LookupKey
from model_catalog.repository.operations.usage import UseRecorder
from model_catalog.repository.statements.filters import Filters
from model_catalog.repository.statements.row_conversion import to_models, to_rows

if TYPE_CHECKING:
    from model_catalog.execution import session_executor, session_transaction
    from model_catalog.execution.observation import commit_callbacks, records
    from model_catalog.repository import export_writer, import_reader, iteration
    from model_catalog.repository.fleet.fleet import Fleet
    from model_catalog.repository.operations import (
        export_import,
        labels,
        listing,
        model_files,
        relocation,
        statistics,
    )
else:
    # They take a quarter of the import of the package, and a process seldom uses all of them. The
    # annotations name their classes through them, so that `get_type_hints` finds these.
    commit_callbacks, records, session_executor, session_transaction = (
        LazyModule(f"model_catalog.execution.{name}")
        for name in (
            "observation.commit_callbacks",
            "observation.records",
            "session_executor",
            "session_transaction",
        )
    )
    export_writer, import_reader, iteration = (
        LazyModule(f"model_catalog.repository.{name}")
        for name in ("export_writer", "import_reader", "iteration")
    )
    export_import, labels, listing, model_files, relocation, statistics = (
        LazyModule(f"model_catalog.repository.operations.{name}")
        for name in (
            "export_import",
            "labels",
            "listing",
            "model_files",
            "relocation",
            "statistics",
        )
    )


class ModelCatalog:
    """
    A persistent record of the model files on one machine.

    Open one with `open_catalog`, or make one over a host's sessions:

    - Over an `async_sessionmaker` each call runs in a transaction of its own. A call waits up to
      `timeout_s` seconds for locks and for its own statements. After that it raises
      CatalogBusyError and changes nothing.
    - Over an `AsyncSession` each call is part of that session's transaction. The catalog never
      commits or closes the session.

    A model is named by reference, provider and version. In place of a version you can pass an
    alias, or None for the version downloaded last. The version `""` is a model without a version.
    Instead of these three, every method takes one argument: a text `"provider:reference@version"`,
    a `ModelRef`, or an object with such a `ref`, as a `Model`. Then pass all other arguments by
    keyword. Names are compared exactly: case and whitespace matter. Half a name, and
    a reference and a provider that were swapped, raise InvalidModelError where this can be told.

    No method accesses model files, and read methods never write to the database. Returned models
    are detached from any session: to change one, update it or register it again.

    If a task is cancelled during a call, the cancellation is delivered after the call's transaction
    has ended. A lookup that shares a batch on PostgreSQL is left at once.

    Methods raise CatalogError and its subclasses, and no exception of SQLAlchemy or of a driver. An
    unknown filter raises TypeError.

    A subclass may have its own `__init__`, as long as it can be called with one argument:
    `transaction()` makes an object of the subclass for the transaction.
    """

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession] | AsyncSession | Executor,
        *,
        timeout_s: float = 30.0,
        schema: str | None = None,
        host: str | None = None,
        on_call: records.CallHook | None = None,
        on_change: records.ChangeHook | None = None,
    ) -> None:
        """
        Make a catalog over a host's session factory or over one session.

        `timeout_s` is the number of seconds that a call may take, 0 or more. `schema` is the schema
        of the catalog's tables on PostgreSQL. None is the schema for None in the host's
        `schema_translate_map`, or else the default schema. `host` is the host whose models the
        catalog works on, as in `open_catalog`. An `Executor` is what `open_catalog` and
        `transaction()` pass; it has a timeout, a schema and a host of its own.

        `on_call` and `on_change` are plain functions, as in `open_catalog`. Over an `AsyncSession`
        changes are told when the session has committed. If the host rolls back, or if the session
        is bound to a connection, they are not told.

        Raises InvalidTargetError for another object, such as an engine or a path, and
        InvalidModelError for an invalid name of a host or a hook that is not a plain function.
        """
        if isinstance(sessions, AsyncSession):
            commits = None if on_change is None else commit_callbacks.commits_of(sessions)
            self._executor: Executor = TransactionExecutor(
                session_transaction.SessionTransaction(sessions, timeout_s), commits=commits
            )
        elif isinstance(sessions, async_sessionmaker):
            self._executor = session_executor.SessionExecutor(sessions, timeout_s)
        # `isinstance` with a protocol would take 15 us in each `transaction()`.
        elif hasattr(sessions, "forbid_nested_write"):
            self._executor = sessions
        else:
            raise wrong_object(sessions)
        host = key_validation.optional_host("host", host)
        if schema is not None or host is not None:
            self._executor = ScopedExecutor(self._executor, schema, host)
        if on_call is not None or on_change is not None:
            self._executor = observe(self._executor, on_call, on_change)
        observe_calls(self, self._executor)
        self._uses = UseRecorder(self._executor)

    def _with_executor(self, executor: Executor) -> Self:
        """Make the object that `transaction()` yields; a subclass may pass more arguments."""
        return type(self)(executor)

    def __reduce__(self) -> NoReturn:
        # multiprocessing pickles what it passes to a child, and fails at an object inside.
        raise WrongLoopError.in_pickle(self._executor.database.name)

    @property
    def database_files(self) -> tuple[Path, ...]:
        """
        The paths of the SQLite database and its sidecar files, whether they exist or not.

        Empty for PostgreSQL and for a database in memory. Do not open these files in a process
        that uses them: closing one drops the locks that SQLite holds.
        """
        return self._executor.database.files

    @property
    def host(self) -> str:
        """The host whose models this catalog works on; `""` for a catalog without a host."""
        return self._executor.database.host

    @property
    def _dialect(self) -> str:
        return self._executor.database.dialect

    @inner_contextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        """
        Open a transaction, and yield a catalog whose calls are part of it.

        If the block raises, all of it is rolled back. On SQLite it holds the write lock from the
        start, so do nothing slow inside. Within a transaction, or over a host's session, it is a
        savepoint.
        """
        async with self._executor.transaction() as executor:
            yield self._with_executor(executor)

    # Registration

    async def register_model(
        self, model: Model, files: Sequence[FileRecord] | None = None
    ) -> Model:
        """
        Record a model, or update its record, and return it as it is recorded.

        Writes the fields that were set on `model`. An existing model keeps the values of its other
        fields, and its tags, pin, aliases and use counts. `downloaded_at` is set to now if it was
        neither set nor read from the catalog, and `download_count` is increased by one. The key is
        (provider, reference, version); the version is not looked up as an alias. A new path, size
        or digest resets the results of verification. Registering states that the files are there
        now: a model that a check found `missing` or `offline` becomes `unchecked`.

        `files` replaces the recorded list of the model's files. The model's digest is then computed
        from theirs, unless it was set.

        Raises InvalidModelError, and then writes nothing.
        """
        if files is not None:
            return await self._executor.run(model_files.register_with_files(model, files))
        return await self._executor.run(registration.register(model))

    async def register_models(self, models: Iterable[Model | Mapping[str, object]]) -> int:
        """
        Record many models in one transaction, all or none; return the number of different models.

        A model may be given as a dict with the keywords of `Model(...)`, which takes less time. If
        the same key occurs more than once, each field gets the value that was set last.

        Other tasks run in the meantime, also while `models` is iterated. Raises InvalidModelError
        for the first invalid model, and then writes nothing.
        """
        rows = await bulk_registration.collect_rows(models)
        if not rows:
            return 0
        return await self._executor.run(bulk_registration.register_rows(rows))

    async def update_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        **changes: Unpack[ModelChanges],
    ) -> Model:
        """
        Set the named fields of one model, and return it; None clears a field.

        A new path, size or digest resets the results of verification. A cleared field shows the
        value that the file's header claims. `download_count` stays: an update is not a download.
        Raises ModelNotFoundError and InvalidModelError.
        """
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(lookup.update(key, changes))

    async def remove_model(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> bool:
        """
        Delete the record of a model, or of all its versions; return whether there was one.

        `version` may be an alias; None deletes all versions. Tags, aliases and the list of files
        are deleted too. The model's files stay. Raises ModelInUseError if a process uses the model
        (see `use_model`), or if a row of another program's table refers to it by a foreign key.
        """
        key = LookupKey.validated(reference, provider, version)
        cascades = self._executor.database.cascades
        return await self._executor.run(lookup.remove(key, cascades=cascades))

    async def rename_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        *,
        new_reference: str | None = None,
        new_version: str | None = None,
    ) -> Model:
        """
        Give one model another reference, another version or both, and return it.

        The id, tags, aliases, pin, files, uses and all other fields stay; the aliases then belong
        to the new reference. `version=None` renames the version downloaded last.

        Raises ModelNotFoundError. Raises InvalidModelError, and changes nothing, if the new name is
        taken by another model, or if an alias would get another meaning. It is also raised for a
        model in an external store, whose scan would record the old name again.
        """
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(lookup.rename(key, new_reference, new_version))

    async def relocate(
        self, old_prefix: str, new_prefix: str, *, dry_run: bool = False
    ) -> list[relocation.RelocatedModel]:
        """
        Replace the folder `old_prefix` by `new_prefix` in the paths of all models below it.

        Returns these models by provider, reference and version. With `dry_run` it changes nothing.
        One statement changes all paths. The new paths are not looked at: run a check afterwards.
        Digests and lists of files stay. Raises InvalidModelError for a prefix that is not absolute,
        and for a new prefix that is not valid UTF-8.
        """
        return await self._executor.run(
            relocation.relocate(old_prefix, new_prefix, dry_run=dry_run)
        )

    # Lookup

    async def find_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        *,
        present: bool = False,
    ) -> Model | None:
        """
        Return the model of exactly this key, or None.

        `version` is an exact version or, if there is none, an alias. `version=None` means the model
        downloaded last; of models downloaded in the same second, the one with the greatest id.

        With `present` it returns None for a model whose files, as last checked, are not there: in
        the states `missing`, `offline`, `unreadable` and `changed`. A model that is `unchecked`
        counts as there, because registering states that. The files are not looked at.

        Raises InvalidModelError for arguments that name no model.
        """
        key = LookupKey.validated(reference, provider, version)
        model = await self._executor.run(lookup.find(key))
        return None if present and model and not model.state.is_as_recorded else model

    async def get_model(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> Model:
        """Return a model as `find_model` does, but raise ModelNotFoundError if there is none."""
        key = LookupKey.validated(reference, provider, version)
        model = await self._executor.run(lookup.find(key))
        if model is None:
            raise key.not_found()
        return model

    async def find_model_by_id(self, model_id: int) -> Model | None:
        """
        Return the model with an id, or None.

        SQLite may give the id of a removed model to a new one. Raises InvalidModelError.
        """
        return await self._executor.run(lookup.find_by_id(model_id))

    async def get_model_by_id(self, model_id: int) -> Model:
        """Return the model with an id. Raises ModelNotFoundError and InvalidModelError."""
        model = await self.find_model_by_id(model_id)
        if model is None:
            raise ModelNotFoundError("", "", None, model_id=model_id)
        return model

    async def list_files(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> list[FileRecord]:
        """
        Return the recorded files of a model, sorted by the bytes of their paths.

        Empty if the files of the model are not known. Raises ModelNotFoundError.
        """
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(model_files.list_files(key))

    # Lists and statistics

    async def list_models(
        self,
        *,
        sort: Sort = Sort.DOWNLOADED_AT,
        descending: bool | None = None,
        limit: int | None = None,
        after: Model | ModelRow | None = None,
        **filters: Unpack[Filters],
    ) -> list[Model]:
        """
        Return the models that pass all filters.

        Sorted by `downloaded_at`, newest first, NULL last; ties by provider, reference and version
        in byte order. The order is total. With another `sort` numbers and times are sorted
        descending and names ascending, unless `descending` says otherwise; NULL is always last.

        `limit` and `after`, the last model of the page before, select a page. Models that are added
        or removed between two pages do not shift the next page. A model whose sorted value changes
        moves with it.

        Raises InvalidModelError for an invalid filter or argument.
        """
        return await self._executor.run(
            listing.list_page(
                to_models,
                self._dialect,
                filters,
                sort=sort,
                descending=descending,
                limit=limit,
                after=after,
            )
        )

    async def list_page(
        self,
        *,
        limit: int = 100,
        page_token: str | None = None,
        sort: Sort = Sort.DOWNLOADED_AT,
        descending: bool | None = None,
        **filters: Unpack[Filters],
    ) -> listing.ModelPage:
        """
        Return a page of the models of `list_models`, and the token of the next page, for HTTP.

        `page_token` is the `next_token` of the page before. It needs the same `sort`, `descending`
        and filters; `limit` may change. The token is URL-safe text that states where the next page
        begins. It is neither encrypted nor signed, so it proves nothing about its sender.

        Raises InvalidModelError for a token of another listing or a damaged one, and as
        `list_models` does.
        """
        return await self._executor.run(
            listing.list_token_page(
                self._dialect,
                filters,
                sort=sort,
                descending=descending,
                limit=limit,
                page_token=page_token,
            )
        )

    async def list_rows(
        self,
        *,
        sort: Sort = Sort.DOWNLOADED_AT,
        descending: bool | None = None,
        limit: int | None = None,
        after: Model | ModelRow | None = None,
        **filters: Unpack[Filters],
    ) -> list[ModelRow]:
        """
        Return the models that pass all filters as plain tuples.

        Does the same as `list_models`, in about two thirds of the time and half of the peak memory.
        """
        return await self._executor.run(
            listing.list_page(
                to_rows,
                self._dialect,
                filters,
                sort=sort,
                descending=descending,
                limit=limit,
                after=after,
            )
        )

    async def iter_models(
        self,
        *,
        sort: Sort = Sort.DOWNLOADED_AT,
        descending: bool | None = None,
        **filters: Unpack[Filters],
    ) -> AsyncIterator[Model]:
        """
        Yield the models of `list_models`, reading a page at a time to save memory.

        No transaction is open between two models, so you may write in the meantime. A model whose
        sorted value changes moves: in the default order a model that is registered again moves to
        the front, and is not yielded a second time.

        By `context_length`, `parameter_count`, `download_count`, `architecture`, `quantization` and
        `format` the models are sorted once, at the start. A later change does not move a model
        then, and new models are not yielded.
        """
        models = iteration.iterate(
            self._executor, to_models, filters, sort=sort, descending=descending
        )
        async for model in models:
            yield model

    async def iter_rows(
        self,
        *,
        sort: Sort = Sort.DOWNLOADED_AT,
        descending: bool | None = None,
        **filters: Unpack[Filters],
    ) -> AsyncIterator[ModelRow]:
        """Yield models as `iter_models` does, but as plain tuples."""
        rows = iteration.iterate(self._executor, to_rows, filters, sort=sort, descending=descending)
        async for row in rows:
            yield row

    async def count_models(self, **filters: Unpack[Filters]) -> int:
        """Return the number of models that pass all filters, which are those of `list_models`."""
        return await self._executor.run(statistics.count(filters, self._dialect))

    async def get_total_size(self, **filters: Unpack[Filters]) -> int:
        """
        Return the sum of the sizes of all models that pass the filters, in bytes.

        0 if there are none. An unknown size counts 0. The sum is exact beyond 2**63.
        """
        return await self._executor.run(statistics.total_size(filters, self._dialect))

    async def get_disk_usage(self, **filters: Unpack[Filters]) -> int:
        """
        Return the bytes that the models that pass the filters take on the disk, as `du` counts.

        A file that several models share, or that has several names, counts once. The numbers are
        those of the last scan or registration: no file is accessed. A file without such a number,
        and a model without a list of files, count with their sizes. Folders and symbolic links
        themselves are not counted.
        """
        return await self._executor.run(statistics.disk_usage(filters, self._dialect))

    async def stats(self, **filters: Unpack[Filters]) -> statistics.CatalogStats:
        """
        Return the number and size of the models that pass the filters: in total and by kind.

        The kinds are provider, format, architecture and quantization. The largest is first.
        """
        return await self._executor.run(statistics.stats(filters, self._dialect))

    # Tags, pins, aliases and uses

    @overload
    async def tag_model(self, model: ModelRef | NamedModel, /, *tags: str) -> Model: ...

    @overload
    async def tag_model(self, model: ModelName, /, *, tags: Iterable[str]) -> Model: ...

    @overload
    async def tag_model(
        self, reference: str, provider: str, *tags: str, version: str | None = None
    ) -> Model: ...

    async def tag_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        *texts: str,
        tags: Iterable[str] = (),
        version: str | None = None,
    ) -> Model:
        """
        Add tags to a model, and return it; tags that it has keep their spelling.

        The tags follow the name, or after a text `"provider:reference"` the keyword `tags`. They
        keep their case, but two tags that differ only in case are the same tag. A tag has at most
        128 characters. Raises ModelNotFoundError and InvalidModelError.
        """
        provider, given = split_arguments(reference, provider, texts)
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(labels.tag(key, given, tags))

    @overload
    async def untag_model(self, model: ModelRef | NamedModel, /, *tags: str) -> Model: ...

    @overload
    async def untag_model(self, model: ModelName, /, *, tags: Iterable[str]) -> Model: ...

    @overload
    async def untag_model(
        self, reference: str, provider: str, *tags: str, version: str | None = None
    ) -> Model: ...

    async def untag_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        *texts: str,
        tags: Iterable[str] = (),
        version: str | None = None,
    ) -> Model:
        """
        Remove tags from a model regardless of case, and return it; absent tags are ignored.

        Takes the arguments of `tag_model`. Raises ModelNotFoundError and InvalidModelError.
        """
        provider, given = split_arguments(reference, provider, texts)
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(labels.untag(key, given, tags))

    async def list_tags(self, **filters: Unpack[Filters]) -> list[labels.TagCount]:
        """Return the tags of the models that pass all filters, sorted by case-folded tag."""
        return await self._executor.run(labels.list_tags(filters, self._dialect))

    async def pin_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        *,
        reason: str | None = None,
    ) -> Model:
        """
        Mark a model as one to keep, and return it.

        The catalog stores the mark, and changes nothing else: `remove_model` still removes the
        record. A program that deletes models should keep those with `Model.pinned`.

        A model that is pinned keeps the time of its pin; a new reason replaces the old one. Raises
        ModelNotFoundError, and InvalidModelError for a reason longer than 1 KiB.
        """
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(labels.pin(key, reason))

    async def unpin_model(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> Model:
        """Remove the pin of a model, and return the model. Raises ModelNotFoundError."""
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(labels.unpin(key))

    @overload
    async def set_alias(self, model: ModelRef | NamedModel, alias: str, /) -> labels.Alias: ...

    @overload
    async def set_alias(self, model: ModelName, /, *, alias: str) -> labels.Alias: ...

    @overload
    async def set_alias(
        self, reference: str, provider: str, alias: str, version: str | None = None
    ) -> labels.Alias: ...

    async def set_alias(
        self,
        reference: ModelName,
        provider: str | None = None,
        alias: str | None = None,
        version: str | None = None,
    ) -> labels.Alias:
        """
        Create an alias for one version of a reference, or move it there; return the alias.

        An alias can be passed in place of a version; an exact version of the same name has
        priority. It is deleted with its model. `version=None` is the model downloaded last.

        Raises ModelNotFoundError and InvalidModelError.
        """
        provider, alias = labels.split_alias(reference, provider, alias)
        key = LookupKey.validated(reference, provider, version)
        return await self._executor.run(labels.set_alias(key, alias))

    @overload
    async def remove_alias(self, model: ModelRef | NamedModel, alias: str, /) -> bool: ...

    @overload
    async def remove_alias(self, model: ModelName, /, *, alias: str) -> bool: ...

    @overload
    async def remove_alias(self, reference: str, provider: str, alias: str) -> bool: ...

    async def remove_alias(
        self, reference: ModelName, provider: str | None = None, alias: str | None = None
    ) -> bool:
        """
        Delete an alias of a reference; return whether it existed.

        The model that it points at stays. The version of the name does not matter.
        """
        provider, alias = labels.split_alias(reference, provider, alias)
        key = LookupKey.validated(reference, provider)
        return await self._executor.run(labels.remove_alias(key, alias))

    async def list_aliases(
        self, reference: ModelName | None = None, provider: str | None = None
    ) -> list[labels.Alias]:
        """
        Return all aliases, or those of a reference or a provider.

        A text is a reference here. A `ModelRef` with a version and a `Model` select the aliases of
        that version. Sorted by provider, reference and alias.
        """
        return await self._executor.run(labels.list_aliases(reference, provider))

    async def record_use(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        count: int = 1,
    ) -> None:
        """
        Add `count` uses to a model and set `last_used_at` to now; return when it is committed.

        Concurrent calls share one transaction, and no use is lost. `last_used_at` never goes back,
        even if the clock does. Raises ModelNotFoundError and InvalidModelError.
        """
        await self._uses.record(LookupKey.validated(reference, provider, version), count)

    # All hosts

    def fleet(self, *, lost_after_s: float = DEFAULT_LOST_AFTER_S) -> Fleet:
        """
        Return read access to the models of all hosts, whatever host this catalog is for.

        A host whose last heartbeat is older than `lost_after_s` is `lost`. Raises
        InvalidModelError.
        """
        # Most catalogs have one host, and its operations take 15 ms to import.
        from model_catalog.repository.fleet.fleet import Fleet  # noqa: PLC0415

        return Fleet(self._executor, lost_after_s=lost_after_s)

    # Export and import

    async def export_catalog(
        self,
        stream: IO[str] | IO[bytes],
        *,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """
        Write the whole catalog to a stream as NDJSON, and return the number of models.

        The first line has the name and version of the format. Each other line is one model with its
        tags, aliases and files, sorted by provider, reference and version. Equal catalogs give
        equal bytes on every database. The text is ASCII, and times are ISO 8601 in UTC.

        The catalog is read in one snapshot into a temporary file, before the first line is written.
        So the memory does not grow with the number of models. The stream is written in a thread,
        and is not closed. Meanwhile `on_progress` is called in the event loop, at most ten times a
        second, with the number of models that were written and their total. Raises StorageFullError
        if the temporary file has no room.
        """
        report = None if on_progress is None else CountReporter(on_progress)
        with (
            closing(export_writer.ExportSpool(self._executor.database)) as spool,
            full_collections_paused(),
        ):
            count = await self._executor.run(export_import.export_rows(spool))
            progress = None if report is None else lambda written: report(written, count)
            await export_writer.write_export(spool, stream, progress)
        return count

    async def import_catalog(
        self,
        stream: IO[str] | IO[bytes],
        on_conflict: export_import.OnConflict = "keep",
        *,
        skip_broken: bool = False,
        trust_source: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> export_import.ImportResult:
        """
        Record the models of an `export_catalog`, in one transaction: all of them or none.

        A model that exists is kept unchanged (`keep`), replaced with its tags, aliases and files
        (`replace`), or replaced if the line's `downloaded_at` is later (`newer`). An alias in the
        line of a model that is written then points at this model. With `keep`, an alias that exists
        still points at its old model.

        The results of verifications and signature checks, and the folders in which the catalog may
        delete files, are imported only with `trust_source`, because the stream's author states
        them. Set it to restore an export of your own.

        An invalid line raises InvalidImportError with its number, also if the database refuses it;
        with `skip_broken` it is skipped and reported. A stream without the header line is always
        refused. The stream is read in a thread, and is not closed. Its lines are sorted in a
        temporary file, so the memory does not grow with their number. `timeout_s` replaces the
        timeout of the catalog, in seconds, for the transaction. During the transaction,
        `on_progress` is called in the event loop, at most ten times a second, with the number of
        models that were written or kept, and their total. A repeated transaction begins at 0.
        """
        export_import.validate_on_conflict(on_conflict)
        if timeout_s is not None:
            validation.seconds("timeout_s", timeout_s)
        reader = import_reader.ImportReader(
            stream,
            self._executor.database,
            skip_broken=skip_broken,
            trust_source=trust_source,
            progress=None if on_progress is None else CountReporter(on_progress),
        )
        with closing(reader), full_collections_paused():
            await reader.read()
            if not reader.valid_count:
                return export_import.ImportResult(0, 0, tuple(reader.problems))
            operation = export_import.import_lines(
                reader.pages, on_conflict, skip_broken=skip_broken, timeout_s=timeout_s
            )
            done = await self._executor.run(operation)
        problems = sorted((*reader.problems, *done.refused), key=lambda problem: problem.line)
        kept = reader.valid_count - done.written - len(done.refused)
        return export_import.ImportResult(done.written, kept, tuple(problems))


def executor_of(catalog: ModelCatalog) -> Executor:
    """Return the executor of a catalog, for packages with queries of their own."""
    return catalog._executor  # noqa: SLF001 - hosts must not see it


async def find_database_files(catalog: ModelCatalog) -> tuple[Path, ...]:
    """Return `database_files`, after the database itself has told them."""
    executor = executor_of(catalog)
    if not executor.database.knows_files:
        await executor.run(Operation(_ask_for_path, executor.database, single_statement=True))
    return catalog.database_files


def _ask_for_path(connection: Connection, info: DatabaseInfo) -> None:
    info.set_path(main_path(connection.connection))
