"""Hostile stores of every other kind: each hostile entry becomes a problem."""

from pathlib import Path

import pytest
from hostile_entries import (
    DEEP,
    ESCAPE,
    GGUF,
    LISTS,
    NOT_UTF8,
    change_members,
    fifo,
    link,
    make_too_many_files,
    move_outside,
    problem_paths,
    renamed,
    unix_socket,
)
from layouts import C1, DETAILS, HuggingFace, Ollama, fill, flat_llamacpp, sha256, write

from model_catalog.stores.store_kinds import SCANNERS


@pytest.fixture
def outside(tmp_path):
    """A folder next to the store that looks like a part of one."""
    cache = HuggingFace(tmp_path / "outside")
    cache.revision("org/m", C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})
    write(tmp_path / "outside/secret.gguf", GGUF)
    write(tmp_path / "outside/secret.json", "{}")
    return tmp_path / "outside"


MANIFESTS = {
    "a digest is a path": lambda m, _: change_members(
        m, "layers", 0, digest="sha256:../../../../outside/secret.gguf"
    ),
    "a digest is long": lambda m, _: change_members(m, "layers", 0, digest="sha256:" + "a" * 65),
    "a digest ends with a line feed": lambda m, _: change_members(
        m, "layers", 0, digest=f"sha256:{'a' * 64}\n"
    ),
    "a digest is a number": lambda m, _: change_members(m, "layers", 0, digest=7),
    "the digest of the config is a path": lambda m, _: change_members(
        m, "config", digest="sha256-../secret.json"
    ),
    "a size is negative": lambda m, _: change_members(m, "layers", 0, size=-1),
    "a size is true": lambda m, _: change_members(m, "layers", 0, size=True),
    "a size is long": lambda m, _: write(
        m, m.read_text().replace('"size":104', '"size":' + "9" * 5000)
    ),
    "layers are an object": lambda m, _: change_members(m, layers={}),
    "layers are numbers": lambda m, _: change_members(m, layers=[1]),
    "no layers": lambda m, _: change_members(m, layers=None),
    "another version": lambda m, _: change_members(m, schemaVersion=1),
    "truncated": lambda m, _: write(m, m.read_bytes()[:100]),
    "a list": lambda m, _: write(m, "[]"),
    "nested deeply": lambda m, _: write(m, DEEP),
    "nested deeply in a member": lambda m, _: write(m, '{"config":' + DEEP),
    "many lists": lambda m, _: write(m, '{"x":' + LISTS + "}"),
    "long": lambda m, _: write(m, m.read_text() + " " * 5_000_000),
    "empty": lambda m, _: write(m, ""),
    "not UTF-8": lambda m, _: write(m, b"\xff\xfe{\0}\0"),
    "NaN": lambda m, _: write(m, '{"schemaVersion":NaN}'),
    "a FIFO": lambda m, _: fifo(m),
    "a socket": lambda m, _: unix_socket(m.with_name("x")),
    "a folder": lambda m, _: write(m.parent / "x/y").parent,
    "links out of the store": lambda m, out: link(m.with_name("x"), out / "secret.json"),
    "links to itself": lambda m, _: link(m.with_name("x"), "x"),
    "escape in its name": lambda m, _: renamed(m, ESCAPE),
    "name that is not UTF-8": lambda m, _: renamed(m, NOT_UTF8),
    "a long name": lambda m, _: renamed(m, "x" * 81),
    "hidden with an escape": lambda m, _: renamed(m, f".{ESCAPE}"),
    "a model links out of the store": lambda m, out: move_outside(m.parent, out),
    "a namespace links out of the store": lambda m, out: move_outside(m.parents[1], out),
    "a host links out of the store": lambda m, out: move_outside(m.parents[2], out),
    "a host links to a parent folder": lambda m, _: link(m.parents[3] / "x", "../.."),
    "a model is a file": lambda m, _: write(m.parents[1] / "x"),
    "a model has an escape in its name": lambda m, _: renamed(m.parent, ESCAPE),
    "a model begins with a dash": lambda m, _: renamed(m.parent, "-x"),
    "a blob links out of the store": lambda m, out: (
        move_outside(m.parents[4] / f"blobs/sha256-{sha256(b'GGUFbad')}", out) and m
    ),
    "a blob is a FIFO": lambda m, _: (
        fifo(m.parents[4] / f"blobs/sha256-{sha256(b'GGUFbad')}") and m
    ),
}


@pytest.mark.slow_with("many lists")
@pytest.mark.parametrize("plant", MANIFESTS.values(), ids=MANIFESTS)
def test_an_invalid_manifest_is_a_problem(tmp_path, outside, plant):
    """
    The other model is found.
    """
    store = Ollama(tmp_path / "models")
    store.model("good.host/me/good", GGUF)
    manifest = store.model("org/bad", b"GGUFbad" if plant in BAD_BLOBS else GGUF)

    planted = plant(manifest, outside)

    assert problem_paths("ollama", store.root, outside) == [str(planted)]


BAD_BLOBS = (MANIFESTS["a blob links out of the store"], MANIFESTS["a blob is a FIFO"])


@pytest.mark.parametrize("part", ["manifests", "blobs"])
def test_a_link_out_of_the_store_of_ollama_is_a_problem(tmp_path, outside, part):
    """
    Nothing is found then, and no model counts as removed.
    """
    store = Ollama(tmp_path / "models")
    store.model("m", GGUF)
    planted = move_outside(store.root / part, outside)

    assert problem_paths("ollama", store.root, outside, good=0) == [str(planted)]
    scanned = SCANNERS["ollama"](store.root, follow_links=False)
    assert scanned.may_hide("any", "latest", "/any")


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, LISTS, '{"model_family":' + DEEP])
def test_a_hostile_config_of_ollama_is_a_reason(tmp_path, outside, text):
    """
    It provides no claims.
    """
    store = Ollama(tmp_path / "models")
    store.model("good", GGUF, details=DETAILS)
    store.manifest("m", [store.layer("model", GGUF)], store.layer("x", text.encode()))

    assert problem_paths("ollama", store.root, outside) == []


FOLDER_FILES = {
    "links out of the store": lambda repo, out: link(repo / "x.gguf", out / "secret.gguf"),
    "relative link out of the store": lambda repo, _: link(
        repo / "x.gguf", "../../../outside/secret.gguf"
    ),
    "broken link": lambda repo, _: link(repo / "x.gguf", "y"),
    "links to itself": lambda repo, _: link(repo / "x.gguf", "x.gguf"),
    "a folder links out of the store": lambda repo, out: link(repo / "x", out),
    "a folder links to its parent": lambda repo, _: link(repo / "x", ".."),
    "a FIFO": lambda repo, _: fifo(repo / "x.gguf"),
    "a socket": lambda repo, _: unix_socket(repo / "x.gguf"),
    "escape in its name": lambda repo, _: write(repo / f"{ESCAPE}.gguf", GGUF),
    "name that is not UTF-8": lambda repo, _: write(repo / f"{NOT_UTF8}.gguf", GGUF),
    "a config links out of the store": lambda repo, out: link(
        repo / "config.json", out / "secret.json"
    ),
}


@pytest.mark.parametrize("store", ["directory", "lmstudio"])
@pytest.mark.parametrize("plant", FOLDER_FILES.values(), ids=FOLDER_FILES)
def test_an_invalid_file_in_a_folder_is_a_problem(tmp_path, outside, store, plant):
    """
    The other model is found.
    """
    fill(tmp_path / "models", org___repo___m__gguf=GGUF)

    planted = plant(tmp_path / "models/org/repo", outside)

    assert problem_paths(store, tmp_path / "models", outside) == [str(planted)]


@pytest.mark.parametrize("store", ["directory", "lmstudio"])
@pytest.mark.parametrize("name", [ESCAPE, NOT_UTF8], ids=["escape", "not UTF-8"])
def test_a_folder_with_an_invalid_name_is_a_problem(tmp_path, outside, store, name):
    """
    The models in it are left out, because their references would be invalid.
    """
    fill(tmp_path / "models", org___repo___m__gguf=GGUF)
    bad = write(tmp_path / "models/org" / name / "m.gguf", GGUF)

    assert problem_paths(store, tmp_path / "models", outside) == [str(bad)]


@pytest.mark.parametrize("path", [ESCAPE, NOT_UTF8, f"{ESCAPE}/x.txt", f"{NOT_UTF8}/x.txt"])
def test_a_file_with_an_invalid_name_is_left_out_of_its_model(tmp_path, outside, path):
    """
    The other files of the model are found.
    """
    fill(tmp_path / "models", org___repo___m__safetensors=b"m", org___repo___config__json=b"{}")
    write(tmp_path / "models/org/repo" / path, b"1")

    bad = tmp_path / "models/org/repo" / path.partition("/")[0]
    assert problem_paths("lmstudio", tmp_path / "models", outside) == [str(bad)]


def test_a_path_that_is_too_long_for_a_version_is_a_problem(tmp_path, outside):
    """
    A path of 512 characters with an `@` is a version.
    """
    fill(tmp_path / "models", org___repo___m__gguf=GGUF)
    folders = ["x" * 200, "y" * 200]
    write(tmp_path.joinpath("models/org/repo", *folders, f"v@{'z' * 103}.gguf"), GGUF)
    bad = write(tmp_path.joinpath("models/org/repo", *folders, f"{'z' * 106}.gguf"), GGUF)

    assert problem_paths("lmstudio", tmp_path / "models", outside, good=2) == [str(bad)]


def test_a_path_that_is_too_long_for_a_reference_is_a_problem(tmp_path, outside):
    """
    The other model is found.
    """
    write(tmp_path / "models/m.gguf", GGUF)
    bad = write(tmp_path.joinpath("models", *["x" * 200] * 3, "m.gguf"), GGUF)

    assert problem_paths("directory", tmp_path / "models", outside) == [str(bad)]


@pytest.mark.slow
def test_a_folder_with_too_many_files_is_a_problem(tmp_path, outside):
    """
    The other model is found.
    """
    fill(tmp_path / "models", m__gguf=GGUF, big___config__json=b"{}", big___m__safetensors=GGUF)
    make_too_many_files(tmp_path / "models/big/sub")

    big = str(tmp_path / "models/big")
    assert problem_paths("directory", tmp_path / "models", outside) == [big]


JSON_FILES = {
    "a FIFO": lambda path, _: fifo(path),
    "links out of the store": lambda path, out: (path.unlink(), link(path, out / "secret.json"))[1],
    "nested deeply": lambda path, _: write(path, DEEP[:60_000]),
    "long": lambda path, _: write(path, " " * 100_000),
    "not UTF-8": lambda path, _: write(path, b"\xff"),
}


@pytest.mark.parametrize("plant", JSON_FILES.values(), ids=JSON_FILES)
def test_an_invalid_json_file_of_llama_cpp_is_a_problem(tmp_path, outside, plant):
    """
    The model file is found under its file name.
    """
    file = flat_llamacpp(tmp_path / "models", "org/m", "m.gguf", GGUF)
    json_file = file.with_name(f"{file.name}.json")

    plant(json_file, outside)

    assert problem_paths("llamacpp", tmp_path / "models", outside) == [str(json_file)]


@pytest.mark.parametrize("store", SCANNERS)
@pytest.mark.parametrize("root", ["missing", "file", "FIFO", "loop", "NUL"], ids=lambda name: name)
def test_an_invalid_root_is_a_problem(tmp_path, store, root):
    """
    It hides every model that was found there before.
    """
    path = tmp_path / "root"
    {
        "missing": lambda: None,
        "file": lambda: write(path, b""),
        "FIFO": lambda: fifo(path),
        "loop": lambda: link(path, path),
        "NUL": lambda: None,
    }[root]()
    path = f"{path}\0" if root == "NUL" else path

    scanned = SCANNERS[store](path)

    assert scanned.found == ()
    assert [problem.path for problem in scanned.problems] == [str(path)]
    assert scanned.may_hide("m", "", f"{path}/m")


@pytest.mark.parametrize("store", SCANNERS)
def test_an_empty_root_is_not_a_problem(tmp_path, store):
    """
    The result is an empty scan.
    """
    scanned = SCANNERS[store](Path(tmp_path))

    assert (scanned.found, scanned.problems) == ((), ())
