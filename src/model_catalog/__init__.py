"""
A catalog of the AI model files on a machine: what they are, where they lie, how large they are.

    async with open_catalog("catalog.db") as catalog:
        await catalog.register_model(Model(reference="TinyLlama", provider="hf", local_path="/m"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_catalog.backups import Restored, backup, restore
    from model_catalog.catalog import Changes, ModelCatalog, Stats, Tally
    from model_catalog.engine import prepare_engine
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
        DigestMismatchError,
        FileChangedError,
        ForeignDatabaseError,
        InvalidImportError,
        InvalidKeyError,
        InvalidModelError,
        InvalidTargetError,
        ModelNotFoundError,
        NotAFileError,
        NotInstalledError,
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
    from model_catalog.exchange import Imported
    from model_catalog.inline import Reads
    from model_catalog.inventory import FileRecord, FileState
    from model_catalog.journal import Durability
    from model_catalog.labels import Alias, TagCount
    from model_catalog.lifecycle import open_catalog
    from model_catalog.model import Model
    from model_catalog.modelrow import ModelRow
    from model_catalog.order import Sort
    from model_catalog.query import Filters
    from model_catalog.reference import ModelRef
    from model_catalog.salvage import Repaired, Saved, repair
    from model_catalog.schema import check_schema, downgrade, schema_state, upgrade
    from model_catalog.target import Target

__all__ = [
    "Alias",
    "BadHeaderError",
    "BadLayoutError",
    "BadSignatureError",
    "CatalogBusyError",
    "CatalogClosedError",
    "CatalogCorruptError",
    "CatalogError",
    "CatalogInUseError",
    "CatalogReadOnlyError",
    "CatalogReplacedError",
    "CatalogUnavailableError",
    "Changes",
    "DigestMismatchError",
    "Durability",
    "FileChangedError",
    "FileRecord",
    "FileState",
    "Filters",
    "ForeignDatabaseError",
    "Imported",
    "InvalidImportError",
    "InvalidKeyError",
    "InvalidModelError",
    "InvalidTargetError",
    "Model",
    "ModelCatalog",
    "ModelNotFoundError",
    "ModelRef",
    "ModelRow",
    "NotAFileError",
    "NotInstalledError",
    "ProtectedFileError",
    "Reads",
    "Repaired",
    "Restored",
    "Saved",
    "SchemaOutOfDateError",
    "SchemaTooNewError",
    "Sort",
    "Stats",
    "StoppedError",
    "StorageFullError",
    "TagCount",
    "Tally",
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
]

_ROOMS = {
    "Alias": "labels",
    "Changes": "catalog",
    "Durability": "journal",
    "FileRecord": "inventory",
    "FileState": "inventory",
    "Filters": "query",
    "Imported": "exchange",
    "Model": "model",
    "ModelCatalog": "catalog",
    "ModelRef": "reference",
    "ModelRow": "modelrow",
    "Reads": "inline",
    "Repaired": "salvage",
    "Restored": "backups",
    "Saved": "salvage",
    "Sort": "order",
    "Stats": "catalog",
    "TagCount": "labels",
    "Tally": "catalog",
    "Target": "target",
    "backup": "backups",
    "check_schema": "schema",
    "downgrade": "schema",
    "open_catalog": "lifecycle",
    "prepare_engine": "engine",
    "repair": "salvage",
    "restore": "backups",
    "schema_state": "schema",
    "upgrade": "schema",
}


# SQLAlchemy takes half a second to import, and `model-catalog --help` needs none of it: a name is
# fetched from its room when it is first asked for.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
