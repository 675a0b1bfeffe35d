"""The default folders of each program, and detection of the kind of a store."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import C1, HuggingFace, Ollama, fill, write
from new_layouts import Docker, RamaLama

from model_catalog.domain import fields, key_validation
from model_catalog.stores.scan_result import Claims
from model_catalog.stores.store_kinds import PROVIDERS, SCANNERS, detect_store
from model_catalog.stores.store_roots import DOCKER_VOLUME, StoreRoot, default_roots

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the default folders are those of Linux")


def roots(store, environment, home_folder):
    found = default_roots(
        environment, home_folder, ollama_service="/nowhere", docker_volume="/nowhere"
    )
    return [root.path for root in found if root.store == store and root.path != "/nowhere"]


@pytest.fixture(autouse=True)
def ordinary_user(monkeypatch):
    """RamaLama has another folder for root. These tests run as any user."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@LINUX
def test_without_variables_the_folders_are_below_the_home_folder(tmp_path):
    """
    Each root states its source. The folders need not exist.
    """
    home_folder = str(tmp_path)

    assert default_roots({}, home_folder) == (
        StoreRoot("huggingface", f"{home_folder}/.cache/huggingface/hub", "default"),
        StoreRoot("ollama", f"{home_folder}/.ollama/models", "default"),
        StoreRoot("ollama", "/usr/share/ollama/.ollama/models", "default"),
        StoreRoot("lmstudio", f"{home_folder}/.lmstudio/models", "default"),
        StoreRoot("lmstudio", f"{home_folder}/.cache/lm-studio/models", "default"),
        StoreRoot("llamacpp", f"{home_folder}/.cache/llama.cpp", "default"),
        StoreRoot("docker", f"{home_folder}/.docker/models", "default"),
        StoreRoot("docker", DOCKER_VOLUME, "default"),
        StoreRoot("ramalama", f"{home_folder}/.local/share/ramalama/store", "default"),
        StoreRoot("modelscope", f"{home_folder}/.cache/modelscope", "default"),
        StoreRoot("kagglehub", f"{home_folder}/.cache/kagglehub", "default"),
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/old"),
        ({"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/new"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "/h"}, "{cwd}"),
        ({"HF_HOME": ""}, "{cwd}/hub"),
        ({"XDG_CACHE_HOME": ""}, "{cwd}/huggingface/hub"),
        ({"HF_HUB_CACHE": "~/m"}, "{home}/m"),
        ({"HF_HUB_CACHE": "$X/m", "X": "~"}, "{cwd}/~/m"),
        ({"HF_HUB_CACHE": "$DISK/${USER}/m", "DISK": "/d", "USER": "u"}, "/d/u/m"),
        ({"HF_HUB_CACHE": "/a/$NONE"}, "/a/$NONE"),
        ({"HF_HUB_CACHE": "/a/../b//c"}, "/b/c"),
        ({"HF_HUB_CACHE": "/a\0b", "HF_HOME": "/h"}, "/h/hub"),
    ],
)
def test_the_variables_of_hugging_face_have_an_order(tmp_path, environment, path):
    """
    The first variable that is set decides, also if it is empty. `~` and then variables in it are
    expanded.
    """
    path = path.format(home=tmp_path, cwd=Path.cwd())

    assert roots("huggingface", environment, tmp_path) == [path]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"XDG_CACHE_HOME": "/x"},
        {"HF_HOME": "~/h", "XDG_CACHE_HOME": "/x"},
        {"HF_HUB_CACHE": "$HF_HOME/y", "HF_HOME": "/h"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"HUGGINGFACE_HUB_CACHE": "~/$HF_HOME", "HF_HOME": "$X", "X": "/x"},
        {"HF_HUB_CACHE": "", "HF_HOME": "/h"},
        {"HF_HUB_CACHE": "~root/$X", "X": "~"},
    ],
)
def test_huggingface_hub_uses_the_same_folder(tmp_path, environment):
    """
    The library runs in a separate process.
    """
    pytest.importorskip("huggingface_hub")
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )

    assert roots("huggingface", environment, tmp_path) == [str(Path(done.stdout.strip()).resolve())]


def test_a_relative_path_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    """
    The program resolves it in the same way.
    """
    monkeypatch.chdir(tmp_path)

    assert roots("ollama", {"OLLAMA_MODELS": "m"}, "/home/u") == [str(tmp_path / "m")]


@pytest.mark.parametrize(
    ("store", "variable", "default"),
    [
        ("ollama", "OLLAMA_MODELS", "/home/u/.ollama/models"),
        ("docker", "MODELS_PATH", "/home/u/.docker/models"),
    ],
)
@pytest.mark.parametrize(
    ("value", "path"),
    [
        *(('"/m"', "/m"), ("'/m'", "/m"), (" /m ", "/m"), (' "/m" ', "/m"), ("/$X/m", "/$X/m")),
        *(("", None), ('""', None), ("/a\0b", None)),
    ],
)
def test_ollama_and_docker_remove_white_space_and_quotes(store, variable, default, value, path):
    """As `docker run --env-file` passes a quoted value on. Nothing else is expanded."""
    environment = {variable: value, "X": "x"}

    assert roots(store, environment, "/home/u") == [path or default]


def test_ollama_expands_no_tilde(tmp_path, monkeypatch):
    """
    Only a shell does. The path is then relative to the working directory.
    """
    monkeypatch.chdir(tmp_path)

    assert roots("ollama", {"OLLAMA_MODELS": "~/m"}, "/home/u") == [str(tmp_path / "~/m")]


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"RAMALAMA_STORE": "/r", "XDG_DATA_HOME": "/x"}, "/r/store"),
        ({"RAMALAMA_STORE": "", "XDG_DATA_HOME": "/x"}, "/x/ramalama/store"),
        ({"RAMALAMA_STORE": "/$X/~"}, "/$X/~/store"),
        ({"XDG_DATA_HOME": "~/x"}, "/home/u/x/ramalama/store"),
    ],
)
def test_the_variables_of_ramalama_have_an_order(environment, path):
    """
    RamaLama expands `~` in XDG_DATA_HOME, and nothing in RAMALAMA_STORE.
    """
    assert roots("ramalama", environment, "/home/u") == [path]


@pytest.mark.parametrize(
    ("store", "environment", "path"),
    [
        ("modelscope", {"MODELSCOPE_CACHE": "/m", "MS_CACHE_HOME": "/n"}, "/m"),
        ("modelscope", {"MODELSCOPE_CACHE": "", "MS_CACHE_HOME": "~/n"}, "/home/u/n"),
        ("modelscope", {"MODELSCOPE_CACHE": "~/$X"}, "/home/u/$X"),
        (
            "modelscope",
            {"MODELSCOPE_CACHE": "", "XDG_CACHE_HOME": "/x"},
            "/home/u/.cache/modelscope",
        ),
        ("kagglehub", {"KAGGLEHUB_CACHE": "/k/~/$X"}, "/k/~/$X"),
        ("kagglehub", {"KAGGLEHUB_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/home/u/.cache/kagglehub"),
    ],
)
def test_the_caches_of_modelscope_and_kagglehub_are_found(store, environment, path):
    """
    ModelScope expands `~`, and kagglehub nothing. Neither knows XDG_CACHE_HOME.
    """
    assert roots(store, environment, "/home/u") == [path]


PROGRAMS = {
    "modelscope": (
        "modelscope_hub",
        "MODELSCOPE_CACHE",
        "from modelscope_hub import HubConfig; print(HubConfig().cache_dir)",
    ),
    "kagglehub": (
        "kagglehub",
        "KAGGLEHUB_CACHE",
        "from kagglehub.config import get_cache_folder as get; print(get())",
    ),
    "ramalama": (
        "ramalama",
        "RAMALAMA_STORE",
        "from ramalama.config import ActiveConfig as get; print(get().store + '/store')",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("store", PROGRAMS)
@pytest.mark.parametrize("value", [None, "{home}/set", "~"], ids=["unset", "set", "tilde"])
def test_the_programs_use_the_same_folders(tmp_path, store, value, monkeypatch):
    """
    Each package runs in a separate process.
    """
    package, variable, code = PROGRAMS[store]
    pytest.importorskip(package)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    environment = {} if value is None else {variable: value.format(home=tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "HOME": str(tmp_path),
            "PYTHONPATH": ":".join(filter(None, sys.path)),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )

    assert roots(store, environment, tmp_path) == [str(Path(done.stdout.strip()).absolute())]


def test_ramalama_has_another_folder_for_root(monkeypatch):
    """
    XDG_DATA_HOME is then ignored.
    """
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    assert roots("ramalama", {"XDG_DATA_HOME": "/x"}, "/root") == ["/var/lib/ramalama/store"]


@LINUX
def test_the_ollama_service_has_a_separate_folder(tmp_path):
    """
    Its models belong to another user.
    """
    service = tmp_path / "service"
    found = default_roots({"OLLAMA_MODELS": "/m"}, tmp_path, ollama_service=service)

    assert [root for root in found if root.store == "ollama"] == [
        StoreRoot("ollama", "/m", "OLLAMA_MODELS"),
        StoreRoot("ollama", str(service), "default"),
    ]


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_the_pointer_file_of_lm_studio_is_followed(tmp_path, ending):
    """
    It contains the path of the folder of LM Studio, in one line.
    """
    (tmp_path / "moved").mkdir()
    write(tmp_path / ".lmstudio-home-pointer", f"{tmp_path}/moved{ending}")

    assert roots("lmstudio", {}, tmp_path) == [str(tmp_path / "moved/models")]


def test_the_downloads_folder_of_lm_studio_is_used(tmp_path):
    """
    The settings in the current folder of LM Studio name it.
    """
    (tmp_path / "moved").mkdir()
    write(tmp_path / ".lmstudio-home-pointer", f"{tmp_path}/moved")
    settings = {"other": [1], "downloadsFolder": "/disk/models"}
    file = write(tmp_path / "moved/settings.json", json.dumps(settings))

    (root,) = [each for each in default_roots({}, tmp_path) if each.store == "lmstudio"]

    assert (root.path, root.source) == ("/disk/models", str(file))


def fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    "plant",
    [
        lambda folder: write(folder / ".lmstudio-home-pointer", "~/moved"),
        lambda folder: write(folder / ".lmstudio-home-pointer", "relative"),
        lambda folder: write(folder / ".lmstudio-home-pointer", b"\xff\xfe"),
        lambda folder: write(folder / ".lmstudio-home-pointer", "/tmp\0"),
        lambda folder: fifo(folder / ".lmstudio-home-pointer"),
        lambda folder: (folder / ".lmstudio-home-pointer").mkdir(),
        lambda folder: write(folder / ".lmstudio/settings.json", "["),
        lambda folder: write(folder / ".lmstudio/settings.json", "[" * 100_000),
        lambda folder: write(
            folder / ".lmstudio/settings.json", '{"downloadsFolder":"/d"}' + " " * 2_000_000
        ),
        lambda folder: write(folder / ".lmstudio/settings.json", '{"downloadsFolder":7}'),
        lambda folder: write(folder / ".lmstudio/settings.json", '{"downloadsFolder":"here"}'),
        lambda folder: write(folder / ".lmstudio/settings.json", '{"downloadsFolder":"~/d"}'),
        lambda folder: write(folder / ".lmstudio/settings.json", '{"downloadsFolder":"/a\\u0000"}'),
        lambda folder: (folder / ".lmstudio").mkdir() or fifo(folder / ".lmstudio/settings.json"),
    ],
)
def test_invalid_files_of_lm_studio_are_ignored(tmp_path, plant):
    """
    The default folder is used then.
    """
    plant(tmp_path)

    assert roots("lmstudio", {}, tmp_path)[0] == str(tmp_path / ".lmstudio/models")


@LINUX
@pytest.mark.parametrize(
    ("environment", "paths"),
    [
        ({"LLAMA_CACHE": "/l", "XDG_CACHE_HOME": "/x"}, ["/l"]),
        ({"XDG_CACHE_HOME": "/x"}, ["/x/llama.cpp"]),
        ({"LLAMA_CACHE": "/same", "HF_HUB_CACHE": "/same"}, []),
    ],
)
def test_the_variables_of_llama_cpp_have_an_order(tmp_path, environment, paths):
    """
    If its cache is also that of huggingface_hub, it is listed once.
    """
    assert roots("llamacpp", environment, tmp_path) == paths


def test_a_folder_with_two_names_is_listed_once(tmp_path):
    """
    A link leads from the folder of one program to that of another.
    """
    (tmp_path / "hub").mkdir()
    (tmp_path / "link").symlink_to("hub")
    environment = {"HF_HUB_CACHE": f"{tmp_path}/hub", "LLAMA_CACHE": f"{tmp_path}/link"}

    assert roots("llamacpp", environment, tmp_path) == []


def test_the_defaults_are_those_of_this_process(monkeypatch):
    """
    Its environment variables and its home folder are used.
    """
    monkeypatch.setenv("HF_HUB_CACHE", "/set")
    monkeypatch.setenv("HOME", "/home/of/nobody")
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)

    found = default_roots()

    assert found[0] == StoreRoot("huggingface", "/set", "HF_HUB_CACHE")
    assert found[1].path == "/home/of/nobody/.ollama/models"


DETECTED = {
    "hub": "huggingface",
    "ollama": "ollama",
    "docker": "docker",
    "rama": "ramalama",
    "plain": "directory",
}


def test_the_kind_of_a_store_is_detected(tmp_path):
    """
    The names in the folder decide. Any other folder is a plain folder.
    """
    HuggingFace(tmp_path / "hub").revision("org/m", C1, {"m.gguf": b"GGUF"})
    Ollama(tmp_path / "ollama").model("m", b"GGUF")
    RamaLama(tmp_path / "rama/store").model("file/m", "latest", {"m": ("gguf", b"GGUF")})
    Docker(tmp_path / "docker").model("ai/m:latest", b"GGUF")
    fill(tmp_path / "plain", models__gguf=b"", manifests___m__gguf=b"")

    kinds = {name: detect_store(tmp_path / name) for name in DETECTED}

    assert kinds == DETECTED
    with pytest.raises(FileNotFoundError):
        detect_store(tmp_path / "nowhere")


def test_every_kind_of_store_has_its_own_valid_provider():
    """
    No two stores have the same provider, so their models never have the same name.
    """
    assert list(PROVIDERS) == list(SCANNERS)
    assert len(set(PROVIDERS.values())) == len(PROVIDERS)
    assert [key_validation.provider("provider", name) for name in PROVIDERS.values()]


def test_claims_have_the_fields_of_a_header():
    """
    The names equal those of the columns.
    """
    assert {each.name for each in dataclasses.fields(Claims)} == set(fields.HEADER_FIELDS)
