"""
A catalog of the AI model files on a machine: their names, paths, sizes, formats and states.

    async with open_catalog("catalog.db") as catalog:
        await catalog.register_model(Model(reference="TinyLlama", provider="hf", local_path="/m"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from model_catalog.concurrency.gc_pauses import gc_paused

if TYPE_CHECKING:
    from model_catalog.backups.restore import RestoreResult, backup, restore
    from model_catalog.backups.salvage import RepairedTable, RepairReport, repair
    from model_catalog.connection.engines import prepare_engine
    from model_catalog.connection.sqlite_pragmas import Durability
    from model_catalog.connection.target import Target
    from model_catalog.domain.fields import ModelChanges, ModelRow, Sort
    from model_catalog.domain.file_record import FileRecord, FileState
    from model_catalog.domain.fleet.copies import (
        ExcludedHost,
        Exclusion,
        HostTotals,
        ModelCopies,
        ModelCopy,
        OfferedHost,
        PlacementPlan,
    )
    from model_catalog.domain.fleet.host import Host, HostFields, HostState
    from model_catalog.domain.model_ref import ModelName, ModelRef
    from model_catalog.errors import (
        BadHeaderError,
        BadLayoutError,
        BadSignatureError,
        CatalogBusyError,
        CatalogClosedError,
        CatalogCorruptError,
        CatalogError,
        CatalogInUseError,
        CatalogReadOnlyError,
        CatalogReplacedError,
        CatalogUnavailableError,
        ClaimLostError,
        DeletionRefusedError,
        DigestMismatchError,
        DownloadFailedError,
        DownloadTimeoutError,
        FileChangedError,
        ForeignDatabaseError,
        HeaderLimitError,
        HostHasModelsError,
        HostNotFoundError,
        HubDownloadError,
        IncompleteDownloadError,
        InvalidImportError,
        InvalidKeyError,
        InvalidModelError,
        InvalidTargetError,
        MissingPrivilegeError,
        ModelInUseError,
        ModelNotFoundError,
        NotAFileError,
        NotEnoughSpaceError,
        NotInstalledError,
        PlaceholderError,
        ProtectedFileError,
        SchemaOutOfDateError,
        SchemaTooNewError,
        StoppedError,
        StorageFullError,
        TooManyMissingError,
        TransactionError,
        UnknownFormatError,
        UpgradeFailedError,
        WrongLoopError,
    )
    from model_catalog.execution.observation.records import CatalogCall, ModelChange
    from model_catalog.execution.sqlite_threads.thread_executor import ReadMode
    from model_catalog.mapping.tables import Model
    from model_catalog.opening import open_catalog
    from model_catalog.repository.fleet.fleet import Fleet
    from model_catalog.repository.fleet.host_registry import HostRegistry
    from model_catalog.repository.model_catalog import ModelCatalog
    from model_catalog.repository.operations.export_import import ImportResult
    from model_catalog.repository.operations.labels import Alias, TagCount
    from model_catalog.repository.operations.listing import ModelPage
    from model_catalog.repository.operations.statistics import CatalogStats, ModelTotals
    from model_catalog.repository.statements.filters import Filters
    from model_catalog.schema.diagnosis import check_schema
    from model_catalog.schema.host_connection import upgrade_connection
    from model_catalog.schema.migrate import downgrade, upgrade
    from model_catalog.schema.revision import schema_state

    Changes = ModelChanges
    Imported = ImportResult
    Reads = ReadMode
    Repaired = RepairReport
    Restored = RestoreResult
    Saved = RepairedTable
    Stats = CatalogStats
    Tally = ModelTotals

__all__ = [
    "Alias",
    "BadHeaderError",
    "BadLayoutError",
    "BadSignatureError",
    "CatalogBusyError",
    "CatalogCall",
    "CatalogClosedError",
    "CatalogCorruptError",
    "CatalogError",
    "CatalogInUseError",
    "CatalogReadOnlyError",
    "CatalogReplacedError",
    "CatalogStats",
    "CatalogUnavailableError",
    "ClaimLostError",
    "DeletionRefusedError",
    "DigestMismatchError",
    "DownloadFailedError",
    "DownloadTimeoutError",
    "Durability",
    "ExcludedHost",
    "Exclusion",
    "FileChangedError",
    "FileRecord",
    "FileState",
    "Filters",
    "Fleet",
    "ForeignDatabaseError",
    "HeaderLimitError",
    "Host",
    "HostFields",
    "HostHasModelsError",
    "HostNotFoundError",
    "HostRegistry",
    "HostState",
    "HostTotals",
    "HubDownloadError",
    "ImportResult",
    "IncompleteDownloadError",
    "InvalidImportError",
    "InvalidKeyError",
    "InvalidModelError",
    "InvalidTargetError",
    "MissingPrivilegeError",
    "Model",
    "ModelCatalog",
    "ModelChange",
    "ModelChanges",
    "ModelCopies",
    "ModelCopy",
    "ModelInUseError",
    "ModelName",
    "ModelNotFoundError",
    "ModelPage",
    "ModelRef",
    "ModelRow",
    "ModelTotals",
    "NotAFileError",
    "NotEnoughSpaceError",
    "NotInstalledError",
    "OfferedHost",
    "PlaceholderError",
    "PlacementPlan",
    "ProtectedFileError",
    "ReadMode",
    "RepairReport",
    "RepairedTable",
    "RestoreResult",
    "SchemaOutOfDateError",
    "SchemaTooNewError",
    "Sort",
    "StoppedError",
    "StorageFullError",
    "TagCount",
    "Target",
    "TooManyMissingError",
    "TransactionError",
    "UnknownFormatError",
    "UpgradeFailedError",
    "WrongLoopError",
    "backup",
    "check_schema",
    "downgrade",
    "open_catalog",
    "prepare_engine",
    "repair",
    "restore",
    "schema_state",
    "upgrade",
    "upgrade_connection",
]

# The modules of the names that are not in the package errors.
_MODULES = {
    "Alias": "repository.operations.labels",
    "CatalogCall": "execution.observation.records",
    "CatalogStats": "repository.operations.statistics",
    "Durability": "connection.sqlite_pragmas",
    "ExcludedHost": "domain.fleet.copies",
    "Exclusion": "domain.fleet.copies",
    "FileRecord": "domain.file_record",
    "FileState": "domain.file_record",
    "Filters": "repository.statements.filters",
    "Fleet": "repository.fleet.fleet",
    "Host": "domain.fleet.host",
    "HostFields": "domain.fleet.host",
    "HostRegistry": "repository.fleet.host_registry",
    "HostState": "domain.fleet.host",
    "HostTotals": "domain.fleet.copies",
    "ImportResult": "repository.operations.export_import",
    "Model": "mapping.tables",
    "ModelCatalog": "repository.model_catalog",
    "ModelChange": "execution.observation.records",
    "ModelChanges": "domain.fields",
    "ModelCopies": "domain.fleet.copies",
    "ModelCopy": "domain.fleet.copies",
    "ModelName": "domain.model_ref",
    "ModelPage": "repository.operations.listing",
    "ModelRef": "domain.model_ref",
    "ModelRow": "domain.fields",
    "ModelTotals": "repository.operations.statistics",
    "OfferedHost": "domain.fleet.copies",
    "PlacementPlan": "domain.fleet.copies",
    "ReadMode": "execution.sqlite_threads.thread_executor",
    "RepairReport": "backups.salvage",
    "RepairedTable": "backups.salvage",
    "RestoreResult": "backups.restore",
    "Sort": "domain.fields",
    "TagCount": "repository.operations.labels",
    "Target": "connection.target",
    "backup": "backups.restore",
    "check_schema": "schema.diagnosis",
    "downgrade": "schema.migrate",
    "open_catalog": "opening",
    "prepare_engine": "connection.engines",
    "repair": "backups.salvage",
    "restore": "backups.restore",
    "schema_state": "schema.revision",
    "upgrade": "schema.migrate",
    "upgrade_connection": "schema.host_connection",
}

# Names of release 0.1.0 that have a clearer name now. They keep working.
_RENAMED = {
    "Changes": "ModelChanges",
    "Imported": "ImportResult",
    "Reads": "ReadMode",
    "Repaired": "RepairReport",
    "Restored": "RestoreResult",
    "Saved": "RepairedTable",
    "Stats": "CatalogStats",
    "Tally": "ModelTotals",
}


# A name is imported when it is first used. SQLAlchemy takes half a second to import, and
# `model-catalog --help` does not need it.
def __getattr__(name: str) -> Any:
    name = _RENAMED.get(name, name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Modules stay, so the collector would find nothing. It would take a quarter of the time.
    with gc_paused():
        module = import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
