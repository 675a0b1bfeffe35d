"""
Every method of a catalog and the queries of upkeep, as functions of a catalog.

`fill` records the model that they work on: `m` of `hf`, with a file, a tag and an alias. Each
write changes a row of it, so that it waits for a lock on that row.
"""

import io
import json

from conftest import a_model, moment

from model_catalog import FileRecord, FileState, ModelCatalog
from model_catalog.domain.ndjson import HEADER
from model_catalog.upkeep.queries.check_queries import (
    CheckedModel,
    CheckResult,
    load_check_rows,
    refs_by_id,
    save_check_results,
)
from model_catalog.upkeep.queries.duplicate_queries import duplicate_digest_rows
from model_catalog.upkeep.queries.store_sync_queries import (
    AliasChanges,
    ModelToStore,
    load_store_rows,
    save_store_sync,
)
from model_catalog.upkeep.queries.verification_queries import (
    register_inspected,
    save_file_digest,
    save_inspection,
    verification_candidates,
)

FILE = FileRecord(path="m.gguf", size_bytes=1, digest="sha256:" + 64 * "0")
RECORDED = a_model("m", digest=FILE.digest)
RECORDED.id = 1
FOUND = CheckResult(
    CheckedModel(1, RECORDED.local_path, None, FileState.UNCHECKED, None, None, is_damaged=False),
    FileState.PRESENT,
)
IN_STORE = ModelToStore(("hf", "m", ""), 1, {"source_url": None}, None)
LINES = HEADER + json.dumps({"reference": "m", "provider": "hf", "local_path": "/imported"})
NO_ALIASES = AliasChanges("ollama", {}, ())


async def iterate(catalog: ModelCatalog) -> list:
    return [model async for model in catalog.iter_models()]


async def open_transaction(catalog: ModelCatalog) -> None:
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("m"))


async def iterate_rows(catalog: ModelCatalog) -> list:
    return [row async for row in catalog.iter_rows()]


async def rename_and_back(catalog: ModelCatalog) -> None:
    await catalog.rename_model("m", "hf", new_version="v9")
    await catalog.rename_model("m", "hf", new_version="")


PUBLIC_READS = {
    "count_models": lambda catalog: catalog.count_models(),
    "export_catalog": lambda catalog: catalog.export_catalog(io.StringIO()),
    "find_model": lambda catalog: catalog.find_model("m", "hf"),
    "find_model_by_id": lambda catalog: catalog.find_model_by_id(1),
    "fleet": lambda catalog: catalog.fleet().who_has("hf:m"),
    "get_model": lambda catalog: catalog.get_model("m", "hf"),
    "get_model_by_id": lambda catalog: catalog.get_model_by_id(1),
    "get_total_size": lambda catalog: catalog.get_total_size(),
    "get_disk_usage": lambda catalog: catalog.get_disk_usage(),
    "iter_models": iterate,
    "iter_rows": iterate_rows,
    "list_aliases": lambda catalog: catalog.list_aliases(),
    "list_files": lambda catalog: catalog.list_files("m", "hf"),
    "list_models": lambda catalog: catalog.list_models(),
    "list_page": lambda catalog: catalog.list_page(limit=1),
    "list_rows": lambda catalog: catalog.list_rows(),
    "list_tags": lambda catalog: catalog.list_tags(),
    "stats": lambda catalog: catalog.stats(),
}

UPKEEP_READS = {
    "duplicate_digest_rows": lambda catalog: duplicate_digest_rows(catalog, None, 1),
    "load_check_rows": lambda catalog: load_check_rows(catalog, None, 1),
    "load_store_rows": lambda catalog: load_store_rows(catalog, "ollama", "/o", [("hf", "m")]),
    "refs_by_id": lambda catalog: refs_by_id(catalog, [1]),
    "verification_candidates": lambda catalog: verification_candidates(catalog, None),
}

READS = PUBLIC_READS | UPKEEP_READS

PUBLIC_WRITES = {
    "import_catalog": lambda catalog: catalog.import_catalog(io.StringIO(LINES), "replace"),
    "pin_model": lambda catalog: catalog.pin_model("m", "hf"),
    "record_use": lambda catalog: catalog.record_use("m", "hf"),
    "register_model": lambda catalog: catalog.register_model(a_model("m")),
    "register_models": lambda catalog: catalog.register_models([a_model("m")]),
    "relocate": lambda catalog: catalog.relocate("/models", "/elsewhere"),
    "rename_model": rename_and_back,
    "set_alias": lambda catalog: catalog.set_alias("m", "hf", "latest"),
    "tag_model": lambda catalog: catalog.tag_model("m", "hf", "coding"),
    "transaction": open_transaction,
    "unpin_model": lambda catalog: catalog.unpin_model("m", "hf"),
    "untag_model": lambda catalog: catalog.untag_model("m", "hf", "chat"),
    "update_model": lambda catalog: catalog.update_model("m", "hf", license="mit"),
    # Last: the other calls need what these delete.
    "remove_alias": lambda catalog: catalog.remove_alias("m", "hf", "latest"),
    "remove_model": lambda catalog: catalog.remove_model("m", "hf"),
}

UPKEEP_WRITES = {
    "register_inspected": lambda catalog: register_inspected(
        catalog, a_model("m"), {"inventoried_at": moment(0)}, [FILE]
    ),
    "save_check_results": lambda catalog: save_check_results(catalog, [FOUND], moment(0)),
    "save_file_digest": lambda catalog: save_file_digest(catalog, RECORDED, FILE),
    "save_inspection": lambda catalog: save_inspection(
        catalog, RECORDED, {"verified_at": moment(0)}, [FILE]
    ),
    "save_store_sync": lambda catalog: save_store_sync(catalog, [IN_STORE], NO_ALIASES),
}

WRITES = UPKEEP_WRITES | PUBLIC_WRITES


async def fill(catalog: ModelCatalog) -> None:
    """Record the model that the calls work on."""
    await catalog.register_model(a_model("m"), [FILE])
    await catalog.tag_model("m", "hf", "chat")
    await catalog.set_alias("m", "hf", "latest")
