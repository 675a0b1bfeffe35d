"""Folders of programs that the reader of plain folders reads: models get the programs' names."""

from dataclasses import replace

import pytest
from layouts import fill, write

from model_catalog.stores.plain_folders.program_folders import program_reference
from model_catalog.stores.scanners import directory
from model_catalog.upkeep import adopt, scan_store

GGUF = b"GGUF" + bytes(100)
UUID = "0b5f0b0e-6b1c-4f0d-9a52-0f3f2a9be3c1"

JAN = {
    "llamacpp/models/Jan-v1-4B/model.gguf": "Jan-v1-4B",
    "llamacpp/models/Jan-v1-4B/mmproj.gguf": None,
    "llamacpp/models/Jan-v1-4B/model.yml": None,
    "llamacpp/models/org/nested/model.gguf": "org/nested",
    "llamacpp/models/big/M-00001-of-00002.gguf": "big",
    "llamacpp/models/big/M-00002-of-00002.gguf": None,
    "llamacpp/models/linked/model.yml": None,
    "llamacpp/models/begun/model.gguf.tmp": None,
    "llamacpp/models/begun/model.gguf.url": None,
    "mlx/models/Qwen-mlx/model.safetensors": "Qwen-mlx",
    "mlx/models/Qwen-mlx/config.json": None,
    "mlx/models/Qwen-mlx/model.yml": None,
}
GPT4ALL = {
    "Llama-3.Q4_0.gguf": "Llama-3.Q4_0.gguf",
    "incomplete-Phi-3.Q4_0.gguf": None,
    "gpt4all-gpt-4.rmodel": None,
    "localdocs_v3.db": None,
    "test_write.txt": None,
}
LOCALAI = {
    "phi-2.yaml": None,
    "phi-2.Q8_0.gguf": "phi-2.Q8_0.gguf",
    "other.gguf.partial": None,
    "llama-cpp/models/gemma-3/gemma-3-Q4_K_M.gguf": "gemma-3",
    "whisper/models/base/ggml-base.bin": "base",
    "gemma-3.yaml": None,
}
COMFYUI = {
    "models/checkpoints/sd/v1-5.ckpt": "checkpoints/sd/v1-5.ckpt",
    "models/checkpoints/put_checkpoints_here": None,
    "models/loras/style.safetensors": "loras/style.safetensors",
    "models/vae/ae.sft": "vae/ae.sft",
    "models/diffusers/sd/model_index.json": "diffusers/sd",
    "models/configs/v1-inference.yaml": None,
    "folder_paths.py": None,
}
WEBUI = {
    "user_data/models/org_m/config.json": "org_m",
    "user_data/models/org_m/model.safetensors": None,
    "user_data/models/Q4.gguf": "Q4.gguf",
    "user_data/models/sub/Q5.gguf": "sub/Q5.gguf",
    "user_data/loras/org_l/adapter_config.json": "org_l",
    "user_data/loras/org_l/adapter_model.safetensors": None,
    "user_data/models/place-your-models-here.txt": None,
}
INVOKEAI = {
    f"models/{UUID}/dreamshaper_8.safetensors": f"{UUID}/dreamshaper_8.safetensors",
    f"models/{UUID[::-1].replace('c', 'd')}/model.safetensors": "models/"
    f"{UUID[::-1].replace('c', 'd')}/model.safetensors",
    "models/.download_cache/x.safetensors": None,
    "invokeai.yaml": None,
}


def references(root):
    """Return the references of the models below a folder."""
    scanned = directory.scan(root)
    assert scanned.problems == ()
    return {model.reference for model in scanned.found}


@pytest.mark.parametrize(
    "layout",
    [JAN, GPT4ALL, LOCALAI, COMFYUI, WEBUI, INVOKEAI],
    ids=["jan", "gpt4all", "localai", "comfyui", "text-generation-webui", "invokeai"],
)
def test_models_have_the_names_of_the_program(tmp_path, layout):
    """
    Configurations, partial files and files of the program are no models.
    """
    for path in layout:
        write(tmp_path / "data" / path, GGUF)

    assert references(tmp_path / "data") == {name for name in layout.values() if name}


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (".", {"Jan-v1-4B"}),
        ("llamacpp", {"Jan-v1-4B"}),
        ("llamacpp/models", {"Jan-v1-4B"}),
        ("llamacpp/models/Jan-v1-4B", {"Jan-v1-4B"}),
    ],
)
def test_the_name_does_not_depend_on_the_folder_that_is_scanned(tmp_path, root, expected):
    """
    A user may scan the data folder of Jan or any folder in it.
    """
    write(tmp_path / "llamacpp/models/Jan-v1-4B/model.gguf", GGUF)

    assert references(tmp_path / root) == expected


def test_two_models_of_one_name_keep_their_paths(tmp_path):
    """
    A name would then not tell which of them is meant.
    """
    fill(tmp_path, llamacpp___models___m___model__gguf=GGUF, mlx___models___m___model__gguf=GGUF)
    fill(tmp_path, llamacpp___models___n___Q4__gguf=GGUF, llamacpp___models___n___Q8__gguf=GGUF)
    fill(tmp_path, llamacpp___models___x__gguf___model__gguf=GGUF, x__gguf=GGUF)

    assert references(tmp_path) == {
        "llamacpp/models/m/model.gguf",
        "mlx/models/m/model.gguf",
        "llamacpp/models/n/Q4.gguf",
        "llamacpp/models/n/Q8.gguf",
        "llamacpp/models/x.gguf/model.gguf",
        "x.gguf",
    }


@pytest.mark.parametrize(
    "path", ["models/a.gguf", "llamacpp/a.gguf", "models/other/a.gguf", "user_data/a.gguf"]
)
def test_other_folders_keep_their_paths(path):
    """
    A folder of such a name does not tell which program it belongs to.
    """
    assert program_reference(f"/data/{path}", path, is_folder=False) == path


def test_files_in_a_folder_of_loras_or_projectors_are_these(tmp_path):
    """
    Their names seldom tell. Any other folder of that name could hold anything.
    """
    write(tmp_path / "user_data/mmproj/gemma.gguf", GGUF)
    write(tmp_path / "llama-cpp/mmproj/gemma/vision.gguf", GGUF)
    write(tmp_path / "mmproj/gemma.gguf", GGUF)
    fill(tmp_path, models___loras___style__safetensors=GGUF, loras___style__safetensors=GGUF)
    fill(tmp_path, models___vae___ae__sft=GGUF)

    kinds = {model.reference: model.kind for model in directory.scan(tmp_path).found}

    assert kinds == {
        "loras/style.safetensors": "model",
        "models/loras/style.safetensors": "adapter",
        "gemma.gguf": "projector",
        "llama-cpp/mmproj/gemma/vision.gguf": "projector",
        "mmproj/gemma.gguf": "model",
        "vae/ae.sft": "model",
    }


async def test_a_model_that_was_recorded_by_its_path_gets_its_name(on_sqlite, tmp_path):
    """
    An older release recorded it. Its tags stay.
    """
    write(tmp_path / "llamacpp/models/m/model.gguf", GGUF)
    scanned = await scan_store(on_sqlite, "directory", tmp_path)
    old = replace(scanned.found[0], reference="llamacpp/models/m/model.gguf")
    await adopt(on_sqlite, replace(scanned, found=(old,)))
    model = await on_sqlite.tag_model("llamacpp/models/m/model.gguf", "local", "mine")

    (change,) = (await adopt(on_sqlite, scanned)).changed

    (renamed,) = await on_sqlite.list_models()
    assert change.detail.startswith("recorded as local:llamacpp/models/m/model.gguf before")
    assert (renamed.reference, renamed.tags, renamed.id) == ("m", ("mine",), model.id)
