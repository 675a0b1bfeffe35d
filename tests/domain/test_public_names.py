"""The public names of the package, and the older names that stay valid."""

import asyncio
import importlib
import subprocess
import sys
import typing

import pytest

import model_catalog
import model_catalog.upkeep
from model_catalog import ModelCatalog, open_catalog, upgrade

RELEASE_0_1_0 = {
    "model_catalog": [
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
    ],
    "model_catalog.upkeep": [
        "Adopted",
        "Checked",
        "Copy",
        "Duplicate",
        "Finding",
        "Moved",
        "Place",
        "Progress",
        "Recorded",
        "Sighting",
        "Signature",
        "Verdict",
        "Verified",
        "Watch",
        "accept_model",
        "adopt",
        "check_models",
        "find_duplicates",
        "find_moved",
        "register_path",
        "relink_model",
        "scan_store",
        "verify_models",
        "verify_signature",
        "watch",
    ],
}
RENAMED = {
    "model_catalog": {
        "Changes": "ModelChanges",
        "Imported": "ImportResult",
        "Reads": "ReadMode",
        "Repaired": "RepairReport",
        "Restored": "RestoreResult",
        "Saved": "RepairedTable",
        "Stats": "CatalogStats",
        "Tally": "ModelTotals",
    },
    "model_catalog.upkeep": {
        "Adopted": "StoreSyncReport",
        "Checked": "CheckReport",
        "Copy": "DuplicateCopy",
        "Duplicate": "DuplicateSet",
        "Finding": "CheckFinding",
        "Moved": "MovedModel",
        "Place": "CopyLocation",
        "Recorded": "RegisteredPath",
        "Sighting": "StoreFinding",
        "Verified": "VerifiedModel",
        "Watch": "WatchReport",
    },
}


@pytest.mark.parametrize("module", RELEASE_0_1_0)
def test_every_name_of_release_0_1_0_can_be_imported(module):
    """A program that was written for 0.1.0 finds each name, under its old or its new meaning."""
    imported = importlib.import_module(module)

    for name in RELEASE_0_1_0[module]:
        assert getattr(imported, name) is not None, name


@pytest.mark.parametrize("module", RENAMED)
def test_an_old_name_is_the_same_object_as_the_new_name(module):
    """A renamed class is one class, so that `isinstance` accepts both names."""
    imported = importlib.import_module(module)

    for old, new in RENAMED[module].items():
        assert getattr(imported, old) is getattr(imported, new), old


@pytest.mark.parametrize("module", RENAMED)
def test_only_the_new_names_are_listed(module):
    """`__all__` and completion show each object once; every listed name can be imported."""
    imported = importlib.import_module(module)

    assert not set(RENAMED[module]) & set(imported.__all__)
    assert set(RELEASE_0_1_0[module]) - set(RENAMED[module]) <= set(imported.__all__)
    assert dir(model_catalog) == sorted(model_catalog.__all__)
    for name in imported.__all__:
        getattr(imported, name)


def test_an_unknown_name_raises_attribute_error():
    """The lazy import behaves like a module without that attribute."""
    with pytest.raises(AttributeError, match=r"module 'model_catalog' has no attribute 'Modle'"):
        model_catalog.Modle  # noqa: B018


def test_importing_the_package_does_not_import_sqlalchemy():
    """SQLAlchemy takes half a second to import; `model-catalog --help` does not need it."""
    program = (
        "import sys, model_catalog\n"
        "from model_catalog import CatalogError, FileState, ModelRef, ModelRow\n"
        "print(sorted({'sqlalchemy', 'alembic', 'aiosqlite'} & sys.modules.keys()))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )

    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_using_a_sqlite_file_does_not_import_the_dialect_of_postgresql(tmp_path):
    """Nor what only a scan of files, a fleet or a migration needs: each takes 15 to 30 ms."""
    program = (
        "import asyncio, sys\n"
        "from model_catalog import Model, open_catalog\n"
        "async def main():\n"
        "    async with open_catalog(sys.argv[1]) as catalog:\n"
        "        model = Model(reference='m', provider='p', local_path='/m')\n"
        "        await catalog.register_model(model)\n"
        "        await catalog.list_models(provider='p')\n"
        "asyncio.run(main())\n"
        "heavy = ['sqlalchemy.dialects.postgresql', 'asyncpg', 'psycopg']\n"
        "heavy += ['model_catalog.files.file_names', 'model_catalog.repository.fleet.fleet']\n"
        "heavy += ['model_catalog.schema.migrate', 'model_catalog.execution.postgres_executor']\n"
        "heavy += ['model_catalog.execution.session_executor', 'ctypes']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    path = tmp_path / "catalog.db"
    asyncio.run(upgrade(path))

    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


def test_the_common_names_are_imported_without_the_operations_that_few_programs_use():
    """Together they would add a third to the time that the package adds to SQLAlchemy's."""
    code = (
        "import sys\n"
        "from model_catalog import Model, open_catalog\n"
        "rare = ['aiosqlite', 'ctypes']\n"
        "rare += ['model_catalog.' + name for name in (\n"
        "    'files.digest', 'domain.ndjson', 'domain.fleet.host',\n"
        "    'repository.export_writer', 'repository.import_reader',\n"
        "    'files.formats.unread_formats', 'execution.observation.records',\n"
        "    'execution.postgres_executor', 'execution.session_executor')]\n"
        "rare += ['model_catalog.repository.operations.' + name for name in (\n"
        "    'export_import', 'labels', 'listing', 'model_files', 'relocation', 'statistics')]\n"
        "print([name for name in rare if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_type_hints_of_the_methods_can_be_evaluated():
    """Also those of the methods whose operations are imported at their first use."""
    for name in dir(ModelCatalog):
        method = getattr(ModelCatalog, name)
        if not name.startswith("_") and callable(method) and name != "fleet":
            typing.get_type_hints(method)
    typing.get_type_hints(ModelCatalog.__init__)
    typing.get_type_hints(open_catalog)
