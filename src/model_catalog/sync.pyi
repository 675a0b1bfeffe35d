from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, overload

from sqlalchemy import URL

from model_catalog.connection.sqlite_pragmas import Durability
from model_catalog.connection.target import Target
from model_catalog.domain.fields import ModelChanges, ModelRow, Sort
from model_catalog.domain.file_record import FileRecord
from model_catalog.domain.fleet.copies import HostTotals, ModelCopies, ModelCopy, PlacementPlan
from model_catalog.domain.fleet.host import Host, HostFields
from model_catalog.domain.model_ref import ModelName, ModelRef, NamedModel
from model_catalog.execution.observation import records
from model_catalog.execution.sqlite_threads.thread_executor import ReadMode
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.operations import (
    export_import,
    labels,
    listing,
    relocation,
    statistics,
)
from model_catalog.repository.operations.fleet.hosts import ModelsOfHost
from model_catalog.repository.statements.filters import Filters

__all__ = ["SyncCatalog", "SyncFleet", "SyncHostRegistry", "open_catalog"]
_P = ParamSpec("_P")
_T = TypeVar("_T")

class SyncCatalog:
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def close(self) -> None: ...
    @overload
    def run(
        self,
        function: Callable[Concatenate[ModelCatalog, _P], Coroutine[Any, Any, _T]],
        /,
        *args: _P.args,
        **options: _P.kwargs,
    ) -> _T: ...
    @overload
    def run(
        self,
        function: Callable[Concatenate[ModelCatalog, _P], AsyncIterator[_T]],
        /,
        *args: _P.args,
        **options: _P.kwargs,
    ) -> Iterator[_T]: ...
    @overload
    def run(
        self,
        function: Callable[Concatenate[ModelCatalog, _P], AbstractAsyncContextManager[_T]],
        /,
        *args: _P.args,
        **options: _P.kwargs,
    ) -> AbstractContextManager[_T]: ...
    @property
    def database_files(self) -> tuple[Path, ...]: ...
    @property
    def host(self) -> str: ...
    def transaction(self) -> AbstractContextManager[Self]: ...
    def register_model(self, model: Model, files: Sequence[FileRecord] | None = None) -> Model: ...
    def register_models(self, models: Iterable[Model | Mapping[str, object]]) -> int: ...
    def update_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        **changes: Unpack[ModelChanges],
    ) -> Model: ...
    def remove_model(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> bool: ...
    def rename_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        *,
        new_reference: str | None = None,
        new_version: str | None = None,
    ) -> Model: ...
    def relocate(
        self, old_prefix: str, new_prefix: str, *, dry_run: bool = False
    ) -> list[relocation.RelocatedModel]: ...
    def find_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        *,
        present: bool = False,
    ) -> Model | None: ...
    def get_model(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> Model: ...
    def find_model_by_id(self, model_id: int) -> Model | None: ...
    def get_model_by_id(self, model_id: int) -> Model: ...
    def list_files(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> list[FileRecord]: ...
    def list_models(
        self,
        *,
        sort: Sort = ...,
        descending: bool | None = None,
        limit: int | None = None,
        after: Model | ModelRow | None = None,
        **filters: Unpack[Filters],
    ) -> list[Model]: ...
    def list_page(
        self,
        *,
        limit: int = 100,
        page_token: str | None = None,
        sort: Sort = ...,
        descending: bool | None = None,
        **filters: Unpack[Filters],
    ) -> listing.ModelPage: ...
    def list_rows(
        self,
        *,
        sort: Sort = ...,
        descending: bool | None = None,
        limit: int | None = None,
        after: Model | ModelRow | None = None,
        **filters: Unpack[Filters],
    ) -> list[ModelRow]: ...
    def iter_models(
        self, *, sort: Sort = ..., descending: bool | None = None, **filters: Unpack[Filters]
    ) -> Iterator[Model]: ...
    def iter_rows(
        self, *, sort: Sort = ..., descending: bool | None = None, **filters: Unpack[Filters]
    ) -> Iterator[ModelRow]: ...
    def count_models(self, **filters: Unpack[Filters]) -> int: ...
    def get_total_size(self, **filters: Unpack[Filters]) -> int: ...
    def get_disk_usage(self, **filters: Unpack[Filters]) -> int: ...
    def stats(self, **filters: Unpack[Filters]) -> statistics.CatalogStats: ...
    @overload
    def tag_model(self, model: ModelRef | NamedModel, /, *tags: str) -> Model: ...
    @overload
    def tag_model(self, model: ModelName, /, *, tags: Iterable[str]) -> Model: ...
    @overload
    def tag_model(
        self, reference: str, provider: str, *tags: str, version: str | None = None
    ) -> Model: ...
    @overload
    def untag_model(self, model: ModelRef | NamedModel, /, *tags: str) -> Model: ...
    @overload
    def untag_model(self, model: ModelName, /, *, tags: Iterable[str]) -> Model: ...
    @overload
    def untag_model(
        self, reference: str, provider: str, *tags: str, version: str | None = None
    ) -> Model: ...
    def list_tags(self, **filters: Unpack[Filters]) -> list[labels.TagCount]: ...
    def pin_model(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        *,
        reason: str | None = None,
    ) -> Model: ...
    def unpin_model(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> Model: ...
    @overload
    def set_alias(self, model: ModelRef | NamedModel, alias: str, /) -> labels.Alias: ...
    @overload
    def set_alias(self, model: ModelName, /, *, alias: str) -> labels.Alias: ...
    @overload
    def set_alias(
        self, reference: str, provider: str, alias: str, version: str | None = None
    ) -> labels.Alias: ...
    @overload
    def remove_alias(self, model: ModelRef | NamedModel, alias: str, /) -> bool: ...
    @overload
    def remove_alias(self, model: ModelName, /, *, alias: str) -> bool: ...
    @overload
    def remove_alias(self, reference: str, provider: str, alias: str) -> bool: ...
    def list_aliases(
        self, reference: ModelName | None = None, provider: str | None = None
    ) -> list[labels.Alias]: ...
    def record_use(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        count: int = 1,
    ) -> None: ...
    def fleet(self, *, lost_after_s: float = ...) -> SyncFleet: ...
    def export_catalog(
        self,
        stream: IO[str] | IO[bytes],
        *,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> int: ...
    def import_catalog(
        self,
        stream: IO[str] | IO[bytes],
        on_conflict: export_import.OnConflict = "keep",
        *,
        skip_broken: bool = False,
        trust_source: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> export_import.ImportResult: ...

class SyncFleet:
    def who_has(
        self, reference: ModelName, provider: str | None = None, version: str | None = None
    ) -> list[ModelCopy]: ...
    def totals_by_host(self) -> list[HostTotals]: ...
    def list_scarce_models(
        self, *, copy_count: int = 1, limit: int = 100, after: ModelRef | None = None
    ) -> list[ModelCopies]: ...
    def list_spare_models(
        self, *, keep: int = 2, limit: int = 100, after: ModelRef | None = None
    ) -> list[ModelCopies]: ...
    def plan_placement(
        self,
        reference: ModelName,
        provider: str | None = None,
        version: str | None = None,
        *,
        size_bytes: int | None = None,
        reserve_bytes: int = 0,
        labels: Mapping[str, str] | None = None,
    ) -> PlacementPlan: ...
    def list_models(
        self,
        *,
        hosts: Sequence[str] | None = None,
        limit: int | None = None,
        after: Model | None = None,
        **filters: Unpack[Filters],
    ) -> list[Model]: ...
    def iter_models(
        self, *, hosts: Sequence[str] | None = None, **filters: Unpack[Filters]
    ) -> Iterator[Model]: ...

class SyncHostRegistry:
    def __init__(self, catalog: SyncCatalog, *, lost_after_s: float = ...) -> None: ...
    def register_host(self, name: str, **fields: Unpack[HostFields]) -> Host: ...
    def find_host(self, name: str) -> Host | None: ...
    def list_hosts(self, *, labels: Mapping[str, str] | None = None) -> list[Host]: ...
    def remove_host(self, name: str, *, models: ModelsOfHost = "refuse") -> bool: ...
    def heartbeat(
        self, name: str, *, free_bytes: int | None = None, timeout_s: float | None = None
    ) -> None: ...
    def beat(
        self, name: str, *, interval_s: float = ..., path: str | PathLike[str] | None = None
    ) -> AbstractContextManager[None]: ...

def open_catalog(
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
) -> SyncCatalog: ...
