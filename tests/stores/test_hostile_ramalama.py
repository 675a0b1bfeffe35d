"""A hostile store of RamaLama: each hostile entry becomes a problem."""

import json

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
from layouts import write
from new_layouts import RamaLama

from model_catalog.stores.store_kinds import SCANNERS


@pytest.fixture
def outside(tmp_path):
    """A folder next to the store that looks like a part of one."""
    store = RamaLama(tmp_path / "outside")
    store.model("file/secret.gguf", "latest", {"secret.gguf": ("gguf", GGUF)})
    write(tmp_path / "outside/secret.gguf", GGUF)
    write(tmp_path / "outside/secret.json", "{}")
    return tmp_path / "outside"


def files(*names, **more):
    return [{"hash": "sha256-1", "type": "gguf", "name": name, **more} for name in names]


def snapshot_file(ref):
    (path,) = ref.parents[1].glob("snapshots/*/m.gguf")
    path.unlink()
    return path


REFS = {
    "a name is a path": lambda r, _: change_members(
        r, files=files("../../../../../outside/secret.gguf")
    ),
    "a name is absolute": lambda r, out: change_members(r, files=files(f"{out}/secret.gguf")),
    "a name has an escape": lambda r, _: change_members(r, files=files(ESCAPE)),
    "a name is empty": lambda r, _: change_members(r, files=files("")),
    "a name is a number": lambda r, _: change_members(r, files=files(7)),
    "a name is long": lambda r, _: change_members(r, files=files("x" * 300)),
    "a hash of a file is a path": lambda r, _: change_members(r, files=files("m", hash="../x")),
    "a hash of a file is a list": lambda r, _: change_members(r, files=files("m", hash=[])),
    "the hash is a path": lambda r, _: change_members(r, hash="../../../../outside"),
    "the hash is two dots": lambda r, _: change_members(r, hash=".."),
    "the hash is a number": lambda r, _: change_members(r, hash=7),
    "files are an object": lambda r, _: change_members(r, files={}),
    "files are numbers": lambda r, _: change_members(r, files=[1]),
    "no files": lambda r, _: change_members(r, files=None),
    "too many files": lambda r, _: write(
        r, '{"files":[' + ",".join([json.dumps(files("m")[0])] * 10_001) + "]}"
    ),
    "truncated": lambda r, _: write(r, r.read_bytes()[:100]),
    "a list": lambda r, _: write(r, "[]"),
    "nested deeply": lambda r, _: write(r, DEEP),
    "nested deeply in a member": lambda r, _: write(r, '{"files":' + DEEP),
    "many lists": lambda r, _: write(r, '{"x":' + LISTS + "}"),
    "long": lambda r, _: write(r, r.read_text() + " " * 2_000_000),
    "empty": lambda r, _: write(r, ""),
    "not UTF-8": lambda r, _: write(r, b"\xff\xfe{\0}\0"),
    "a FIFO": lambda r, _: fifo(r),
    "a socket": lambda r, _: (r.unlink(), unix_socket(r))[1],
    "links out of the store": lambda r, out: (r.unlink(), link(r, out / "secret.json"))[1],
    "links to itself": lambda r, _: (r.unlink(), link(r, r))[1],
    "escape in its name": lambda r, _: renamed(r, f"{ESCAPE}.json"),
    "name that is not UTF-8": lambda r, _: renamed(r, f"{NOT_UTF8}.json"),
    "an old ref that is binary": lambda r, _: (r.unlink(), write(r.with_suffix(""), b"\xff\0"))[1],
    "an old ref with a path": lambda r, _: (
        r.unlink(),
        write(r.with_suffix(""), "sha256:1\n../../x---model"),
    )[1],
    "a file links out of the store": lambda r, out: link(snapshot_file(r), out / "secret.gguf"),
    "a file is a FIFO": lambda r, _: fifo(snapshot_file(r)) or snapshot_file(r),
    "the snapshots link out of the store": lambda r, out: move_outside(
        r.parents[1] / "snapshots", out
    ),
    "the model has an escape in its name": lambda r, _: renamed(r.parents[1], ESCAPE),
}


@pytest.mark.slow_with("many lists")
@pytest.mark.parametrize("plant", REFS.values(), ids=REFS)
def test_an_invalid_ref_is_a_problem(tmp_path, outside, plant):
    """
    The other model is found.
    """
    store = RamaLama(tmp_path / "store")
    store.model("file/good.gguf", "latest", {"good.gguf": ("gguf", GGUF)})
    ref = store.model("file/bad.gguf", "latest", {"m.gguf": ("gguf", GGUF)})

    planted = plant(ref, outside)

    assert problem_paths("ramalama", store.root, outside) == [str(planted)]


@pytest.mark.parametrize("part", ["file", "file/m.gguf/refs", "file/m.gguf/blobs"])
def test_a_link_out_of_the_store_of_ramalama_is_a_problem(tmp_path, outside, part):
    """
    No model that was found before counts as gone.
    """
    store = RamaLama(tmp_path / "store")
    store.model("file/m.gguf", "latest", {"m.gguf": ("gguf", GGUF)})
    planted = move_outside(store.root / part, outside)

    good = 1 if part.endswith("blobs") else 0
    assert problem_paths("ramalama", store.root, outside, good=good) == [str(planted)]
    scanned = SCANNERS["ramalama"](store.root, follow_links=False)
    path = f"{store.root}/file/m.gguf/snapshots/x/m.gguf"
    assert scanned.may_hide("file:///m.gguf", "latest", path)


@pytest.mark.slow
def test_many_blobs_are_counted(tmp_path, outside):
    """
    Their number has no limit, and they are listed once.
    """
    store = RamaLama(tmp_path / "store")
    store.model("file/m.gguf", "latest", {"m.gguf": ("gguf", GGUF)})
    make_too_many_files(store.root / "file/m.gguf/blobs")

    assert problem_paths("ramalama", store.root, outside) == []
