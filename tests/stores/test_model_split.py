"""How the files of a folder or a repository are divided into models."""

import pytest
from layouts import C1, HuggingFace, write

from model_catalog.stores.quantizations import assign_companions
from model_catalog.stores.scanners import directory, huggingface, llamacpp, lmstudio

W = b"weights"
HUB = "models--org--m"


def names(scanned):
    """Return the files of each model, with the path of the model below the root."""
    assert scanned.problems == ()
    return {
        model.local_path.removeprefix(f"{scanned.root}/"): [file.path for file in model.files]
        for model in scanned.found
    }


def write_all(folder, paths):
    for number, path in enumerate(paths):
        write(folder / path, b"%d" % number)


FOLDERS = {
    "a config.json beside two quantizations": (
        ["config.json", "m-Q4_K_M.gguf", "m-Q8_0.gguf"],
        {"m-Q4_K_M.gguf": ["m-Q4_K_M.gguf"], "m-Q8_0.gguf": ["m-Q8_0.gguf"]},
    ),
    "a config.json at the top of a tree": (
        ["config.json", "a.gguf", "b/b.gguf", "c/config.json", "c/model.safetensors"],
        {
            "a.gguf": ["a.gguf"],
            "b/b.gguf": ["b.gguf"],
            "c": ["config.json", "model.safetensors"],
        },
    ),
    "quantizations beside safetensors": (
        ["config.json", "model.safetensors", "m-Q8_0.gguf", "q4/m-Q4_0.gguf"],
        {
            "": ["config.json", "model.safetensors"],
            "m-Q8_0.gguf": ["m-Q8_0.gguf"],
            "q4/m-Q4_0.gguf": ["m-Q4_0.gguf"],
        },
    ),
    "a pipeline of diffusers": (
        ["model_index.json", "unet/model.safetensors", "vae/model.safetensors", "unet/u.gguf"],
        {
            "": [
                "model_index.json",
                "unet/model.safetensors",
                "unet/u.gguf",
                "vae/model.safetensors",
            ]
        },
    ),
    "sentence-transformers": (
        ["modules.json", "0_Transformer/model.safetensors", "1_Dense/model.safetensors"],
        {"": ["0_Transformer/model.safetensors", "1_Dense/model.safetensors", "modules.json"]},
    ),
    "a pipeline without its index": (
        ["transformer/m.safetensors", "text_encoder/m.safetensors", "scheduler/s.json"],
        {"": ["scheduler/s.json", "text_encoder/m.safetensors", "transformer/m.safetensors"]},
    ),
    "the folders of a program are not a pipeline": (
        ["unet/a.safetensors", "vae/b.safetensors", "text_encoders/c.safetensors"],
        {
            "unet/a.safetensors": ["a.safetensors"],
            "vae/b.safetensors": ["b.safetensors"],
            "text_encoders/c.safetensors": ["c.safetensors"],
        },
    ),
    "shards, a projector and a draft": (
        [
            *("q8/m-Q8_0-00001-of-00002.gguf", "q8/m-Q8_0-00002-of-00002.gguf"),
            *("q8/m-mmproj-F16.gguf", "q8/mtp-m-Q8_0.gguf"),
        ],
        {
            "q8/m-Q8_0-00001-of-00002.gguf": [
                *("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"),
                *("m-mmproj-F16.gguf", "mtp-m-Q8_0.gguf"),
            ]
        },
    ),
    "an importance matrix and an adapter": (
        ["m.gguf", "imatrix.gguf", "m-LoRA-F16.gguf"],
        {
            "m.gguf": ["m.gguf"],
            "imatrix.gguf": ["imatrix.gguf"],
            "m-LoRA-F16.gguf": ["m-LoRA-F16.gguf"],
        },
    ),
}


@pytest.mark.parametrize(("paths", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_divided_into_what_can_be_loaded(tmp_path, paths, expected):
    """GGUF quantizations are models of their own. Parts of a pipeline are not."""
    write_all(tmp_path / "root/top", paths)

    found = names(directory.scan(tmp_path / "root"))

    assert found == {f"top/{path}".rstrip("/"): files for path, files in expected.items()}


def hub_of(tmp_path, paths, tree=None):
    cache = HuggingFace(tmp_path / "hub")
    files = {path: b"%d" % number for number, path in enumerate(paths)}
    cache.revision("org/m", C1, files, tree=tree)
    return cache, files


@pytest.mark.parametrize(
    ("scan", "provider"), [(huggingface.scan, "hf"), (llamacpp.scan, "llamacpp")]
)
def test_quantizations_of_a_hub_cache_are_models(tmp_path, scan, provider):
    """The version is that of the commit, with the path. The ref means the first complete model."""
    cache, _ = hub_of(
        tmp_path,
        ["README.md", "a-Q2_K-00001-of-00002.gguf", "b-Q4_0.gguf", "mmproj.gguf", "q8/c-Q8_0.gguf"],
    )

    found = {model.version: model for model in scan(cache.root).found}

    part, whole, deep = (
        f"{C1}/{name}" for name in ("a-Q2_K-00001-of-00002.gguf", "b-Q4_0.gguf", "q8/c-Q8_0.gguf")
    )
    assert set(found) == {part, whole, deep}
    assert {model.provider for model in found.values()} == {provider}
    assert [found[version].is_complete for version in (part, whole, deep)] == [False, True, True]
    assert [file.path for file in found[whole].files] == ["b-Q4_0.gguf", "mmproj.gguf"]
    assert [file.path for file in found[deep].files] == ["c-Q8_0.gguf"]
    assert found[deep].folder == f"{cache.root}/{HUB}/snapshots/{C1}/q8"
    assert found[whole].aliases == ("main", "main/b-Q4_0.gguf")
    assert found[deep].aliases == ("main/q8/c-Q8_0.gguf",)


def test_one_quantization_of_a_hub_cache_is_its_snapshot(tmp_path):
    """It keeps the commit as its version, and has all files of the snapshot."""
    cache, files = hub_of(tmp_path, ["README.md", "b-Q4_0.gguf", "mmproj.gguf"])

    (model,) = huggingface.scan(cache.root).found

    assert (model.version, [file.path for file in model.files]) == (C1, sorted(files))
    assert model.aliases == ("main",)


def test_a_quantization_lacks_only_its_own_files(tmp_path):
    """A tree lists all quantizations of a repository. The others are not missing from this one."""
    paths = ["a-Q2_K-00001-of-00002.gguf", "b-Q4_0.gguf"]
    tree = dict.fromkeys([*paths, "a-Q2_K-00002-of-00002.gguf", "c-Q6_K.gguf"], b"0")
    cache, _ = hub_of(tmp_path, paths, tree)

    by_path = {model.version: model.reasons for model in huggingface.scan(cache.root).found}

    assert by_path[f"{C1}/b-Q4_0.gguf"] == ()
    assert "a-Q2_K-00002-of-00002.gguf" in " ".join(by_path[f"{C1}/{paths[0]}"])


@pytest.mark.parametrize("name", ["local", "v1.0", "A" * 40])
def test_a_snapshot_can_have_any_name(tmp_path, name):
    """huggingface_hub 2.4.0 lists each folder in `snapshots`, and follows refs to any name."""
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", name, {"m.safetensors": W})

    (model,) = huggingface.scan(cache.root).found

    assert (model.version, model.aliases) == (name, ("main",))


def test_a_repository_of_lm_studio_has_one_model_for_each_quantization(tmp_path):
    """The projectors and drafts of a repository belong to all of them."""
    write_all(tmp_path / "org/m", ["config.json", "m-Q4_0.gguf", "m-Q8_0.gguf", "m.mmproj.gguf"])

    assert names(lmstudio.scan(tmp_path)) == {
        f"org/m/m-{kind}.gguf": [f"m-{kind}.gguf", "m.mmproj.gguf"] for kind in ("Q4_0", "Q8_0")
    }


@pytest.mark.parametrize(
    ("companion", "models", "owners"),
    [
        ("mmproj.gguf", ["a.gguf"], ["a.gguf"]),
        ("b-mmproj.gguf", ["a.gguf"], ["a.gguf"]),
        ("mmproj-F16.gguf", ["a-Q4_0.gguf", "a-Q8_0.gguf"], ["a-Q4_0.gguf", "a-Q8_0.gguf"]),
        ("mmproj-F16.gguf", ["a-Q4_0.gguf", "b-Q8_0.gguf"], []),
        ("A.mmproj-f16.gguf", ["a.Q4_K_M.gguf", "b.gguf"], ["a.Q4_K_M.gguf"]),
        ("a.BF16-mmproj.gguf", ["a.BF16.gguf", "ab.gguf"], ["a.BF16.gguf"]),
        ("mtp-a-Q8_0.gguf", ["a-UD-Q4_K_XL-00001-of-00002.gguf", "b.gguf"], None),
    ],
)
def test_a_projector_or_draft_belongs_to_models_of_its_name(companion, models, owners):
    """Without a name of its own, it belongs to the quantizations of the only model."""
    found = assign_companions([companion], {name: name for name in models}, to_all=False)

    assert found == {companion: models[:1] if owners is None else owners}


def test_a_projector_without_a_model_is_a_model(tmp_path):
    """So is a draft."""
    write_all(tmp_path, ["x/mmproj.gguf", "x/mtp-a.gguf"])

    assert names(directory.scan(tmp_path)) == {
        "x/mmproj.gguf": ["mmproj.gguf"],
        "x/mtp-a.gguf": ["mtp-a.gguf"],
    }
