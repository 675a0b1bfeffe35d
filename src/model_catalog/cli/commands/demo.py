"""The life of a catalog, walked through on files made for it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from model_catalog.cli.commands.demo_files import huggingface_cache, make_gguf, ollama_store
from model_catalog.cli.output import human_size, pluralize, print_line
from model_catalog.mapping.tables import Model
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.schema.revision import schema_state
from model_catalog.stores.scan_result import StoreName
from model_catalog.upkeep import adopt, find_duplicates, scan_store


async def run_demo() -> None:
    """Open, register, find, list, total, remove, reopen, scan; leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="model-catalog-demo-") as folder:
        await _walk(Path(folder))


async def _walk(folder: Path) -> None:
    tiny = folder / "tiny.gguf"
    tiny.write_bytes(make_gguf("llama", context_length=2048))
    notes = folder / "small.bin"
    notes.write_bytes(bytes(4096))
    database = folder / "catalog.db"

    _step("open_catalog('catalog.db')")
    async with open_catalog(database) as catalog:
        current, _ = await schema_state(database)
        _answer(f"made, with its tables at revision {current}; the file is yours alone")

        _step("register_model(Model(reference='tiny', provider='demo', ...))")
        model = await catalog.register_model(_model("tiny", tiny))
        _answer(_told(model))

        _step("find_model('tiny', 'demo')")
        found = await catalog.find_model("tiny", "demo")
        _answer(_told(found))
        _step("find_model('tiny', 'elsewhere')")
        _answer(_told(await catalog.find_model("tiny", "elsewhere")))

        moved = tiny.rename(folder / "moved.gguf")
        _step("register_model(...) again, after the file has moved")
        model = await catalog.register_model(_model("tiny", moved))
        _answer(f"{_told(model)}: the same row, number {model.id}")

        _step("register_models([...]): two versions of another one, all or nothing")
        count = await catalog.register_models(
            _model("small", notes, version=version) for version in ("v1", "v2")
        )
        _answer(pluralize(count, "model"))

        _step("list_models()")
        for each in await catalog.list_models():
            _answer(_told(each))
        _step("get_total_size()")
        _answer(f"{await catalog.get_total_size()} bytes")

        _step("remove_model('tiny', 'demo')")
        known = await catalog.remove_model("tiny", "demo")
        _answer(f"{known}; is the file still there? {moved.is_file()}")

    _step("the catalog is closed, and opened again")
    async with open_catalog(database) as catalog:
        models = await catalog.list_models()
        _answer(f"{pluralize(len(models), 'model')}, {await catalog.get_total_size()} bytes")

        await _scan(catalog, folder)


async def _scan(catalog: ModelCatalog, folder: Path) -> None:
    weights = make_gguf("llama", context_length=2048)
    huggingface_cache(folder / "hub", weights)
    ollama_store(folder / "ollama", weights)
    stores: list[tuple[StoreName, str]] = [("huggingface", "hub"), ("ollama", "ollama")]
    for store, name in stores:
        _step(f"adopt(catalog, await scan_store(catalog, {store!r}, {name!r}))")
        done = await adopt(catalog, await scan_store(catalog, store, folder / name))
        for sighting in done.new:
            _answer(f"new: {sighting.ref}, {human_size(sighting.size_bytes)}, in place")

    _step("list_models(foreign=True): what other programs keep, and nobody offers to delete")
    for each in await catalog.list_models(foreign=True):
        _answer(f"{_told(each)} ({each.store})")
    _step("find_duplicates(catalog)")
    for duplicate in await find_duplicates(catalog):
        size = human_size(duplicate.redundant_bytes)
        _answer(f"{duplicate.digest[:19]}...: {len(duplicate.copies)} copies, {size} too many")
    _step("the same scan again, of what has not changed")
    again = await adopt(catalog, await scan_store(catalog, "ollama", folder / "ollama"))
    _answer(f"{len(again.unchanged)} unchanged; nothing was written")


def _model(reference: str, path: Path, version: str = "") -> Model:
    return Model(
        reference=reference,
        provider="demo",
        version=version,
        local_path=str(path),
        size_bytes=path.stat().st_size,
    )


def _told(model: Model | None) -> str:
    if model is None:
        return "None"
    version = f"@{model.version}" if model.version else ""
    name = Path(model.local_path).name
    return f"{model.provider}:{model.reference}{version}, {human_size(model.size_bytes)}, in {name}"


def _step(call: str) -> None:
    print_line(f"> {call}")


def _answer(text: str) -> None:
    print_line(f"    {text}")
