"""Where each program keeps its models on this machine, and of which kind a folder is."""

import dataclasses
import json
import os
import sys

import pytest
from layouts import C1, HuggingFace, Ollama, fill, write

from model_catalog.domain import fields, validation
from model_catalog.stores.scan_result import Claims
from model_catalog.stores.store_kinds import PROVIDERS, SCANNERS, detect_store
from model_catalog.stores.store_roots import StoreRoot, default_roots

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the defaults are those of Linux")


def roots(store, environment, home):
    found = default_roots(environment, home, ollama_service="/nowhere")
    return [root.path for root in found if root.store == store and root.path != "/nowhere"]


@LINUX
def test_without_a_variable_they_lie_at_home(tmp_path):
    """
    Each with the reason; whether there is anything is not asked.
    """
    home = str(tmp_path)

    assert default_roots({}, home) == (
        StoreRoot("huggingface", f"{home}/.cache/huggingface/hub", "default"),
        StoreRoot("ollama", f"{home}/.ollama/models", "default"),
        StoreRoot("ollama", "/usr/share/ollama/.ollama/models", "default"),
        StoreRoot("lmstudio", f"{home}/.lmstudio/models", "default"),
        StoreRoot("lmstudio", f"{home}/.cache/lm-studio/models", "default"),
        StoreRoot("llamacpp", f"{home}/.cache/llama.cpp", "default"),
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/old"),
        ({"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/new"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "/h"}, "/h/hub"),
        ({"HF_HUB_CACHE": "~/m"}, "{home}/m"),
        ({"HF_HUB_CACHE": "$DISK/${USER}/m", "DISK": "/d", "USER": "u"}, "/d/u/m"),
        ({"HF_HUB_CACHE": "/a/$NONE"}, "/a/$NONE"),
        ({"HF_HUB_CACHE": "/a/../b//c"}, "/b/c"),
        ({"HF_HUB_CACHE": "/a\0b", "HF_HOME": "/h"}, "/h/hub"),
    ],
)
def test_the_cache_of_hugging_face_is_where_its_library_looks(tmp_path, environment, path):
    """
    The first variable that is set, with what is written in it for others.
    """
    assert roots("huggingface", environment, tmp_path) == [path.format(home=tmp_path)]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"XDG_CACHE_HOME": "/x"},
        {"HF_HOME": "~/h", "XDG_CACHE_HOME": "/x"},
        {"HF_HUB_CACHE": "$HF_HOME/y", "HF_HOME": "/h"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
    ],
)
def test_huggingface_hub_looks_there_too(tmp_path, environment):
    """
    The library itself is asked, in a process of its own.
    """
    pytest.importorskip("huggingface_hub")
    import subprocess

    asked = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env={"HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )

    assert roots("huggingface", environment, tmp_path) == [done.stdout.strip()]


def test_a_path_that_is_not_whole_begins_in_the_working_directory(tmp_path, monkeypatch):
    """
    As it does for the program.
    """
    monkeypatch.chdir(tmp_path)

    assert roots("ollama", {"OLLAMA_MODELS": "m"}, "/home/u") == [str(tmp_path / "m")]


@LINUX
def test_ollama_has_a_service_beside_the_users_own(tmp_path):
    """
    What it keeps belongs to another user.
    """
    service = tmp_path / "service"
    found = default_roots({"OLLAMA_MODELS": "/m"}, tmp_path, ollama_service=service)

    assert [root for root in found if root.store == "ollama"] == [
        StoreRoot("ollama", "/m", "OLLAMA_MODELS"),
        StoreRoot("ollama", str(service), "default"),
    ]


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_lm_studio_may_have_moved(tmp_path, ending):
    """
    Its pointer says where its home is, in one line.
    """
    (tmp_path / "moved").mkdir()
    write(tmp_path / ".lmstudio-home-pointer", f"{tmp_path}/moved{ending}")

    assert roots("lmstudio", {}, tmp_path) == [str(tmp_path / "moved/models")]


def test_lm_studios_downloads_may_lie_elsewhere(tmp_path):
    """
    Its settings say so, in the home that is in use.
    """
    (tmp_path / "moved").mkdir()
    write(tmp_path / ".lmstudio-home-pointer", "~/moved")
    settings = {"other": [1], "downloadsFolder": "/disk/models"}
    file = write(tmp_path / "moved/settings.json", json.dumps(settings))

    (root,) = [each for each in default_roots({}, tmp_path) if each.store == "lmstudio"]

    assert (root.path, root.source) == ("/disk/models", str(file))


def fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    "plant",
    [
        lambda home: write(home / ".lmstudio-home-pointer", "/nowhere/at/all"),
        lambda home: write(home / ".lmstudio-home-pointer", "relative"),
        lambda home: write(home / ".lmstudio-home-pointer", b"\xff\xfe"),
        lambda home: write(home / ".lmstudio-home-pointer", "/tmp\0"),
        lambda home: fifo(home / ".lmstudio-home-pointer"),
        lambda home: (home / ".lmstudio-home-pointer").mkdir(),
        lambda home: write(home / ".lmstudio/settings.json", "["),
        lambda home: write(home / ".lmstudio/settings.json", "[" * 100_000),
        lambda home: write(
            home / ".lmstudio/settings.json", '{"downloadsFolder":"/d"}' + " " * 2_000_000
        ),
        lambda home: write(home / ".lmstudio/settings.json", '{"downloadsFolder":7}'),
        lambda home: write(home / ".lmstudio/settings.json", '{"downloadsFolder":"here"}'),
        lambda home: write(home / ".lmstudio/settings.json", '{"downloadsFolder":"/a\\u0000"}'),
        lambda home: (home / ".lmstudio").mkdir() or fifo(home / ".lmstudio/settings.json"),
    ],
)
def test_what_lm_studio_could_not_read_is_passed_over(tmp_path, plant):
    """
    It has its models in the usual place then.
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
def test_the_cache_of_llama_cpp(tmp_path, environment, paths):
    """
    It may be the one of huggingface_hub, and is not looked through twice.
    """
    assert roots("llamacpp", environment, tmp_path) == paths


def test_a_store_with_two_names_is_one(tmp_path):
    """
    A link leads from one program's place to the other's.
    """
    (tmp_path / "hub").mkdir()
    (tmp_path / "link").symlink_to("hub")
    environment = {"HF_HUB_CACHE": f"{tmp_path}/hub", "LLAMA_CACHE": f"{tmp_path}/link"}

    assert roots("llamacpp", environment, tmp_path) == []


def test_this_process_is_asked_if_nothing_else_is_given(monkeypatch):
    """
    Its environment and its home.
    """
    monkeypatch.setenv("HF_HUB_CACHE", "/set")
    monkeypatch.setenv("HOME", "/home/of/nobody")
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)

    found = default_roots()

    assert found[0] == StoreRoot("huggingface", "/set", "HF_HUB_CACHE")
    assert found[1].path == "/home/of/nobody/.ollama/models"


def test_a_folder_shows_of_which_kind_it_is(tmp_path):
    """
    By the names in it; what looks like none of them is a plain folder.
    """
    HuggingFace(tmp_path / "hub").revision("org/m", C1, {"m.gguf": b"GGUF"})
    Ollama(tmp_path / "ollama").model("m", b"GGUF")
    fill(tmp_path / "plain", models__gguf=b"", manifests___m__gguf=b"")

    kinds = {name: detect_store(tmp_path / name) for name in ("hub", "ollama", "plain")}

    assert kinds == {"hub": "huggingface", "ollama": "ollama", "plain": "directory"}
    with pytest.raises(FileNotFoundError):
        detect_store(tmp_path / "nowhere")


def test_every_kind_has_a_provider_that_a_catalog_takes():
    """
    And no two have the same, so that no two stores mean different models by one name.
    """
    assert list(PROVIDERS) == list(SCANNERS)
    assert len(set(PROVIDERS.values())) == len(PROVIDERS)
    assert [validation.provider("provider", name) for name in PROVIDERS.values()]


def test_a_store_claims_what_a_header_may():
    """
    The names are those of a catalog's columns.
    """
    assert {each.name for each in dataclasses.fields(Claims)} == set(fields.HEADER_FIELDS)
