"""A hostile store of Docker Model Runner: each hostile entry becomes a problem."""

import pytest
from hostile_entries import (
    DEEP,
    ESCAPE,
    GGUF,
    LISTS,
    change_members,
    fifo,
    link,
    move_outside,
    problem_paths,
    unix_socket,
)
from layouts import sha256, write
from new_layouts import Docker

from model_catalog.stores.store_kinds import SCANNERS

ID = "f" * 64
BAD = b"GGUFbad"


@pytest.fixture
def outside(tmp_path):
    """A folder next to the store that looks like a part of one."""
    store = Docker(tmp_path / "outside")
    store.model("ai/secret:latest", GGUF)
    write(tmp_path / "outside/secret.gguf", GGUF)
    return tmp_path / "outside"


def blob(manifest):
    return manifest.parents[2] / f"blobs/sha256/{sha256(BAD)}"


MANIFESTS = {
    "a digest is a path": lambda m, _: change_members(
        m, "layers", 0, digest="sha256:../../../outside/secret.gguf"
    ),
    "a digest is long": lambda m, _: change_members(m, "layers", 0, digest="sha256:" + "a" * 65),
    "a digest ends with a line feed": lambda m, _: change_members(
        m, "layers", 0, digest=f"sha256:{'a' * 64}\n"
    ),
    "a digest is a number": lambda m, _: change_members(m, "layers", 0, digest=7),
    "a digest of SHA-512": lambda m, _: change_members(
        m, "layers", 0, digest="sha512:" + "a" * 128
    ),
    "the config is missing": lambda m, _: change_members(m, config=None),
    "a size is negative": lambda m, _: change_members(m, "layers", 0, size=-1),
    "a size is true": lambda m, _: change_members(m, "layers", 0, size=True),
    "layers are an object": lambda m, _: change_members(m, layers={}),
    "layers are numbers": lambda m, _: change_members(m, layers=[1]),
    "no layers": lambda m, _: change_members(m, layers=None),
    "too many layers": lambda m, _: write(m, '{"layers":[' + "1," * 10_001 + "1]}"),
    "truncated": lambda m, _: write(m, m.read_bytes()[:100]),
    "a list": lambda m, _: write(m, "[]"),
    "nested deeply": lambda m, _: write(m, DEEP),
    "nested deeply in a member": lambda m, _: write(m, '{"config":' + DEEP),
    "many lists": lambda m, _: write(m, '{"layers":[' + ",".join([LISTS] * 4) + "]}"),
    "long": lambda m, _: write(m, m.read_text() + " " * 5_000_000),
    "empty": lambda m, _: write(m, ""),
    "not UTF-8": lambda m, _: write(m, b"\xff\xfe{\0}\0"),
    "a FIFO": lambda m, _: fifo(m),
    "a folder": lambda m, _: (m.unlink(), m.mkdir()) and m,
    "links out of the store": lambda m, out: (m.unlink(), link(m, out / "layout.json"))[1],
    "links to itself": lambda m, _: (m.unlink(), link(m, m))[1],
    "a blob links out of the store": lambda m, out: (
        (
            blob(m).unlink(),
            link(blob(m), out / "secret.gguf"),
        )
        and m
    ),
    "a blob is a FIFO": lambda m, _: fifo(blob(m)) and m,
    "a blob is a socket": lambda m, _: (blob(m).unlink(), unix_socket(blob(m))) and m,
}


@pytest.mark.slow_with("many lists")
@pytest.mark.parametrize("plant", MANIFESTS.values(), ids=MANIFESTS)
def test_an_invalid_manifest_of_docker_is_a_problem(tmp_path, outside, plant):
    """
    The other model is found.
    """
    store = Docker(tmp_path / "models")
    store.model("ai/good:latest", GGUF)
    manifest = store.model("ai/bad:latest", BAD)

    planted = plant(manifest, outside)

    assert problem_paths("docker", store.root, outside) == [str(planted)]


ENTRIES = {
    "a number": 7,
    "no id": {},
    "an id is a path": {"id": "sha256:../../../outside/secret.gguf"},
    "an id of another algorithm": {"id": "md5:" + "a" * 32},
    "an id ends with a line feed": {"id": f"sha256:{ID}\n"},
    "tags are a text": {"id": f"sha256:{ID}", "tags": "ai/m"},
    "a tag is a number": {"id": f"sha256:{ID}", "tags": [7]},
    "a tag has an escape": {"id": f"sha256:{ID}", "tags": [f"ai/{ESCAPE}"]},
    "a tag is empty": {"id": f"sha256:{ID}", "tags": [""]},
    "a tag is a path": {"id": f"sha256:{ID}", "tags": ["../../m"]},
    "too many names": {"id": f"sha256:{ID}", "tags": [f"a{n}" for n in range(10_000)]},
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_an_invalid_entry_of_the_index_is_a_problem(tmp_path, outside, entry):
    """
    The other model is found, and any model that is not may still exist.
    """
    store = Docker(tmp_path / "models")
    store.model("ai/good:latest", GGUF)
    store.index(entry)

    assert problem_paths("docker", store.root, outside) == [str(store.root / "models.json")]
    assert SCANNERS["docker"](store.root).may_hide("any", "latest", "/any")


INDEXES = {
    "a FIFO": lambda index, _: fifo(index),
    "links out of the store": lambda index, out: (
        index.unlink(),
        link(index, out / "models.json"),
    )[1],
    "nested deeply": lambda index, _: write(index, DEEP),
    "nested deeply in a member": lambda index, _: write(index, '{"models":' + DEEP),
    "many lists": lambda index, _: write(index, '{"models":[' + LISTS),
    "models are an object": lambda index, _: write(index, '{"models":{}}'),
    "no models": lambda index, _: write(index, "{}"),
    "long": lambda index, _: write(index, index.read_text() + " " * 5_000_000),
}


@pytest.mark.slow_with("many lists")
@pytest.mark.parametrize("plant", INDEXES.values(), ids=INDEXES)
def test_an_invalid_index_is_a_problem(tmp_path, outside, plant):
    """
    Nothing is found then, and no blob is called an orphan.
    """
    store = Docker(tmp_path / "models")
    store.model("ai/m:latest", GGUF)
    planted = plant(store.root / "models.json", outside)

    assert problem_paths("docker", store.root, outside, good=0) == [str(planted)]
    scanned = SCANNERS["docker"](store.root, follow_links=False)
    assert scanned.may_hide("any", "latest", "/any")
    assert scanned.leftovers == ()


@pytest.mark.parametrize("part", ["manifests", "blobs", "bundles", "blobs/sha256"])
def test_a_link_out_of_the_store_of_docker_is_a_problem(tmp_path, outside, part):
    """
    No blob is called an orphan.
    """
    store = Docker(tmp_path / "models")
    manifest = store.model("ai/m:latest", GGUF)
    store.bundle(manifest, model__gguf=GGUF)
    planted = move_outside(store.root / part, outside)

    found = problem_paths("docker", store.root, outside, good=0)

    assert str(planted) in found
    if part != "bundles":
        assert SCANNERS["docker"](store.root, follow_links=False).may_hide("ai/m", "latest", "/any")


@pytest.mark.parametrize(
    "config", [DEEP, '{"config":' + DEEP, LISTS, " " * 2_000_000, '{"config":{"format":"\\u001b"}}']
)
def test_a_hostile_config_of_docker_is_a_reason(tmp_path, outside, config):
    """
    It provides no claims.
    """
    store = Docker(tmp_path / "models")
    store.model("ai/good:latest", GGUF)
    manifest = store.model("ai/m:latest", BAD)
    change_members(manifest, config=store.layer("model.config.v0.1+json", config.encode()))

    assert problem_paths("docker", store.root, outside) == []
