"""Adoption keeps the folder in which the catalog may delete a model's files."""

import shutil

from adoption_helpers import GGUF, OTHER, adopt_scan, make_hub, scan
from layouts import C1, HuggingFace

from model_catalog.upkeep import adopt


def manage(database, cache):
    """Set the folder for all models, as a download into the cache does."""
    folder = str(cache.root / "models--org--a")
    database.run("UPDATE models SET managed_root = ? WHERE reference = 'org/a'", folder)
    return folder


async def managed(catalog):
    models = await catalog.list_models()
    return {(model.reference, model.version): model.managed_root for model in models}


async def test_another_scan_keeps_the_managed_folder(catalog, database, tmp_path):
    """Also when the files of the model have changed."""
    cache = make_hub(tmp_path)
    await adopt_scan(catalog, cache)
    folder = manage(database, cache)
    before = await managed(catalog)

    unchanged = await adopt_scan(catalog, cache)
    (cache.root / f"models--org--a/snapshots/{C1}/more.json").write_bytes(b"{}")
    changed = await adopt_scan(catalog, cache)

    assert (unchanged.changed, len(changed.changed)) == ((), 1)
    assert await managed(catalog) == before
    assert folder in before.values()
    assert [model.reference for model in await catalog.list_models(foreign=True)] == ["org/b"]


async def test_each_part_of_a_split_model_keeps_the_managed_folder(catalog, database, tmp_path):
    """A second quantization makes two models of one."""
    cache = HuggingFace(tmp_path / "hub")
    cache.write_marker_files()
    cache.revision("org/a", C1, {"m-Q4_0.gguf": GGUF, "m-Q8_0.gguf": OTHER})
    shutil.move(cache.root / f"models--org--a/snapshots/{C1}/m-Q8_0.gguf", tmp_path / "link")
    await adopt_scan(catalog, cache)
    folder = manage(database, cache)

    shutil.move(tmp_path / "link", cache.root / f"models--org--a/snapshots/{C1}/m-Q8_0.gguf")
    await adopt_scan(catalog, cache)

    roots = await managed(catalog)
    assert roots[("org/a", f"{C1}/m-Q4_0.gguf")] == folder
    assert len(roots) == 2


async def test_a_moved_model_leaves_the_managed_folder(catalog, database, tmp_path):
    """The catalog may not delete files in the folder to which the cache was moved."""
    cache = make_hub(tmp_path)
    await adopt_scan(catalog, cache)
    manage(database, cache)

    cache.root.rename(tmp_path / "moved")
    await adopt(catalog, scan("huggingface", tmp_path / "moved"))

    assert set((await managed(catalog)).values()) == {None}
    assert await catalog.count_models(foreign=False) == 0
