"""Stores of another user, and stores without write or read permission."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import C1, C2, HuggingFace, Ollama, fill, listing, shared_folder

GGUF = b"GGUF" + bytes(100)


@pytest.fixture
def folder():
    with shared_folder() as folder:
        yield folder


def scan_as_other_user(*stores):
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", Path(__file__).with_name("scan_as_other_user.py")),
            json.dumps([(store, str(root)) for store, root in stores]),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def fill_all(folder):
    """Make one store of each kind, with two models in it."""
    stores = [(name, folder / name) for name in ("huggingface", "ollama", "lmstudio", "directory")]
    for _, root in stores:
        root.mkdir()
    cache = HuggingFace(folder / "huggingface")
    for name in ("org/a", "org/b"):
        cache.revision(name, C1, {"m.gguf": GGUF}, tree={"m.gguf": GGUF})
    for name in ("a", "b"):
        Ollama(folder / "ollama").model(name, GGUF)
    fill(folder / "lmstudio", org___a___m__gguf=GGUF, org___b___m__gguf=GGUF)
    fill(folder / "directory", a___m__gguf=GGUF, b___m__gguf=GGUF)
    return stores


def test_a_store_of_another_user_is_scanned(folder):
    """
    It need not be writable, and stays unchanged.
    """
    stores = fill_all(folder)
    for path, _, files in os.walk(folder):
        for name in files:
            if not Path(path, name).is_symlink():
                Path(path, name).chmod(0o444)
        Path(path).chmod(0o555)
    before = listing(folder)

    outcomes = scan_as_other_user(*stores)

    assert listing(folder) == before
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
    """The scan of each store in CLOSED, and its unreadable path; one process scans all of them."""
    with shared_folder() as folder:
        asked, paths = [], []
        for number, (store, closed, _) in enumerate(CLOSED):
            stores_folder = folder / str(number)
            stores_folder.mkdir()
            fill_all(stores_folder)
            asked.append((store, stores_folder / store))
            paths.append(stores_folder / store / closed if closed else stores_folder / store)
            paths[-1].chmod(0)
        outcomes = scan_as_other_user(*asked)
        for path in paths:
            Path(path).chmod(0o755)
        yield dict(zip(CLOSED_IDS, zip(outcomes, map(str, paths), strict=True), strict=True))


CLOSED_IDS = [f"{store}/{closed}" for store, closed, _ in CLOSED]


@pytest.mark.parametrize(
    ("case", "found"),
    [(case, found) for case, (_, _, found) in zip(CLOSED_IDS, CLOSED, strict=True)],
    ids=CLOSED_IDS,
)
def test_a_path_without_read_permission_is_a_problem(closed_stores, case, found):
    """
    The other models are found.
    """
    outcome, path = closed_stores[case]

    assert [reference for reference, _, _ in outcome["found"]] == found
    assert [path, "it cannot be read: EACCES"] in outcome["problems"]


def test_a_model_with_an_unreadable_folder_is_incomplete(folder):
    """
    Its other files are found.
    """
    snapshot = HuggingFace(folder / "hub").revision("o/m", C1, {"m.gguf": GGUF, "sub/x": b"1"})
    fill(folder / "plain/m", config__json=b"{}", m__safetensors=GGUF, sub___x=b"1")
    for path in (snapshot / "sub", folder / "plain/m/sub"):
        path.chmod(0)

    for outcome in scan_as_other_user(
        ("huggingface", folder / "hub"), ("directory", folder / "plain")
    ):
        (_, _, reasons) = outcome["found"][0]
        assert reasons == ["missing: 'sub/'"]
        assert len(outcome["problems"]) == 1


def test_a_file_that_can_be_listed_but_not_read_is_a_problem(folder):
    """
    The mode of its folder allows reading the names in it, and nothing else.
    """
    stores = fill_all(folder)
    cache, *_, folder = [root for _, root in stores]
    snapshot = cache / f"models--org--a/snapshots/{C1}"
    for path in (snapshot, folder / "a"):
        path.chmod(0o444)

    outcomes = scan_as_other_user(("huggingface", cache), ("directory", folder))

    hub, plain = ([path for path, _ in outcome["problems"]] for outcome in outcomes)
    assert hub == [str(snapshot), str(snapshot / "m.gguf")]
    assert plain == [str(folder / "a/m.gguf")]
    assert [[name for name, *_ in outcome["found"]] for outcome in outcomes] == [
        ["org/b"],
        ["b/m.gguf"],
    ]


def test_a_revision_without_any_readable_file_is_a_problem(folder):
    """
    It is not reported as a model without files. The other revision is found.
    """
    cache = HuggingFace(folder)
    cache.revision("org/a", C1, {"m.gguf": GGUF})
    snapshot = cache.revision("org/a", C2, {}, refs=())
    (snapshot / "m.gguf").symlink_to(snapshot / "m.gguf")

    (outcome,) = scan_as_other_user(("huggingface", folder))

    assert [version for _, version, _ in outcome["found"]] == [C1]
    assert outcome["problems"] == [
        [str(snapshot), "none of its files can be read"],
        [str(snapshot / "m.gguf"), "it cannot be read: ELOOP"],
    ]
