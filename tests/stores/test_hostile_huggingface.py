"""Hostile caches of Hugging Face: each hostile entry becomes a problem."""

import json

import pytest
from hostile_entries import (
    DEEP,
    ESCAPE,
    GGUF,
    LISTS,
    NOT_UTF8,
    fifo,
    link,
    make_too_many_files,
    move_outside,
    on_open,
    problem_paths,
    renamed,
    unix_socket,
)
from layouts import C1, C2, HuggingFace, sha256, write

from model_catalog.stores.store_kinds import SCANNERS


@pytest.fixture
def outside(tmp_path):
    """A folder next to the store that looks like a part of one."""
    cache = HuggingFace(tmp_path / "outside")
    cache.revision("org/m", C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})
    write(tmp_path / "outside/secret.gguf", GGUF)
    write(tmp_path / "outside/secret.json", "{}")
    return tmp_path / "outside"


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
}


@pytest.mark.slow_with("many lists")
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


@pytest.mark.slow
def test_the_number_of_refs_is_limited(tmp_path, outside):
    """
    The repository is found with the refs that were read before the limit.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    make_too_many_files(cache.repository("org/m") / "refs/heads", C1)

    refs = str(cache.repository("org/m") / "refs")
    assert problem_paths("huggingface", cache.root, outside) == [refs]


@pytest.mark.slow
def test_a_revision_with_too_many_files_is_a_problem(tmp_path, outside):
    """
    The other revision is found.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    snapshot = cache.revision("org/m", C2, {"m.gguf": GGUF}, refs=())
    make_too_many_files(snapshot / "sub")

    assert problem_paths("huggingface", cache.root, outside) == [str(snapshot)]
