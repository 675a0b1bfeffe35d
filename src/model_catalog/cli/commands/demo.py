"""The command `demo`: shows what a catalog does, on files made for it."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path

from model_catalog.cli.commands.demo_files import huggingface_cache, make_gguf, ollama_store
from model_catalog.cli.exit_codes import DONE
from model_catalog.cli.output import human_size, pluralize, print_line
from model_catalog.mapping.tables import Model
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.schema.revision import schema_state
from model_catalog.stores.scan_result import StoreName
from model_catalog.upkeep import adopt, find_duplicates, scan_store


async def demo(_options: Namespace) -> int:
    """Open, register, find, list, add up, remove, reopen and scan in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="model-catalog-demo-") as folder:
        await _run(Path(folder))
    return DONE


async def _run(folder: Path) -> None:
    tiny = folder / "tiny.gguf"
    tiny.write_bytes(make_gguf("llama", context_length=2048))
    small = folder / "small.bin"
    small.write_bytes(bytes(4096))
    database = folder / "catalog.db"

    _print_call("open_catalog('catalog.db')")
    async with open_catalog(database) as catalog:
        current, _ = await schema_state(database)
        _print_result(f"created, with tables at revision {current}; only you can read the file")
        await _register_and_remove(catalog, folder, tiny, small)

    _print_call("the catalog is closed and opened again")
    async with open_catalog(database) as catalog:
        models = await catalog.list_models()
        _print_result(f"{pluralize(len(models), 'model')}, {await catalog.get_total_size()} bytes")

        await _scan(catalog, folder)


async def _register_and_remove(
    catalog: ModelCatalog, folder: Path, tiny: Path, small: Path
) -> None:
    _print_call("register_model(Model(reference='tiny', provider='demo', ...))")
    model = await catalog.register_model(_model("tiny", tiny))
    _print_result(_describe(model))

    _print_call("find_model('tiny', 'demo')")
    found = await catalog.find_model("tiny", "demo")
    _print_result(_describe(found))
    _print_call("find_model('tiny', 'elsewhere')")
    _print_result(_describe(await catalog.find_model("tiny", "elsewhere")))

    moved = tiny.rename(folder / "moved.gguf")
    _print_call("register_model(...) again, after the file was moved")
    model = await catalog.register_model(_model("tiny", moved))
    _print_result(f"{_describe(model)}: the same row, number {model.id}")

    _print_call("register_models([...]): two versions of another model, in one transaction")
    count = await catalog.register_models(
        _model("small", small, version=version) for version in ("v1", "v2")
    )
    _print_result(pluralize(count, "model"))

    _print_call("list_models()")
    for each in await catalog.list_models():
        _print_result(_describe(each))
    _print_call("get_total_size()")
    _print_result(f"{await catalog.get_total_size()} bytes")

    _print_call("remove_model('tiny', 'demo')")
    was_removed = await catalog.remove_model("tiny", "demo")
    _print_result(f"{was_removed}; does the file still exist? {moved.is_file()}")


async def _scan(catalog: ModelCatalog, folder: Path) -> None:
    weights = make_gguf("llama", context_length=2048)
    huggingface_cache(folder / "hub", weights)
    ollama_store(folder / "ollama", weights)
    stores: list[tuple[StoreName, str]] = [("huggingface", "hub"), ("ollama", "ollama")]
    for store, name in stores:
        _print_call(f"adopt(catalog, await scan_store(catalog, {store!r}, {name!r}))")
        report = await adopt(catalog, await scan_store(catalog, store, folder / name))
        for finding in report.new:
            _print_result(f"new: {finding.ref}, {human_size(finding.size_bytes)}, in place")

    _print_call("list_models(foreign=True): models in other programs' stores, never deleted")
    for each in await catalog.list_models(foreign=True):
        _print_result(f"{_describe(each)} ({each.store})")
    _print_call("find_duplicates(catalog)")
    for duplicate in await find_duplicates(catalog):
        size = human_size(duplicate.redundant_bytes)
        _print_result(
            f"{duplicate.digest[:19]}...: {len(duplicate.copies)} copies, {size} redundant"
        )
    _print_call("the same scan again, with nothing changed")
    again = await adopt(catalog, await scan_store(catalog, "ollama", folder / "ollama"))
    _print_result(f"{len(again.unchanged)} unchanged; nothing was written")


def _model(reference: str, path: Path, version: str = "") -> Model:
    return Model(
        reference=reference,
        provider="demo",
        version=version,
        local_path=str(path),
        size_bytes=path.stat().st_size,
    )


def _describe(model: Model | None) -> str:
    if model is None:
        return "None"
    version = f"@{model.version}" if model.version else ""
    name = Path(model.local_path).name
    return f"{model.provider}:{model.reference}{version}, {human_size(model.size_bytes)}, in {name}"


def _print_call(call: str) -> None:
    print_line(f"> {call}")


def _print_result(text: str) -> None:
    print_line(f"    {text}")
