"""Unfinished downloads of huggingface_hub to a local_dir, without the library."""

import base64
import hashlib
import os

import pytest
from hostile_entries import DEEP, ESCAPE, NOT_UTF8, fifo, link, problem_paths
from layouts import HuggingFace, fill, listing, write

from model_catalog.files.local_downloads import DOWNLOADS, list_downloads, unfinished_downloads
from model_catalog.stores.scanners import directory, lmstudio

GGUF = b"GGUF" + bytes(100)
ETAG = "a" * 64


def short_hash(name):
    """The name of the partial file of huggingface_hub 2.4 begins so."""
    digest = hashlib.sha1(os.fsencode(f"{name}.metadata")).digest()
    return base64.urlsafe_b64encode(digest).decode()


def begin_download(folder, path, *, try_id=".28d195c5"):
    """Leave what a killed download of a file leaves."""
    parent, _, name = path.rpartition("/")
    downloads = folder / DOWNLOADS / parent
    write(downloads / f"{name}.lock")
    write(downloads / f"{short_hash(name)}.{ETAG}{try_id}.incomplete", b"half")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([f"{short_hash('m.gguf')}.{ETAG}.0a1b2c3d.incomplete", "m.gguf.lock"], ["m.gguf"]),
        ([f"{short_hash('m.gguf')}.{ETAG}.incomplete", "m.gguf.metadata"], ["m.gguf"]),
        ([f"sub/{short_hash('m')}.{ETAG}.incomplete", "sub/m.lock", "m.lock"], ["sub/m"]),
        ([f"m-Q4.0.gguf.{ETAG}.incomplete", "m-Q4.0.gguf.lock"], ["m-Q4.0.gguf"]),
        ([f"m.gguf.{ETAG}.0a1b2c3d.incomplete"], ["m.gguf"]),
        ([f"{short_hash('m.gguf')}.{ETAG}.incomplete"], []),
        ([f"{short_hash('m.gguf')}.{ETAG}.incomplete", "n.gguf.lock"], []),
        (["m.gguf.lock", "m.gguf.metadata", "x.incomplete", ".incomplete"], []),
    ],
    ids=["hash", "without a try", "folder", "of 2024", "name and try", "no lock", "other", "none"],
)
def test_the_lock_tells_which_file_a_partial_file_becomes(paths, expected):
    """
    Its name has only a hash of the file's name.
    """
    assert unfinished_downloads(paths) == expected


def test_a_begun_shard_makes_its_model_incomplete_until_it_exists(tmp_path):
    """
    Another quantization is another model. Without any file of it there is only a leftover.
    """
    folder = tmp_path / "repo"
    fill(folder, Q4___m_00001_of_00002__gguf=b"", Q8___n__gguf=GGUF)
    (folder / "Q4/m_00001_of_00002.gguf").rename(folder / "Q4/m-00001-of-00002.gguf")
    begin_download(folder, "Q4/m-00002-of-00002.gguf")
    begin_download(folder, "Q2/o.gguf")

    first, other = directory.scan(tmp_path).found
    write(folder / "Q4/m-00002-of-00002.gguf", GGUF)
    scanned = directory.scan(tmp_path)

    assert "unfinished downloads: 'm-00002-of-00002.gguf'" in first.reasons
    assert [model.reasons for model in (other, *scanned.found)] == [(), (), ()]
    assert [each.kind for each in scanned.leftovers] == ["partial", "partial"]


def test_the_tree_of_a_local_dir_tells_which_files_loading_still_needs(tmp_path):
    """
    The process was killed between two files. Sizes are not compared, because users edit the files.
    """
    files = {"config.json": b"{}", "m.safetensors": GGUF, "tokenizer.json": b"{}", "a.md": b"1"}
    write(tmp_path / f".cache/huggingface/trees/{'d' * 40}.json", HuggingFace.tree(files))
    write(tmp_path / DOWNLOADS / "config.json.metadata")
    fill(tmp_path, config__json=b"{ }", m__safetensors=GGUF)

    (model,) = directory.scan(tmp_path).found

    assert model.reasons == ("not downloaded: 'tokenizer.json'",)


@pytest.mark.parametrize("is_local_dir", [True, False])
def test_a_model_whose_only_weights_are_unfinished_is_incomplete(tmp_path, is_local_dir):
    """
    Its config was downloaded first. Unfinished weights of GGUF are no reason for a model: a config
    beside them would be that of another format.
    """
    fill(tmp_path, m___config__json=b"{}", n___config__json=b"{}", o___notes__txt=b"")
    for name in ("m/model.safetensors", "n/model.gguf", "o/model.safetensors"):
        if is_local_dir:
            begin_download(tmp_path / name[0], name[2:])
        else:
            write(tmp_path / f"{name}.part", b"half")

    (model,) = directory.scan(tmp_path).found

    suffix = "" if is_local_dir else ".part"
    assert model.reference == "m"
    assert model.reasons == (
        "no weights were found",
        f"unfinished downloads: 'model.safetensors{suffix}'",
    )


def test_an_older_tree_does_not_count(tmp_path):
    """
    Its revision had other files.
    """
    trees = tmp_path / ".cache/huggingface/trees"
    write(trees / f"{'d' * 40}.json", HuggingFace.tree({"tokenizer.json": b"1"}))
    write(trees / f"{'c' * 40}.json", HuggingFace.tree({"config.json": b"1"}))
    os.utime(trees / f"{'d' * 40}.json", (1, 1))
    write(tmp_path / DOWNLOADS / "config.json.metadata")
    fill(tmp_path, config__json=b"{}", m__safetensors=GGUF)

    assert directory.scan(tmp_path).found[0].reasons == ()


def test_a_model_in_lm_studio_may_be_a_local_dir(tmp_path):
    """
    Users download to its folder with `hf download --local-dir`.
    """
    fill(tmp_path, org___m___config__json=b"{}", org___m___model__safetensors=GGUF)
    begin_download(tmp_path / "org/m", "tokenizer.json")

    (model,) = lmstudio.scan(tmp_path).found

    assert model.reasons == ("unfinished downloads: 'tokenizer.json'",)


@pytest.mark.parametrize("part", [".cache", ".cache/huggingface", DOWNLOADS])
def test_links_are_not_followed(tmp_path, part):
    """
    A link could lead to any folder.
    """
    begin_download(tmp_path / "elsewhere", "m.gguf")
    link = tmp_path / "root" / part
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere" / part)
    write(tmp_path / "root/n.gguf", GGUF)

    assert list_downloads(str(tmp_path / "root")) == []
    assert directory.scan(tmp_path / "root").leftovers == ()


def test_a_scan_of_a_local_dir_writes_nothing(tmp_path):
    """
    No lock is taken, and no file is touched.
    """
    fill(tmp_path, config__json=b"{}", m__safetensors=GGUF)
    begin_download(tmp_path, "tokenizer.json")
    before = listing(tmp_path)

    directory.scan(tmp_path)

    assert listing(tmp_path) == before


TREE = f".cache/huggingface/trees/{'d' * 40}.json"
HOSTILE = {
    "a tree is a FIFO": lambda root, _: fifo(root / TREE),
    "a tree links out of the store": lambda root, out: link(root / TREE, out / "secret.json"),
    "a tree is nested deeply": lambda root, _: write(root / TREE, DEEP),
    "a tree is not UTF-8": lambda root, _: write(root / TREE, b'{"files": {"\xff": {}}}'),
    "a tree is a folder": lambda root, _: (root / TREE).mkdir(),
    "a lock with an escape": lambda root, _: begin_download(root, f"{ESCAPE}.safetensors"),
    "a lock that is not UTF-8": lambda root, _: begin_download(root, f"{NOT_UTF8}.safetensors"),
    "a lock is a FIFO": lambda root, _: fifo(root / DOWNLOADS / "x.lock"),
    "a partial file links out": lambda root, out: link(
        root / DOWNLOADS / f"{short_hash('x')}.{ETAG}.incomplete", out / "secret.gguf"
    ),
}
ARE_PROBLEMS = ("a tree is a FIFO", "a tree links", "a tree is nested", "a tree is not")


@pytest.mark.parametrize("plant", HOSTILE)
def test_a_hostile_local_dir_leaves_its_model_as_it_is(tmp_path, plant):
    """
    A tree that cannot be read is a problem. Nothing outside is opened, and the model is whole.
    """
    root, outside = tmp_path / "models", tmp_path / "outside"
    fill(root, config__json=b"{}", m__safetensors=GGUF)
    fill(outside, secret__json=b"{}", secret__gguf=GGUF)
    write(root / DOWNLOADS / "config.json.metadata")
    (root / TREE).parent.mkdir()

    HOSTILE[plant](root, outside)

    problems = problem_paths("directory", root, outside)
    assert problems == ([str(root / TREE)] if plant.startswith(ARE_PROBLEMS) else [])
