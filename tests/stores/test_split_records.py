"""The next scan corrects what an older release recorded as one model."""

from dataclasses import replace

import pytest
from conftest import a_model
from layouts import C1, HuggingFace, write
from new_layouts import KaggleHub, ModelScope, RamaLama

from model_catalog.stores.scanners import directory, huggingface, lmstudio
from model_catalog.stores.store_kinds import PROVIDERS, SCANNERS
from model_catalog.upkeep import adopt, verify_models

# They test files more than statements, which the slow tests run on PostgreSQL too.
pytestmark = pytest.mark.slow_with("asyncpg")

NAMES = ("a-Q4_0.gguf", "b-Q8_0.gguf")


def as_release_0_1_0(scan, folder, version="", reference=None):
    """Return a scan in which all files of a folder are one model, as release 0.1.0 recorded it."""
    first = scan.found[0]
    files = sorted({file for model in scan.found for file in model.files}, key=lambda f: f.path)
    whole = replace(
        first,
        reference=reference or first.reference,
        version=version,
        local_path=str(folder),
        folder=str(folder),
        files=tuple(files),
        aliases=("main",) if version else (),
    )
    return replace(scan, found=(whole,))


async def label(catalog, ref):
    await catalog.tag_model(ref, tags=["Chat", "große"])
    await catalog.pin_model(ref, reason="in use")
    await catalog.set_alias(ref, alias="stable")
    await catalog.update_model(ref, description="Für alle", license="mit")


def has_labels(model):
    return (model.tags, model.pin_reason, model.pinned, model.description, model.license) == (
        ("Chat", "große"),
        "in use",
        True,
        "Für alle",
        "mit",
    )


async def test_a_revision_that_splits_keeps_its_labels_on_each_part(catalog, tmp_path):
    """The first part takes over the row with its id and its aliases. The others get copies."""
    cache = HuggingFace(tmp_path / "hub")
    snapshot = cache.revision("org/m", C1, {name: name.encode() for name in NAMES})
    await adopt(catalog, as_release_0_1_0(huggingface.scan(cache.root), snapshot, C1))
    await label(catalog, f"hf:org/m@{C1}")
    old = await catalog.get_model(f"hf:org/m@{C1}")
    await catalog.record_use(f"hf:org/m@{C1}", count=3)

    done = await adopt(catalog, huggingface.scan(cache.root))

    first, second = [await catalog.get_model(f"hf:org/m@{C1}/{name}") for name in NAMES]
    assert (first.id, first.use_count, second.use_count) == (old.id, 3, 0)
    assert [model.local_path for model in (first, second)] == [f"{snapshot}/{n}" for n in NAMES]
    assert has_labels(first)
    assert has_labels(second)
    for alias in ("main", f"main/{NAMES[0]}", "stable"):
        assert (await catalog.get_model(f"hf:org/m@{alias}")).id == first.id
    for alias in (f"main/{NAMES[1]}", f"stable/{NAMES[1]}"):
        assert (await catalog.get_model(f"hf:org/m@{alias}")).id == second.id
    assert (len(done.new), len(done.changed), done.gone, done.problems) == (1, 1, (), ())
    assert len(await catalog.list_files(f"hf:org/m@{C1}/{NAMES[0]}")) == 1
    assert await catalog.count_models(search="ORG/M") == 2
    again = await adopt(catalog, huggingface.scan(cache.root))
    assert len(again.unchanged) == 2


@pytest.mark.parametrize("store", ["lmstudio", "directory"])
async def test_a_folder_that_splits_keeps_its_labels_on_each_part(catalog, tmp_path, store):
    """The references of the new models may differ from that of the folder."""
    root = tmp_path / "models"
    folder = root / "org/m"
    for name in (*NAMES, "config.json"):
        write(folder / name, name.encode())
    scan = {"lmstudio": lmstudio.scan, "directory": directory.scan}[store]
    await adopt(catalog, as_release_0_1_0(scan(root), folder, reference="org/m"))
    (old,) = await catalog.list_models()
    await label(catalog, old)

    done = await adopt(catalog, scan(root))

    models = await catalog.list_models()
    assert sorted(model.local_path for model in models) == [f"{folder}/{name}" for name in NAMES]
    assert old.id in {model.id for model in models}
    assert all(map(has_labels, models))
    aliases = await catalog.list_aliases()
    assert {alias.ref.reference for alias in aliases} == {model.reference for model in models}
    assert (done.gone, done.problems) == ((), ())


async def test_parts_that_become_one_model_again_keep_a_row(catalog, tmp_path):
    """A quantization is deleted. The other one is the model of its revision, with its labels."""
    cache = HuggingFace(tmp_path / "hub")
    snapshot = cache.revision("org/m", C1, {name: name.encode() for name in NAMES})
    await adopt(catalog, huggingface.scan(cache.root))
    await label(catalog, f"hf:org/m@{C1}/{NAMES[1]}")
    (snapshot / NAMES[0]).unlink()

    done = await adopt(catalog, huggingface.scan(cache.root))

    model = await catalog.get_model(f"hf:org/m@{C1}")
    assert has_labels(model)
    assert [each.ref.version for each in done.gone] == [f"{C1}/{NAMES[0]}"]


async def test_a_quantization_beside_other_weights_gets_copies(catalog, tmp_path):
    """The model of the other weights keeps its row."""
    cache = HuggingFace(tmp_path / "hub")
    files = {"m.safetensors": b"1", **{name: name.encode() for name in NAMES}}
    snapshot = cache.revision("org/m", C1, files)
    await adopt(catalog, as_release_0_1_0(huggingface.scan(cache.root), snapshot, C1))
    await label(catalog, f"hf:org/m@{C1}")

    await adopt(catalog, huggingface.scan(cache.root))

    models = await catalog.list_models()
    assert len(models) == 3
    assert all(map(has_labels, models))
    assert (await catalog.get_model("hf:org/m@stable")).version == C1


async def test_a_file_gets_another_role_without_losing_its_verification(on_sqlite, tmp_path):
    """The role comes from the name, and the rule for names is newer than the record."""
    catalog = on_sqlite
    for name in ("a.gguf", "a-mmproj.gguf"):
        write(tmp_path / "org/m" / name, name.encode())
    found = lmstudio.scan(tmp_path)
    old = replace(
        found.found[0], files=tuple(replace(file, role="weights") for file in found.found[0].files)
    )
    await adopt(catalog, replace(found, found=(old,)))
    assert [each async for each in verify_models(catalog)]
    before = await catalog.get_model("lmstudio:org/m")

    done = await adopt(catalog, found)

    assert len(done.unchanged) == 1
    assert (await catalog.get_model("lmstudio:org/m")).verified_at == before.verified_at is not None
    files = await catalog.list_files("lmstudio:org/m")
    assert [file.role for file in files] == ["projector", "weights"]


async def test_a_scan_adds_the_kind_to_models_of_an_older_release(database, on_sqlite, tmp_path):
    """It is no change of the model. What the user has said stays."""
    catalog = on_sqlite
    write(tmp_path / "m.gguf", b"m")
    write(tmp_path / "lora/adapter_model.safetensors", b"l")
    await adopt(catalog, directory.scan(tmp_path))
    await catalog.register_model(a_model("other"))
    await catalog.update_model("local:m.gguf", kind="draft", claimed_kind=None)
    await catalog.update_model("local:lora/adapter_model.safetensors", claimed_kind=None)

    done = await adopt(catalog, directory.scan(tmp_path))

    kinds = {model.reference: model.kind for model in await catalog.list_models()}
    assert kinds == {"m.gguf": "draft", "lora/adapter_model.safetensors": "adapter", "other": None}
    assert (await catalog.get_model("local:m.gguf")).claimed_kind == "model"
    assert len(done.unchanged) == 2


def make_kagglehub(root):
    KaggleHub(root).version("o/m/f/v/1", model__safetensors=b"1", config__json=b"{}")
    return root


def make_modelscope(root):
    ModelScope(root).old_model("org/m", m__gguf=b"GGUF")
    return root


def make_ramalama(root):
    RamaLama(root / "store").model("file/m.gguf", "latest", {"m.gguf": ("gguf", b"GGUF")})
    return root / "store"


def make_hub(root):
    HuggingFace(root / "hub").revision("org/m", C1, {"m.safetensors": b"1", "config.json": b"{}"})
    return root / "hub"


@pytest.mark.parametrize(
    ("store", "make"),
    [
        ("kagglehub", make_kagglehub),
        ("modelscope", make_modelscope),
        ("ramalama", make_ramalama),
        ("huggingface", make_hub),
    ],
)
async def test_a_plain_folder_that_is_known_as_a_store_now_keeps_its_labels(
    catalog, tmp_path, store, make
):
    """An older release knew no such stores, and recorded the files by their paths."""
    root = make(tmp_path / "cache")
    await adopt(catalog, directory.scan(tmp_path / "cache"))
    (old,) = await catalog.list_models()
    await label(catalog, old)

    done = await adopt(catalog, SCANNERS[store](root))
    again = await adopt(catalog, SCANNERS[store](root))

    (model,) = await catalog.list_models()
    assert (old.provider, model.provider) == ("local", PROVIDERS[store])
    assert (model.id, model.store, model.store_root) == (old.id, store, str(root))
    assert has_labels(model)
    assert [alias.alias for alias in await catalog.list_aliases() if alias.alias == "stable"]
    assert (len(done.changed), done.new, done.gone, done.problems) == (1, (), (), ())
    assert (len(again.unchanged), again.changed) == (1, ())


async def test_a_plain_folder_with_more_than_a_store_keeps_its_models(catalog, tmp_path):
    """Its scan finds the other models too, so those in the store are recorded by both scans."""
    write(tmp_path / "m.gguf", b"GGUF")
    KaggleHub(tmp_path / "cache").version("o/m/f/v/1", m__gguf=b"GGUF1")
    await adopt(catalog, directory.scan(tmp_path))

    await adopt(catalog, SCANNERS["kagglehub"](tmp_path / "cache"))
    again = await adopt(catalog, directory.scan(tmp_path))

    assert len(again.unchanged) == 2
    assert sorted(model.provider for model in await catalog.list_models()) == [
        *("kaggle", "local", "local")
    ]
