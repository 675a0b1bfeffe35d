"""Stores that belong to another user, or to which nobody may write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import C1, C2, HuggingFace, Ollama, fill, listing, shared_folder

GGUF = b"GGUF" + bytes(100)


@pytest.fixture
def place():
    with shared_folder() as folder:
        yield folder


def scan_as_a_stranger(*stores):
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", Path(__file__).with_name("stranger.py")),
            json.dumps([(store, str(root)) for store, root in stores]),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def fill_all(place):
    """One store of each kind, with two models in it."""
    stores = [(name, place / name) for name in ("huggingface", "ollama", "lmstudio", "directory")]
    for _, root in stores:
        root.mkdir()
    cache = HuggingFace(place / "huggingface")
    for name in ("org/a", "org/b"):
        cache.revision(name, C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})
    for name in ("a", "b"):
        Ollama(place / "ollama").model(name, GGUF)
    fill(place / "lmstudio", org___a___m__gguf=GGUF, org___b___m__gguf=GGUF)
    fill(place / "directory", a___m__gguf=GGUF, b___m__gguf=GGUF)
    return stores


def test_a_store_that_another_user_owns_is_read(place):
    """
    One that nobody may write to as well; it is as it was afterwards.
    """
    stores = fill_all(place)
    for path, _, files in os.walk(place):
        for name in files:
            if not Path(path, name).is_symlink():
                Path(path, name).chmod(0o444)
        Path(path).chmod(0o555)
    before = listing(place)

    outcomes = scan_as_a_stranger(*stores)

    assert listing(place) == before
    for outcome in outcomes:
        assert outcome["problems"] == []
        assert [reasons for _, _, reasons in outcome["found"]] == [[], []]


CLOSED = [
    ("huggingface", "models--org--a", ["org/b"]),
    ("huggingface", "models--org--a/snapshots", ["org/b"]),
    ("huggingface", f"models--org--a/snapshots/{C1}", ["org/b"]),
    ("huggingface", "models--org--a/refs", ["org/a", "org/b"]),
    ("huggingface", "models--org--a/trees", ["org/a", "org/b"]),
    ("huggingface", "models--org--a/refs/main", ["org/a", "org/b"]),
    ("huggingface", "models--org--a/blobs", ["org/b"]),
    ("huggingface", "", []),
    ("ollama", "manifests/registry.ollama.ai/library/a", ["b"]),
    ("ollama", "manifests/registry.ollama.ai/library/a/latest", ["b"]),
    ("ollama", "manifests/registry.ollama.ai", []),
    ("ollama", "blobs", []),
    ("ollama", "", []),
    ("lmstudio", "org/a", ["org/b"]),
    ("lmstudio", "org", []),
    ("directory", "a", ["b/m.gguf"]),
    ("directory", "", []),
]


@pytest.fixture(scope="module")
def closed_stores():
    """What a stranger finds in each of those, and the path that is closed; all by one process."""
    with shared_folder() as folder:
        asked, paths = [], []
        for number, (store, closed, _) in enumerate(CLOSED):
            place = folder / str(number)
            place.mkdir()
            fill_all(place)
            asked.append((store, place / store))
            paths.append(place / store / closed if closed else place / store)
            paths[-1].chmod(0)
        outcomes = scan_as_a_stranger(*asked)
        for path in paths:
            Path(path).chmod(0o755)
        yield dict(zip(CLOSED_IDS, zip(outcomes, map(str, paths), strict=True), strict=True))


CLOSED_IDS = [f"{store}/{closed}" for store, closed, _ in CLOSED]


@pytest.mark.parametrize(
    ("case", "found"),
    [(case, found) for case, (_, _, found) in zip(CLOSED_IDS, CLOSED, strict=True)],
    ids=CLOSED_IDS,
)
def test_what_a_stranger_may_not_read_is_a_problem_and_the_rest_is_found(
    closed_stores, case, found
):
    """
    A folder or a file of which the mode says so.
    """
    outcome, path = closed_stores[case]

    assert [reference for reference, _, _ in outcome["found"]] == found
    assert [path, "it cannot be read: EACCES"] in outcome["problems"]


def test_a_model_of_which_a_folder_cannot_be_read_is_not_whole(place):
    """
    What else there is of it is found.
    """
    snapshot = HuggingFace(place / "hub").revision("o/m", C1, {"m.gguf": GGUF, "sub/x": b"1"})
    fill(place / "plain/m", config__json=b"{}", m__safetensors=GGUF, sub___x=b"1")
    for path in (snapshot / "sub", place / "plain/m/sub"):
        path.chmod(0)

    for outcome in scan_as_a_stranger(
        ("huggingface", place / "hub"), ("directory", place / "plain")
    ):
        (_, _, reasons) = outcome["found"][0]
        assert reasons == ["missing: 'sub/'"]
        assert len(outcome["problems"]) == 1


def test_a_file_that_may_be_listed_and_not_looked_at_is_a_problem(place):
    """
    The mode of its folder lets one read the names in it, and no more.
    """
    stores = fill_all(place)
    cache, *_, folder = [root for _, root in stores]
    snapshot = cache / f"models--org--a/snapshots/{C1}"
    for path in (snapshot, folder / "a"):
        path.chmod(0o444)

    outcomes = scan_as_a_stranger(("huggingface", cache), ("directory", folder))

    hub, plain = ([path for path, _ in outcome["problems"]] for outcome in outcomes)
    assert hub == [str(snapshot), str(snapshot / "m.gguf")]
    assert plain == [str(folder / "a/m.gguf")]
    assert [[name for name, *_ in outcome["found"]] for outcome in outcomes] == [
        ["org/b"],
        ["b/m.gguf"],
    ]


def test_a_model_that_cannot_be_looked_at_is_not_said_to_have_no_bytes(place):
    """
    Of a revision none of whose files can be read nothing is known; of another's it is.
    """
    cache = HuggingFace(place)
    cache.revision("org/a", C1, {"m.gguf": GGUF})
    snapshot = cache.revision("org/a", C2, {}, refs=())
    (snapshot / "m.gguf").symlink_to(snapshot / "m.gguf")

    (outcome,) = scan_as_a_stranger(("huggingface", place))

    assert [version for _, version, _ in outcome["found"]] == [C1]
    assert outcome["problems"] == [
        [str(snapshot), "none of its files can be read"],
        [str(snapshot / "m.gguf"), "it cannot be read: ELOOP"],
    ]
