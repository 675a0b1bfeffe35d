"""Every public call of a catalog, made on a model `m` of `hf` that has a tag and an alias."""

import io
import json

from conftest import a_model, moment

from model_catalog import FileRecord, ModelCatalog
from model_catalog.domain.ndjson import HEADER

FILE = FileRecord(path="m.gguf", size_bytes=1)
LINES = HEADER + json.dumps({"reference": "m", "provider": "hf", "local_path": "/imported"})


async def iterate(catalog: ModelCatalog) -> list:
    return [model async for model in catalog.iter_models()]


async def together(catalog: ModelCatalog) -> None:
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("m"))


async def iterate_rows(catalog: ModelCatalog) -> list:
    return [row async for row in catalog.iter_rows()]


READS = {
    "count_models": lambda catalog: catalog.count_models(),
    "due": lambda catalog: catalog.due(None),
    "export_catalog": lambda catalog: catalog.export_catalog(io.StringIO()),
    "find_model": lambda catalog: catalog.find_model("m", "hf"),
    "get_model": lambda catalog: catalog.get_model("m", "hf"),
    "get_total_size": lambda catalog: catalog.get_total_size(),
    "holdings": lambda catalog: catalog.holdings(None, 1),
    "iter_models": iterate,
    "iter_rows": iterate_rows,
    "list_aliases": lambda catalog: catalog.list_aliases(),
    "list_files": lambda catalog: catalog.list_files("m", "hf"),
    "list_models": lambda catalog: catalog.list_models(),
    "list_rows": lambda catalog: catalog.list_rows(),
    "list_tags": lambda catalog: catalog.list_tags(),
    "refs": lambda catalog: catalog.refs([1]),
    "stats": lambda catalog: catalog.stats(),
}

WRITES = {
    "import_catalog": lambda catalog: catalog.import_catalog(io.StringIO(LINES), "replace"),
    "pin_model": lambda catalog: catalog.pin_model("m", "hf"),
    "record_use": lambda catalog: catalog.record_use("m", "hf"),
    "register_found": lambda catalog: catalog.register_found(
        a_model("m"), {"inventoried_at": moment(0)}, [FILE]
    ),
    "register_model": lambda catalog: catalog.register_model(a_model("m")),
    "register_models": lambda catalog: catalog.register_models([a_model("m")]),
    "relocate": lambda catalog: catalog.relocate("/models", "/elsewhere"),
    "set_alias": lambda catalog: catalog.set_alias("m", "hf", "latest"),
    "tag_model": lambda catalog: catalog.tag_model("m", "hf", "coding"),
    "transaction": together,
    "unpin_model": lambda catalog: catalog.unpin_model("m", "hf"),
    "untag_model": lambda catalog: catalog.untag_model("m", "hf", "chat"),
    "update_model": lambda catalog: catalog.update_model("m", "hf", license="mit"),
    # The others need what these take away.
    "remove_alias": lambda catalog: catalog.remove_alias("m", "hf", "latest"),
    "remove_model": lambda catalog: catalog.remove_model("m", "hf"),
}

# What the upkeep calls, on the roads that the calls above take.
OF_THE_UPKEEP = {
    "repeated",
    "store_adoption",
    "store_checks",
    "store_found",
    "store_reading",
    "stored",
}


async def fill(catalog: ModelCatalog) -> None:
    """What the calls are made on."""
    await catalog.register_model(a_model("m"), [FILE])
    await catalog.tag_model("m", "hf", "chat")
    await catalog.set_alias("m", "hf", "latest")
