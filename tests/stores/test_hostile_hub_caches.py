"""Hostile caches of ModelScope and kagglehub: each hostile entry becomes a problem."""

import pytest
from hostile_entries import (
    ESCAPE,
    GGUF,
    NOT_UTF8,
    fifo,
    link,
    make_too_many_files,
    move_outside,
    problem_paths,
    renamed,
    unix_socket,
)
from layouts import write
from new_layouts import KaggleHub, ModelScope

from model_catalog.stores.store_kinds import SCANNERS

FILES = {"m__gguf": GGUF}


@pytest.fixture
def outside(tmp_path):
    """A folder next to the cache that looks like a part of one."""
    ModelScope(tmp_path / "outside").revision("org/secret", "master", **FILES)
    KaggleHub(tmp_path / "outside").version("o/m/f/v/1", **FILES)
    write(tmp_path / "outside/secret.gguf", GGUF)
    return tmp_path / "outside"


def new_modelscope(root):
    return ModelScope(root).revision("org/bad", "master", **FILES)


def old_modelscope(root):
    return ModelScope(root).old_model("org/bad", **FILES)


def kagglehub(root):
    return KaggleHub(root).version("o/m/f/v/1", **FILES)


STORES = {
    "new modelscope": ("modelscope", new_modelscope),
    "old modelscope": ("modelscope", old_modelscope),
    "kagglehub": ("kagglehub", kagglehub),
}


@pytest.fixture(params=STORES.values(), ids=STORES)
def folder_of_bad(request, tmp_path):
    """The kind of a cache with a good model and another one, and the folder of the other."""
    store, make = request.param
    root = tmp_path / "cache"
    if store == "kagglehub":
        KaggleHub(root).version("good/m/f/v/1", **FILES)
    else:
        ModelScope(root).revision("org/good", "master", **FILES)
    return store, make(root)


FILES_OF_MODEL = {
    "links out of the cache": lambda m, out: link(m / "x.gguf", out / "secret.gguf"),
    "a broken link": lambda m, _: link(m / "x.gguf", "y"),
    "links to itself": lambda m, _: link(m / "x.gguf", "x.gguf"),
    "a folder links out of the cache": lambda m, out: link(m / "x", out),
    "a FIFO": lambda m, _: fifo(m / "x.gguf"),
    "a socket": lambda m, _: unix_socket(m / "x.gguf"),
    "escape in its name": lambda m, _: write(m / f"{ESCAPE}.gguf", GGUF),
    "name that is not UTF-8": lambda m, _: write(m / f"{NOT_UTF8}.gguf", GGUF),
}


@pytest.mark.parametrize("plant", FILES_OF_MODEL.values(), ids=FILES_OF_MODEL)
def test_an_invalid_file_in_a_cache_is_a_problem(tmp_path, outside, folder_of_bad, plant):
    """
    The other files and the other model are found.
    """
    store, folder = folder_of_bad

    planted = plant(folder, outside)

    assert problem_paths(store, tmp_path / "cache", outside) == [str(planted)]


@pytest.mark.parametrize("name", [ESCAPE, NOT_UTF8], ids=["escape", "not UTF-8"])
def test_a_folder_in_a_cache_with_an_invalid_name_is_a_problem(
    tmp_path, outside, folder_of_bad, name
):
    """
    It would become a part of the name of a model.
    """
    store, folder = folder_of_bad
    # The version of kagglehub is a number, and the revision of the old layout is in a file.
    parent = folder if "snapshots" in folder.parts else folder.parent
    renamed(parent, name)

    (problem,) = problem_paths(store, tmp_path / "cache", outside)

    assert name in problem


@pytest.mark.parametrize("levels", [1, 2])
def test_a_link_out_of_a_cache_is_a_problem(tmp_path, outside, folder_of_bad, levels):
    """
    Models below it do not count as gone.
    """
    store, folder = folder_of_bad
    path = folder.parents[levels - 1]

    planted = move_outside(path, outside)

    assert problem_paths(store, tmp_path / "cache", outside) == [str(planted)]
    scanned = SCANNERS[store](tmp_path / "cache", follow_links=False)
    assert scanned.may_hide("any", "any", f"{planted}/x/m.gguf")


@pytest.mark.slow
def test_a_model_with_too_many_files_is_a_problem(tmp_path, outside, folder_of_bad):
    """
    The other model is found.
    """
    store, folder = folder_of_bad
    make_too_many_files(folder / "sub")

    assert problem_paths(store, tmp_path / "cache", outside) == [str(folder)]


REVISIONS = {
    "a FIFO": fifo,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "long": lambda path: write(path, "x" * 5000),
    "not UTF-8": lambda path: write(path, b"\xff"),
    "an escape": lambda path: write(path, f"Revision:{ESCAPE}"),
    "two lines": lambda path: write(path, "a\nb"),
    "a long revision": lambda path: write(path, "Revision:" + "x" * 201),
    "empty": lambda path: write(path, ""),
    "links out of the cache": lambda path: (path.unlink(), link(path, "/etc/hostname")),
}


@pytest.mark.parametrize("plant", REVISIONS.values(), ids=REVISIONS)
def test_an_invalid_revision_of_modelscope_is_a_problem(tmp_path, outside, plant):
    """
    The model would get a wrong version, so it is left out and does not count as gone.
    """
    cache = ModelScope(tmp_path / "cache")
    cache.revision("org/good", "master", **FILES)
    folder = cache.old_model("org/bad", **FILES)

    plant(folder / ".mv")

    assert problem_paths("modelscope", cache.root, outside) == [str(folder)]
    scanned = SCANNERS["modelscope"](cache.root, follow_links=False)
    assert scanned.may_hide("any", "any", f"{folder}/m.gguf")


@pytest.mark.parametrize("part", ["hub/models/._____temp", "hub/models/._____temp/org"])
def test_the_temporary_folder_of_modelscope_is_not_followed(tmp_path, outside, part):
    """
    Nothing in it is a model, so a link there is no problem.
    """
    cache = ModelScope(tmp_path / "cache")
    cache.old_model("org/m", **FILES)
    (cache.root / part).parent.mkdir(exist_ok=True)
    link(cache.root / part, outside)

    assert problem_paths("modelscope", cache.root, outside) == []


@pytest.mark.parametrize("part", [".complete", ".complete/1"])
def test_a_link_to_marks_of_kagglehub_is_not_followed(tmp_path, outside, part):
    """
    The model is not marked as complete then.
    """
    cache = KaggleHub(tmp_path / "cache")
    cache.version("good/m/f/v/1", **FILES)
    folder = cache.version("o/m/f/v/1", complete=False, **FILES)
    marks = KaggleHub(outside).version("o/m/f/v/2", complete=False, marks=["m.gguf"], **FILES)
    path = folder.parent / part
    path.parent.mkdir(exist_ok=True)
    link(path, marks.parent / ".complete")

    assert problem_paths("kagglehub", cache.root, outside) == []
    bad = [each for each in SCANNERS["kagglehub"](cache.root).found if each.reference[0] == "o"]
    assert not bad[0].is_complete


@pytest.mark.slow
def test_too_many_marks_are_a_problem(tmp_path, outside):
    """
    The version counts as not marked.
    """
    cache = KaggleHub(tmp_path / "cache")
    cache.version("good/m/f/v/1", **FILES)
    folder = cache.version("o/m/f/v/1", complete=False, **FILES)
    make_too_many_files(folder.parent / ".complete/1")

    found = problem_paths("kagglehub", cache.root, outside)

    assert found == [str(folder.parent / ".complete/1")]
