"""Stores that were made to lead a reader astray: each is a problem, and nothing else."""

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
NO_TEXT = os.fsdecode(b"a\xff\xfeb")
TOUCHING = {"open", "os.listdir", "os.scandir"}

_watched = []


def _note(event, args):
    # What is opened by its number was opened by its name before.
    if _watched and event in TOUCHING and not isinstance(args[0], int):
        _watched[-1](os.fspath(args[0]))


# Such a hook stays for as long as the process; it does nothing where nobody watches.
sys.addaudithook(_note)


@contextmanager
def watched():
    """Every path that is opened or listed meanwhile."""
    touched = []
    with told(touched.append):
        yield touched


@contextmanager
def told(listener):
    """Tell somebody of each such path, just before it is opened or listed."""
    _watched.append(listener)
    try:
        yield
    finally:
        _watched.pop()


@pytest.fixture
def outside(tmp_path):
    """What lies beside the store, and looks like part of one."""
    beside = HuggingFace(tmp_path / "outside")
    beside.revision("org/m", C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})
    write(tmp_path / "outside/secret.gguf", GGUF)
    write(tmp_path / "outside/secret.json", "{}")
    return tmp_path / "outside"


def survives(store, root, outside, *, good=1):
    """What a scan tells of a store with so many good models in it; nothing outside is touched."""
    tracemalloc.start()
    with watched() as touched:
        scanned = SCANNERS[store](root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert touched
    assert [path for path in touched if not str(path).startswith(str(root))] == []
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


def bound(path):
    with socket.socket(socket.AF_UNIX) as made:
        # The name of a socket is shorter than those of most files.
        here = os.open(path.parent, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
    return path


def moved(path, outside):
    """A folder of the store, gone elsewhere and a link to there."""
    path.rename(outside / "moved")
    return link(path, outside / "moved")


def renamed(path, name):
    return path.rename(path.with_name(name))


REFS = {
    "leads up": lambda refs, _: write(refs / "x", "../../../../../../etc"),
    "leads away": lambda refs, out: link(refs / "x", out / "secret.json"),
    "leads up and away": lambda refs, _: link(refs / "x", "../../../../outside/secret.json"),
    "leads to nothing": lambda refs, _: link(refs / "x", "y"),
    "leads to itself": lambda refs, _: link(refs / "x", "x"),
    "a FIFO": lambda refs, _: fifo(refs / "x"),
    "a socket": lambda refs, _: bound(refs / "x"),
    "a link to a FIFO": lambda refs, _: link(refs / "x", fifo(refs.parent / "pipe")),
    "a device": lambda refs, _: link(refs / "x", "/dev/zero"),
    "a link to a folder": lambda refs, out: link(refs / "x", out),
    "empty": lambda refs, _: write(refs / "x", ""),
    "long": lambda refs, _: write(refs / "x", C1 * 100_000),
    "no text": lambda refs, _: write(refs / "x", b"\xff\0" * 20),
    "an escape in its name": lambda refs, _: write(refs / ESCAPE, C1),
    "no text in its name": lambda refs, _: write(refs / NO_TEXT, C1),
    "an @ in its name": lambda refs, _: write(refs / "v@1", C1),
    "a long name": lambda refs, _: write(refs / ("x" * 100) / ("x" * 100), C1),
}


@pytest.mark.parametrize("plant", REFS.values(), ids=REFS)
def test_a_ref_that_is_none(tmp_path, outside, plant):
    """
    No name leads to a commit by it, and the revision is found by the others.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})

    planted = plant(cache.repository("org/m") / "refs", outside)

    assert survives("huggingface", cache.root, outside) == [str(planted)]


FILES = {
    "leads away": lambda snap, out: link(snap / "x.gguf", out / "secret.gguf"),
    "leads to a blob's name that is elsewhere": lambda snap, _: link(snap / "x.gguf", sha256(GGUF)),
    "leads up and away": lambda snap, _: link(snap / "x.gguf", "../../../../outside/secret.gguf"),
    "leads through a folder away": lambda snap, out: link(
        snap / "x.gguf", f"../../{link(snap.parents[1] / 'way', out).name}/secret.gguf"
    ),
    "leads above the root": lambda snap, _: link(snap / "x.gguf", "../" * 50 + "etc/passwd"),
    "leads to nothing": lambda snap, _: link(snap / "x.gguf", "../../blobs/" + "d" * 64),
    "leads to itself": lambda snap, _: link(snap / "x.gguf", "x.gguf"),
    "leads to a folder": lambda snap, _: link(snap / "x", ".."),
    "leads to a folder elsewhere": lambda snap, out: link(snap / "x", out),
    "leads to the root": lambda snap, _: link(snap / "x", "../../.."),
    "leads nowhere by a long way": lambda snap, _: link(snap / "x", "a/" * 2000),
    "a FIFO": lambda snap, _: fifo(snap / "x.gguf"),
    "a socket": lambda snap, _: bound(snap / "x.gguf"),
    "an escape in its name": lambda snap, _: write(snap / ESCAPE, GGUF),
    "no text in its name": lambda snap, _: write(snap / NO_TEXT, GGUF),
    "an escape in its folder's name": lambda snap, _: write(snap / ESCAPE / "x", GGUF),
    "one of a million": lambda snap, _: write(snap / "x-00001-of-999999.gguf", GGUF),
}


@pytest.mark.parametrize("plant", FILES.values(), ids=FILES)
def test_a_file_of_a_revision_that_is_none(tmp_path, outside, plant):
    """
    The others of its revision are found, and the revision beside it is whole.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    snapshot = cache.revision("org/m", C2, {"m.gguf": GGUF}, refs=())

    planted = plant(snapshot, outside)

    found = survives("huggingface", cache.root, outside)
    assert found == [str(planted)] or planted.name == "x-00001-of-999999.gguf"


PARTS = {
    "a repository is a file": lambda repo, _: write(repo.with_name("models--org--x"), b""),
    "a repository is a FIFO": lambda repo, _: fifo(repo.with_name("models--org--x")),
    "a repository leads away": lambda repo, out: link(
        repo.with_name("models--org--x"), out / "models--org--m"
    ),
    "a repository leads to another": lambda repo, _: link(
        repo.with_name("models--org--x"), repo.with_name("models--org--good")
    ),
    "a repository has no name": lambda repo, _: renamed(repo, "models--"),
    "a repository has half a name": lambda repo, _: renamed(repo, "models----m"),
    "a repository has an escape in its name": lambda repo, _: renamed(repo, f"models--{ESCAPE}"),
    "a repository has no text in its name": lambda repo, _: renamed(repo, f"models--{NO_TEXT}"),
    "blobs lead away": lambda repo, out: moved(repo / "blobs", out),
    "snapshots lead away": lambda repo, out: moved(repo / "snapshots", out),
    "refs lead away": lambda repo, out: moved(repo / "refs", out),
    "trees lead away": lambda repo, out: moved(repo / "trees", out),
    "a snapshot leads away": lambda repo, out: moved(repo / f"snapshots/{C1}", out),
    "a snapshot is a file": lambda repo, _: write(repo / f"snapshots/{C2}"),
    "a snapshot is no commit": lambda repo, _: write(repo / "snapshots/x/m.gguf", GGUF).parent,
    "blobs are a file": lambda repo, out: (
        (repo / "blobs").rename(out / "b") and write(repo / "blobs")
    ),
    "a blob leads away": lambda repo, out: (
        moved(repo / f"blobs/{sha256(GGUF)}", out).parents[1] / f"snapshots/{C1}/m.gguf"
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
def test_a_part_of_a_repository_that_is_none(tmp_path, outside, plant):
    """
    The repository beside it is found whole.
    """
    cache = HuggingFace(tmp_path / "hub")
    for name in ("org/good", "org/m"):
        cache.revision(name, C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})

    planted = plant(cache.repository("org/m"), outside)

    assert str(planted) in survives("huggingface", cache.root, outside)


TREES = {
    "a FIFO": lambda tree, _: fifo(tree),
    "leads away": lambda tree, out: (tree.unlink(), link(tree, out / "secret.json"))[1],
    "deep": lambda tree, _: write(tree, DEEP),
    "deep in a file": lambda tree, _: write(tree, '{"files":{"x":' + '{"a":' * 100_000),
    "many lists": lambda tree, _: write(tree, '{"files":{"x":' + LISTS + "}}"),
    "no object": lambda tree, _: write(tree, "[]"),
    "empty": lambda tree, _: write(tree, ""),
    "cut off": lambda tree, _: write(tree, tree.read_bytes()[:50]),
    "no text": lambda tree, _: write(tree, b"\xff" * 100),
    "files are a list": lambda tree, _: write(tree, '{"format_version":1,"files":[]}'),
    "a file is a number": lambda tree, _: write(tree, '{"format_version":1,"files":{"a":1}}'),
    "a name twice": lambda tree, _: write(tree, '{"files":{"a":{},"a":{}}}'),
}


@pytest.mark.parametrize("plant", TREES.values(), ids=TREES)
def test_a_tree_that_is_none(tmp_path, outside, plant):
    """
    The revision is found as if there were none.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})
    tree = cache.repository("org/m") / f"trees/{C1}.json"

    plant(tree, outside)

    assert survives("huggingface", cache.root, outside) == [str(tree)]


@pytest.mark.parametrize(
    "said",
    [
        {"../../../../outside/secret.gguf": {"size": 1}},
        {ESCAPE: {"size": 1}},
        {"m.gguf": {"size": -1, "lfs_sha256": "../" * 30, "lfs_size": "x"}},
        {"m.gguf": {"size": True, "blob_id": ["x"]}},
        {"m.gguf": {"size": float(10**30)}},
    ],
)
def test_a_tree_that_lies_leads_nowhere(tmp_path, outside, said):
    """
    At the most it is a reason.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    tree = json.dumps({"format_version": 1, "files": said})
    write(cache.repository("org/m") / f"trees/{C1}.json", tree)

    assert survives("huggingface", cache.root, outside, good=0) == []


def without(manifest, *path, **changed):
    """A manifest in which something is said otherwise."""
    found = json.loads(manifest.read_text())
    place = found
    for step in path:
        place = place[step]
    place.update(changed)
    return write(manifest, json.dumps(found))


MANIFESTS = {
    "a digest leads away": lambda m, _: without(
        m, "layers", 0, digest="sha256:../../../../outside/secret.gguf"
    ),
    "a digest is long": lambda m, _: without(m, "layers", 0, digest="sha256:" + "a" * 65),
    "a digest ends its line": lambda m, _: without(m, "layers", 0, digest=f"sha256:{'a' * 64}\n"),
    "a digest is a number": lambda m, _: without(m, "layers", 0, digest=7),
    "the config's leads away": lambda m, _: without(m, "config", digest="sha256-../secret.json"),
    "a size is negative": lambda m, _: without(m, "layers", 0, size=-1),
    "a size is a yes": lambda m, _: without(m, "layers", 0, size=True),
    "a size is long": lambda m, _: write(
        m, m.read_text().replace('"size":104', '"size":' + "9" * 5000)
    ),
    "layers are an object": lambda m, _: without(m, layers={}),
    "layers are numbers": lambda m, _: without(m, layers=[1]),
    "no layers": lambda m, _: without(m, layers=None),
    "another version": lambda m, _: without(m, schemaVersion=1),
    "half of it": lambda m, _: write(m, m.read_bytes()[:100]),
    "a list": lambda m, _: write(m, "[]"),
    "deep": lambda m, _: write(m, DEEP),
    "deep inside": lambda m, _: write(m, '{"config":' + DEEP),
    "many lists": lambda m, _: write(m, '{"x":' + LISTS + "}"),
    "long": lambda m, _: write(m, m.read_text() + " " * 5_000_000),
    "empty": lambda m, _: write(m, ""),
    "no text": lambda m, _: write(m, b"\xff\xfe{\0}\0"),
    "no number": lambda m, _: write(m, '{"schemaVersion":NaN}'),
    "a FIFO": lambda m, _: fifo(m),
    "a socket": lambda m, _: bound(m.with_name("x")),
    "a folder": lambda m, _: write(m.parent / "x/y").parent,
    "leads away": lambda m, out: link(m.with_name("x"), out / "secret.json"),
    "leads to itself": lambda m, _: link(m.with_name("x"), "x"),
    "an escape in its name": lambda m, _: renamed(m, ESCAPE),
    "no text in its name": lambda m, _: renamed(m, NO_TEXT),
    "a long name": lambda m, _: renamed(m, "x" * 81),
    "hidden with an escape": lambda m, _: renamed(m, f".{ESCAPE}"),
    "a model leads away": lambda m, out: moved(m.parent, out),
    "a namespace leads away": lambda m, out: moved(m.parents[1], out),
    "a host leads away": lambda m, out: moved(m.parents[2], out),
    "a host leads up": lambda m, _: link(m.parents[3] / "x", "../.."),
    "a model is a file": lambda m, _: write(m.parents[1] / "x"),
    "a model has an escape in its name": lambda m, _: renamed(m.parent, ESCAPE),
    "a model begins with a dash": lambda m, _: renamed(m.parent, "-x"),
    "a blob leads away": lambda m, out: (
        moved(m.parents[4] / f"blobs/sha256-{sha256(b'GGUFbad')}", out) and m
    ),
    "a blob is a FIFO": lambda m, _: (
        fifo(m.parents[4] / f"blobs/sha256-{sha256(b'GGUFbad')}") and m
    ),
}


@pytest.mark.parametrize("plant", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_is_none(tmp_path, outside, plant):
    """
    The model beside it is found.
    """
    store = Ollama(tmp_path / "models")
    store.model("good.host/me/good", GGUF)
    manifest = store.model("org/bad", b"GGUFbad" if plant in BAD_BLOBS else GGUF)

    planted = plant(manifest, outside)

    assert survives("ollama", store.root, outside) == [str(planted)]


BAD_BLOBS = (MANIFESTS["a blob leads away"], MANIFESTS["a blob is a FIFO"])


@pytest.mark.parametrize("part", ["manifests", "blobs"])
def test_a_part_of_ollamas_store_that_leads_away(tmp_path, outside, part):
    """
    Nothing is found then, and nothing is known to have gone.
    """
    store = Ollama(tmp_path / "models")
    store.model("m", GGUF)
    planted = moved(store.root / part, outside)

    assert survives("ollama", store.root, outside, good=0) == [str(planted)]
    assert SCANNERS["ollama"](store.root).may_hide("any", "latest", "/any")


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, LISTS, '{"model_family":' + DEEP])
def test_a_config_of_ollamas_that_was_made_to_harm(tmp_path, outside, text):
    """
    It is a reason, and claims nothing.
    """
    store = Ollama(tmp_path / "models")
    store.model("good", GGUF, details=DETAILS)
    store.manifest("m", [store.layer("model", GGUF)], store.layer("x", text.encode()))

    assert survives("ollama", store.root, outside) == []


LOOSE = {
    "leads away": lambda repo, out: link(repo / "x.gguf", out / "secret.gguf"),
    "leads up and away": lambda repo, _: link(repo / "x.gguf", "../../../outside/secret.gguf"),
    "leads to nothing": lambda repo, _: link(repo / "x.gguf", "y"),
    "leads to itself": lambda repo, _: link(repo / "x.gguf", "x.gguf"),
    "a folder leads away": lambda repo, out: link(repo / "x", out),
    "a folder leads up": lambda repo, _: link(repo / "x", ".."),
    "a FIFO": lambda repo, _: fifo(repo / "x.gguf"),
    "a socket": lambda repo, _: bound(repo / "x.gguf"),
    "an escape in its name": lambda repo, _: write(repo / f"{ESCAPE}.gguf", GGUF),
    "no text in its name": lambda repo, _: write(repo / f"{NO_TEXT}.gguf", GGUF),
    "a config leads away": lambda repo, out: link(repo / "config.json", out / "secret.json"),
}


@pytest.mark.parametrize("store", ["directory", "lmstudio"])
@pytest.mark.parametrize("plant", LOOSE.values(), ids=LOOSE)
def test_a_file_in_a_folder_that_is_none(tmp_path, outside, store, plant):
    """
    The model beside it is found.
    """
    fill(tmp_path / "models", org___repo___m__gguf=GGUF)

    planted = plant(tmp_path / "models/org/repo", outside)

    assert survives(store, tmp_path / "models", outside) == [str(planted)]


@pytest.mark.parametrize("store", ["directory", "lmstudio"])
@pytest.mark.parametrize("name", [ESCAPE, NO_TEXT], ids=["an escape", "no text"])
def test_a_folder_with_a_name_that_is_none(tmp_path, outside, store, name):
    """
    The models in it are left out; a name that is no text is no reference.
    """
    fill(tmp_path / "models", org___repo___m__gguf=GGUF)
    bad = write(tmp_path / "models/org" / name / "m.gguf", GGUF)

    assert survives(store, tmp_path / "models", outside) == [str(bad)]


@pytest.mark.parametrize("path", [ESCAPE, NO_TEXT, f"{ESCAPE}/x.txt", f"{NO_TEXT}/x.txt"])
def test_a_part_of_a_model_with_a_name_that_is_none(tmp_path, outside, path):
    """
    The rest of the model is found.
    """
    fill(tmp_path / "models", org___repo___m__gguf=GGUF, org___repo___config__json=b"{}")
    write(tmp_path / "models/org/repo" / path, b"1")

    bad = tmp_path / "models/org/repo" / path.partition("/")[0]
    assert survives("lmstudio", tmp_path / "models", outside) == [str(bad)]


@pytest.mark.parametrize("name", ["v@1.gguf", "x" * 124 + ".gguf"], ids=["an @", "long"])
def test_a_name_that_is_no_version(tmp_path, outside, name):
    """
    In a catalog it could not be found again.
    """
    fill(tmp_path / "models", org___repo___m__gguf=GGUF)
    bad = write(tmp_path / "models/org/repo" / name, GGUF)

    assert survives("lmstudio", tmp_path / "models", outside) == [str(bad)]


def test_a_path_that_is_no_reference(tmp_path, outside):
    """
    It is longer than one may be.
    """
    write(tmp_path / "models/m.gguf", GGUF)
    bad = write(tmp_path.joinpath("models", *["x" * 200] * 3, "m.gguf"), GGUF)

    assert survives("directory", tmp_path / "models", outside) == [str(bad)]


def test_a_file_that_is_replaced_while_it_is_read_is_not_believed(tmp_path):
    """
    What was looked at was part of the store; what is opened may be anybody's.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    ref = write(cache.repository("org/m") / "refs/x", C1)
    other = write(tmp_path / "other", C1)

    def replace(path):
        if path == str(ref):
            other.replace(ref)

    with told(replace):
        scanned = SCANNERS["huggingface"](cache.root)

    assert scanned.found[0].aliases == ("main",)
    (problem,) = scanned.problems
    assert (problem.path, problem.reason) == (str(ref), "it was replaced while it was read")


def many(folder, data=b""):
    """One file more than a model may have."""
    first = write(folder / "0", data)
    for number in range(1, MAX_FILES + 1):
        os.link(first, folder / str(number))


def test_a_repository_with_too_many_refs_is_found_by_those_that_were_read(tmp_path, outside):
    """
    Somebody has made them to keep a reader busy.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    many(cache.repository("org/m") / "refs/heads", C1)

    refs = str(cache.repository("org/m") / "refs")
    assert survives("huggingface", cache.root, outside) == [refs]


def test_a_revision_of_too_many_files_is_a_problem(tmp_path, outside):
    """
    The one beside it is found.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    snapshot = cache.revision("org/m", C2, {"m.gguf": GGUF}, refs=())
    many(snapshot / "sub")

    assert survives("huggingface", cache.root, outside) == [str(snapshot)]


def test_a_folder_of_too_many_files_is_a_problem(tmp_path, outside):
    """
    The model beside it is found.
    """
    fill(tmp_path / "models", m__gguf=GGUF, big___config__json=b"{}", big___m__safetensors=GGUF)
    many(tmp_path / "models/big/sub")

    big = str(tmp_path / "models/big")
    assert survives("directory", tmp_path / "models", outside) == [big]


NOTES = {
    "a FIFO": lambda note, _: fifo(note),
    "leads away": lambda note, out: (note.unlink(), link(note, out / "secret.json"))[1],
    "deep": lambda note, _: write(note, DEEP[:60_000]),
    "long": lambda note, _: write(note, " " * 100_000),
    "no text": lambda note, _: write(note, b"\xff"),
}


@pytest.mark.parametrize("plant", NOTES.values(), ids=NOTES)
def test_a_note_of_llama_cpp_that_is_none(tmp_path, outside, plant):
    """
    The file is found by its own name.
    """
    file = flat_llamacpp(tmp_path / "models", "org/m", "m.gguf", GGUF)
    note = file.with_name(f"{file.name}.json")

    plant(note, outside)

    assert survives("llamacpp", tmp_path / "models", outside) == [str(note)]


@pytest.mark.parametrize("store", SCANNERS)
@pytest.mark.parametrize(
    "root", ["nothing", "a file", "a FIFO", "a loop", "a NUL"], ids=lambda name: name
)
def test_a_root_that_is_none(tmp_path, store, root):
    """
    It is a problem as everything else is, and hides whatever was found there before.
    """
    path = tmp_path / "root"
    {
        "nothing": lambda: None,
        "a file": lambda: write(path, b""),
        "a FIFO": lambda: fifo(path),
        "a loop": lambda: link(path, path),
        "a NUL": lambda: None,
    }[root]()
    path = f"{path}\0" if root == "a NUL" else path

    scanned = SCANNERS[store](path)

    assert scanned.found == ()
    assert [problem.path for problem in scanned.problems] == [str(path)]
    assert scanned.may_hide("m", "", f"{path}/m")


@pytest.mark.parametrize("store", SCANNERS)
def test_an_empty_root_is_no_problem(tmp_path, store):
    """
    There is nothing in it.
    """
    scanned = SCANNERS[store](Path(tmp_path))

    assert (scanned.found, scanned.problems) == ((), ())
