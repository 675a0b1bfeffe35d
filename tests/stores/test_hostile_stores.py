"""Hostile stores: each hostile entry becomes a problem, and the other models are found."""

import json
import os
import socket
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
from layouts import C1, C2, DETAILS, HuggingFace, Ollama, fill, flat_llamacpp, sha256, write

from model_catalog.domain import fields, validation
from model_catalog.stores.store_kinds import SCANNERS
from model_catalog.stores.store_walk import MAX_FILES

GGUF = b"GGUF" + bytes(100)
DEEP = "[" * 100_000
LISTS = "[" + "[]," * 300_000 + "[]]"
ESCAPE = "a\x1b[2Jb"
NOT_UTF8 = os.fsdecode(b"a\xff\xfeb")
OPEN_EVENTS = {"open", "os.listdir", "os.scandir"}

_listeners = []


def _on_audit_event(event, args):
    # A file that is opened by its descriptor was opened by its path before.
    if _listeners and event in OPEN_EVENTS and not isinstance(args[0], int):
        _listeners[-1](os.fspath(args[0]))


# An audit hook cannot be removed. It does nothing without listeners.
sys.addaudithook(_on_audit_event)


@contextmanager
def recorded_paths():
    """Collect every path that is opened or listed."""
    opened = []
    with on_open(opened.append):
        yield opened


@contextmanager
def on_open(listener):
    """Call a listener with each path, just before it is opened or listed."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


@pytest.fixture
def outside(tmp_path):
    """A folder next to the store that looks like a part of one."""
    cache = HuggingFace(tmp_path / "outside")
    cache.revision("org/m", C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})
    write(tmp_path / "outside/secret.gguf", GGUF)
    write(tmp_path / "outside/secret.json", "{}")
    return tmp_path / "outside"


def problem_paths(store, root, outside, *, good=1):
    """Scan a store; assert that nothing outside is accessed; return the paths of the problems."""
    tracemalloc.start()
    with recorded_paths() as opened:
        scanned = SCANNERS[store](root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert opened
    assert [path for path in opened if not str(path).startswith(str(root))] == []
    assert peak < 64 << 20
    assert len([model for model in scanned.found if model.is_complete]) >= good
    for model in scanned.found:
        key = ("reference", "provider", "version", "local_path")
        fields.validate_model({name: getattr(model, name) for name in key})
        for alias in model.aliases:
            validation.alias("alias", alias)
        texts = [*model.reasons, *(file.path for file in model.files)]
        assert [text for text in texts if not text.isprintable()] == []
    assert [each.reason for each in scanned.problems if not each.reason.isprintable()] == []
    return [problem.path for problem in scanned.problems]


def link(path, to):
    path.symlink_to(to)
    return path


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        # The path of a socket has a low length limit. The path through /proc is short.
        folder = os.open(path.parent, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
    return path


def move_outside(path, outside):
    """Move a folder out of the store and replace it by a link."""
    path.rename(outside / "moved")
    return link(path, outside / "moved")


def renamed(path, name):
    return path.rename(path.with_name(name))


REFS = {
    "path out of the store": lambda refs, _: write(refs / "x", "../../../../../../etc"),
    "links out of the store": lambda refs, out: link(refs / "x", out / "secret.json"),
    "relative link out of the store": lambda refs, _: link(
        refs / "x", "../../../../outside/secret.json"
    ),
    "broken link": lambda refs, _: link(refs / "x", "y"),
    "links to itself": lambda refs, _: link(refs / "x", "x"),
    "a FIFO": lambda refs, _: fifo(refs / "x"),
    "a socket": lambda refs, _: unix_socket(refs / "x"),
    "a link to a FIFO": lambda refs, _: link(refs / "x", fifo(refs.parent / "pipe")),
    "a device": lambda refs, _: link(refs / "x", "/dev/zero"),
    "a link to a folder": lambda refs, out: link(refs / "x", out),
    "empty": lambda refs, _: write(refs / "x", ""),
    "long": lambda refs, _: write(refs / "x", C1 * 100_000),
    "not UTF-8": lambda refs, _: write(refs / "x", b"\xff\0" * 20),
    "escape in its name": lambda refs, _: write(refs / ESCAPE, C1),
    "name that is not UTF-8": lambda refs, _: write(refs / NOT_UTF8, C1),
    "@ in its name": lambda refs, _: write(refs / "v@1", C1),
    "a long name": lambda refs, _: write(refs / ("x" * 100) / ("x" * 100), C1),
}


@pytest.mark.parametrize("plant", REFS.values(), ids=REFS)
def test_an_invalid_ref_is_a_problem(tmp_path, outside, plant):
    """
    It becomes no alias, and the revision is found with its other refs.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})

    planted = plant(cache.repository("org/m") / "refs", outside)

    assert problem_paths("huggingface", cache.root, outside) == [str(planted)]


FILES = {
    "links out of the store": lambda snap, out: link(snap / "x.gguf", out / "secret.gguf"),
    "links to a blob name in the same folder": lambda snap, _: link(snap / "x.gguf", sha256(GGUF)),
    "relative link out of the store": lambda snap, _: link(
        snap / "x.gguf", "../../../../outside/secret.gguf"
    ),
    "links through a linked folder": lambda snap, out: link(
        snap / "x.gguf", f"../../{link(snap.parents[1] / 'way', out).name}/secret.gguf"
    ),
    "links above the root": lambda snap, _: link(snap / "x.gguf", "../" * 50 + "etc/passwd"),
    "broken link": lambda snap, _: link(snap / "x.gguf", "../../blobs/" + "d" * 64),
    "links to itself": lambda snap, _: link(snap / "x.gguf", "x.gguf"),
    "links to a folder": lambda snap, _: link(snap / "x", ".."),
    "links to a folder outside": lambda snap, out: link(snap / "x", out),
    "links to the root": lambda snap, _: link(snap / "x", "../../.."),
    "broken link with a long path": lambda snap, _: link(snap / "x", "a/" * 2000),
    "a FIFO": lambda snap, _: fifo(snap / "x.gguf"),
    "a socket": lambda snap, _: unix_socket(snap / "x.gguf"),
    "escape in its name": lambda snap, _: write(snap / ESCAPE, GGUF),
    "name that is not UTF-8": lambda snap, _: write(snap / NOT_UTF8, GGUF),
    "escape in the name of its folder": lambda snap, _: write(snap / ESCAPE / "x", GGUF),
    "shard of a million": lambda snap, _: write(snap / "x-00001-of-999999.gguf", GGUF),
}


@pytest.mark.parametrize("plant", FILES.values(), ids=FILES)
def test_an_invalid_file_of_a_revision_is_a_problem(tmp_path, outside, plant):
    """
    The other files of its revision are found, and another revision is complete.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    snapshot = cache.revision("org/m", C2, {"m.gguf": GGUF}, refs=())

    planted = plant(snapshot, outside)

    found = problem_paths("huggingface", cache.root, outside)
    assert found == [str(planted)] or planted.name == "x-00001-of-999999.gguf"


PARTS = {
    "a repository is a file": lambda repo, _: write(repo.with_name("models--org--x"), b""),
    "a repository is a FIFO": lambda repo, _: fifo(repo.with_name("models--org--x")),
    "a repository links out of the store": lambda repo, out: link(
        repo.with_name("models--org--x"), out / "models--org--m"
    ),
    "a repository links to another": lambda repo, _: link(
        repo.with_name("models--org--x"), repo.with_name("models--org--good")
    ),
    "a repository has no name": lambda repo, _: renamed(repo, "models--"),
    "a repository has an incomplete name": lambda repo, _: renamed(repo, "models----m"),
    "a repository has an escape in its name": lambda repo, _: renamed(repo, f"models--{ESCAPE}"),
    "a repository name is not UTF-8": lambda repo, _: renamed(repo, f"models--{NOT_UTF8}"),
    "blobs link out of the store": lambda repo, out: move_outside(repo / "blobs", out),
    "snapshots link out of the store": lambda repo, out: move_outside(repo / "snapshots", out),
    "refs link out of the store": lambda repo, out: move_outside(repo / "refs", out),
    "trees link out of the store": lambda repo, out: move_outside(repo / "trees", out),
    "a snapshot links out of the store": lambda repo, out: move_outside(
        repo / f"snapshots/{C1}", out
    ),
    "a snapshot is a file": lambda repo, _: write(repo / f"snapshots/{C2}"),
    "a snapshot name is not a commit": lambda repo, _: (
        write(repo / "snapshots/x/m.gguf", GGUF).parent
    ),
    "blobs are a file": lambda repo, out: (
        (repo / "blobs").rename(out / "b") and write(repo / "blobs")
    ),
    "a blob links out of the store": lambda repo, out: (
        move_outside(repo / f"blobs/{sha256(GGUF)}", out).parents[1] / f"snapshots/{C1}/m.gguf"
    ),
    "a blob is a folder": lambda repo, out: (
        (
            (repo / f"blobs/{sha256(GGUF)}").rename(out / "b")
            and (repo / f"blobs/{sha256(GGUF)}").mkdir()
        )
        or repo / f"snapshots/{C1}/m.gguf"
    ),
}


@pytest.mark.parametrize("plant", PARTS.values(), ids=PARTS)
def test_an_invalid_part_of_a_repository_is_a_problem(tmp_path, outside, plant):
    """
    The other repository is found and complete.
    """
    cache = HuggingFace(tmp_path / "hub")
    for name in ("org/good", "org/m"):
        cache.revision(name, C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})

    planted = plant(cache.repository("org/m"), outside)

    assert str(planted) in problem_paths("huggingface", cache.root, outside)


TREES = {
    "a FIFO": lambda tree, _: fifo(tree),
    "links out of the store": lambda tree, out: (tree.unlink(), link(tree, out / "secret.json"))[1],
    "nested deeply": lambda tree, _: write(tree, DEEP),
    "nested deeply in a file": lambda tree, _: write(tree, '{"files":{"x":' + '{"a":' * 100_000),
    "many lists": lambda tree, _: write(tree, '{"files":{"x":' + LISTS + "}}"),
    "not an object": lambda tree, _: write(tree, "[]"),
    "empty": lambda tree, _: write(tree, ""),
    "truncated": lambda tree, _: write(tree, tree.read_bytes()[:50]),
    "not UTF-8": lambda tree, _: write(tree, b"\xff" * 100),
    "files are a list": lambda tree, _: write(tree, '{"format_version":1,"files":[]}'),
    "a file is a number": lambda tree, _: write(tree, '{"format_version":1,"files":{"a":1}}'),
    "duplicate name": lambda tree, _: write(tree, '{"files":{"a":{},"a":{}}}'),
}


@pytest.mark.parametrize("plant", TREES.values(), ids=TREES)
def test_an_invalid_tree_is_a_problem(tmp_path, outside, plant):
    """
    The revision is found as if there were no tree.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})
    tree = cache.repository("org/m") / f"trees/{C1}.json"

    plant(tree, outside)

    assert problem_paths("huggingface", cache.root, outside) == [str(tree)]


@pytest.mark.parametrize(
    "files",
    [
        {"../../../../outside/secret.gguf": {"size": 1}},
        {ESCAPE: {"size": 1}},
        {"m.gguf": {"size": -1, "lfs_sha256": "../" * 30, "lfs_size": "x"}},
        {"m.gguf": {"size": True, "blob_id": ["x"]}},
        {"m.gguf": {"size": float(10**30)}},
    ],
)
def test_false_values_in_a_tree_have_no_effect_outside_of_it(tmp_path, outside, files):
    """
    At most they become a reason.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    tree = json.dumps({"format_version": 1, "files": files})
    write(cache.repository("org/m") / f"trees/{C1}.json", tree)

    assert problem_paths("huggingface", cache.root, outside, good=0) == []


def change_manifest(manifest, *path, **changed):
    """Change members of an object in a manifest."""
    content = json.loads(manifest.read_text())
    member = content
    for step in path:
        member = member[step]
    member.update(changed)
    return write(manifest, json.dumps(content))


MANIFESTS = {
    "a digest is a path": lambda m, _: change_manifest(
        m, "layers", 0, digest="sha256:../../../../outside/secret.gguf"
    ),
    "a digest is long": lambda m, _: change_manifest(m, "layers", 0, digest="sha256:" + "a" * 65),
    "a digest ends with a line feed": lambda m, _: change_manifest(
        m, "layers", 0, digest=f"sha256:{'a' * 64}\n"
    ),
    "a digest is a number": lambda m, _: change_manifest(m, "layers", 0, digest=7),
    "the digest of the config is a path": lambda m, _: change_manifest(
        m, "config", digest="sha256-../secret.json"
    ),
    "a size is negative": lambda m, _: change_manifest(m, "layers", 0, size=-1),
    "a size is true": lambda m, _: change_manifest(m, "layers", 0, size=True),
    "a size is long": lambda m, _: write(
        m, m.read_text().replace('"size":104', '"size":' + "9" * 5000)
    ),
    "layers are an object": lambda m, _: change_manifest(m, layers={}),
    "layers are numbers": lambda m, _: change_manifest(m, layers=[1]),
    "no layers": lambda m, _: change_manifest(m, layers=None),
    "another version": lambda m, _: change_manifest(m, schemaVersion=1),
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
    assert SCANNERS["ollama"](store.root).may_hide("any", "latest", "/any")


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
    fill(tmp_path / "models", org___repo___m__gguf=GGUF, org___repo___config__json=b"{}")
    write(tmp_path / "models/org/repo" / path, b"1")

    bad = tmp_path / "models/org/repo" / path.partition("/")[0]
    assert problem_paths("lmstudio", tmp_path / "models", outside) == [str(bad)]


@pytest.mark.parametrize("name", ["v@1.gguf", "x" * 124 + ".gguf"], ids=["with @", "too long"])
def test_a_name_that_is_not_a_valid_version_is_a_problem(tmp_path, outside, name):
    """
    A catalog could not find the model by it.
    """
    fill(tmp_path / "models", org___repo___m__gguf=GGUF)
    bad = write(tmp_path / "models/org/repo" / name, GGUF)

    assert problem_paths("lmstudio", tmp_path / "models", outside) == [str(bad)]


def test_a_path_that_is_too_long_for_a_reference_is_a_problem(tmp_path, outside):
    """
    The other model is found.
    """
    write(tmp_path / "models/m.gguf", GGUF)
    bad = write(tmp_path.joinpath("models", *["x" * 200] * 3, "m.gguf"), GGUF)

    assert problem_paths("directory", tmp_path / "models", outside) == [str(bad)]


def test_a_file_that_is_replaced_during_the_scan_is_not_used(tmp_path):
    """
    The check was made on the old file, and the new one can be any file.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    ref = write(cache.repository("org/m") / "refs/x", C1)
    other = write(tmp_path / "other", C1)

    def replace(path):
        if path == str(ref):
            other.replace(ref)

    with on_open(replace):
        scanned = SCANNERS["huggingface"](cache.root)

    assert scanned.found[0].aliases == ("main",)
    (problem,) = scanned.problems
    assert (problem.path, problem.reason) == (str(ref), "it was replaced during the scan")


def make_too_many_files(folder, data=b""):
    """Make one file more than a model may have."""
    first = write(folder / "0", data)
    for number in range(1, MAX_FILES + 1):
        os.link(first, folder / str(number))


def test_the_number_of_refs_is_limited(tmp_path, outside):
    """
    The repository is found with the refs that were read before the limit.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    make_too_many_files(cache.repository("org/m") / "refs/heads", C1)

    refs = str(cache.repository("org/m") / "refs")
    assert problem_paths("huggingface", cache.root, outside) == [refs]


def test_a_revision_with_too_many_files_is_a_problem(tmp_path, outside):
    """
    The other revision is found.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    snapshot = cache.revision("org/m", C2, {"m.gguf": GGUF}, refs=())
    make_too_many_files(snapshot / "sub")

    assert problem_paths("huggingface", cache.root, outside) == [str(snapshot)]


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
