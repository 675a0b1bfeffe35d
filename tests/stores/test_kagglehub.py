"""The scan of the cache of kagglehub: versions that are marked as complete."""

import subprocess
import sys

import pytest
from layouts import write
from new_layouts import KaggleHub

from model_catalog.stores.scan_result import Claims
from model_catalog.stores.scanners.kagglehub import scan
from model_catalog.stores.store_kinds import detect_store

GGUF = b"GGUF" + bytes(100)
HANDLE = "google/gemma/transformers/2b/3"
FILES = {"model__safetensors": b"w", "config__json": b"{}", "tokenizer__json": b"{}"}
UNMARKED = "the download of this version is not marked as complete"


@pytest.fixture
def cache(tmp_path):
    return KaggleHub(tmp_path / "kagglehub")


def only(scanned):
    assert scanned.problems == ()
    (model,) = scanned.found
    return model


def test_a_version_has_the_parts_of_its_handle_as_name(cache):
    """
    Its path is the folder that `model_download` returns. Nothing states a digest.
    """
    folder = cache.version(HANDLE, **FILES)

    model = only(scan(cache.root))

    assert (model.store, model.provider) == ("kagglehub", "kaggle")
    assert (model.reference, model.version) == ("google/gemma/transformers/2b", "3")
    assert (model.local_path, model.folder) == (str(folder), str(folder))
    assert [(file.path, file.digest) for file in model.files] == [
        *(("config.json", None), ("model.safetensors", None), ("tokenizer.json", None))
    ]
    assert (model.claims, model.is_complete) == (Claims(format="safetensors"), True)


def test_a_model_in_another_format_is_a_model(cache):
    """
    Most models at Kaggle are those of TensorFlow or Keras.
    """
    cache.version("google/m/tensorFlow2/a/1", saved_model__pb=b"x", variables___x__index=b"y")
    cache.version("keras/m/keras/a/1", model__weights__h5=b"x", config__json=b"{}")

    scanned = scan(cache.root)

    assert [model.is_complete for model in scanned.found] == [True, True]
    assert scanned.problems == ()


@pytest.mark.parametrize(
    ("marks", "files", "reasons"),
    [
        ((), FILES, (UNMARKED,)),
        (("model.safetensors", "config.json", "tokenizer.json"), FILES, ()),
        (
            ("model.safetensors", "config.json"),
            FILES,
            ("not marked as complete: 'tokenizer.json'",),
        ),
        (("sub/m.gguf",), {"sub___m__gguf": GGUF}, ()),
        (("m.gguf",), {"m__gguf": GGUF, "README__md": b"#"}, ()),
    ],
)
def test_a_version_without_its_mark_needs_marks_of_its_files(cache, marks, files, reasons):
    """
    A download has the final name of its file, so an unmarked file can be cut off.
    """
    cache.version(HANDLE, complete=False, marks=marks, **files)

    assert only(scan(cache.root)).reasons == reasons


def test_the_mark_of_another_version_does_not_count(cache):
    """
    Each version has a mark of its own.
    """
    cache.version(HANDLE, **FILES)
    cache.version(HANDLE.replace("/3", "/4"), complete=False, **FILES)

    assert [(model.version, model.reasons) for model in scan(cache.root).found] == [
        ("3", ()),
        ("4", (UNMARKED,)),
    ]


def test_an_archive_is_a_leftover(cache):
    """
    A version with many files is downloaded as one archive, which is removed after its extraction.
    """
    folder = cache.version(HANDLE, complete=False, **FILES)
    archive = write(folder.with_name("3.archive"), b"half")

    scanned = scan(cache.root)

    assert only(scanned).reasons == (UNMARKED,)
    assert [(each.path, each.kind) for each in scanned.leftovers] == [(str(archive), "partial")]


def test_quantizations_in_a_version_are_models_of_their_own(cache):
    """
    Each has the path of its file behind the version.
    """
    cache.version("o/m/gguf/v/1", a__gguf=GGUF, b__gguf=GGUF + b"1")

    assert [model.version for model in scan(cache.root).found] == ["1/a.gguf", "1/b.gguf"]


def test_datasets_and_notebooks_are_left_out(cache):
    """
    They are in other folders of the cache.
    """
    cache.version(HANDLE, **FILES)
    write(cache.root / "datasets/o/d/versions/1/x.gguf", GGUF)
    write(cache.root / "notebooks/o/n/output/versions/1/x.gguf", GGUF)

    assert only(scan(cache.root)).version == "3"
    assert detect_store(cache.root) == "kagglehub"


def test_the_marks_are_those_of_the_program(tmp_path):
    """
    kagglehub names the folders and writes the marks, in a process of its own.
    """
    pytest.importorskip("kagglehub")
    code = """
import os, sys
from kagglehub.cache import Cache
from kagglehub.handle import parse_model_handle

cache = Cache()
for handle, path in [(sys.argv[1], None), ("o/m/gguf/v/1", "sub/m.gguf"), ("o/m/gguf/v/2", None)]:
    parsed = parse_model_handle(handle)
    file = cache.get_path(parsed, path or "model.gguf")
    os.makedirs(os.path.dirname(file))
    open(file, "wb").write(b"GGUF")
    if not handle.endswith("2"):
        cache.mark_as_complete(parsed, path)
    print(handle, cache.load_from_cache(parsed, path) is not None, sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, HANDLE],
        env={
            "HOME": str(tmp_path),
            "PYTHONPATH": ":".join(filter(None, sys.path)),
            "KAGGLEHUB_CACHE": str(tmp_path / "c"),
        },
        capture_output=True,
        text=True,
        check=True,
    )

    scanned = scan(tmp_path / "c")

    said = dict(line.split("|") for line in done.stdout.splitlines())
    assert scanned.problems == ()
    assert {
        f"{model.reference}/{model.version}": str(model.is_complete) for model in scanned.found
    } == said
    assert set(said.values()) == {"True", "False"}
