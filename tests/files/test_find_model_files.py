"""Which files belong to a model."""

import os
import subprocess

import pytest
from builders import (
    fill,
    gguf,
    index,
    safetensors,
    shards,
    write,
)

from model_catalog import (
    BadLayoutError,
    NotAFileError,
    ProtectedFileError,
)
from model_catalog.files import model_files, safe_open
from model_catalog.files.model_description import describe_model
from model_catalog.files.model_files import ModelFile, SkippedFile, find_model_files


def paths(files):
    return [file.path for file in files]


def test_a_single_file_is_a_model(tmp_path):
    """
    Other files in its folder do not belong to it.
    """
    fill(tmp_path, a__gguf=b"12345", b__gguf=b"1")

    found = find_model_files(tmp_path / "a.gguf")

    assert (found.root, found.files) == (str(tmp_path), (ModelFile("a.gguf", 5, "weights"),))
    assert found.is_complete


def test_any_shard_finds_its_whole_set(tmp_path):
    """
    Shards of another set in the folder do not belong to the model.
    """
    shards(tmp_path, 1, 2, 3)
    shards(tmp_path, 1, of=2)

    found = find_model_files(tmp_path / "m-00002-of-00003.gguf")

    assert paths(found.files) == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert found.is_complete


@pytest.mark.parametrize("given", ["shard", "folder"])
def test_a_missing_shard_is_listed(tmp_path, given):
    """
    A set with a missing shard is incomplete.
    """
    shard = shards(tmp_path, 2, 3)

    found = find_model_files(shard if given == "shard" else tmp_path)

    assert found.missing == ("m-00001-of-00003.gguf",)
    assert not found.is_complete


def test_a_shard_that_is_not_a_regular_file_is_missing(tmp_path):
    """
    A FIFO in the place of a shard is skipped, and the shard is listed as missing.
    """
    shard = shards(tmp_path, 1, 3)
    os.mkfifo(tmp_path / "m-00002-of-00003.gguf")

    for found in (find_model_files(shard), find_model_files(tmp_path)):
        assert found.missing == ("m-00002-of-00003.gguf",)
        assert found.skipped == (SkippedFile("m-00002-of-00003.gguf", "a FIFO"),)


def test_the_index_lists_the_required_files(tmp_path):
    """
    It also does if the file names have no shard numbers.
    """
    fill(tmp_path, a__safetensors=safetensors())
    write(tmp_path / "model.safetensors.index.json", index(["a.safetensors", "b.safetensors"]))

    found = find_model_files(tmp_path)

    assert (found.missing, found.indexed) == (
        ("b.safetensors",),
        ("a.safetensors", "b.safetensors"),
    )


@pytest.mark.parametrize(
    "name",
    ["../b", "/etc/passwd", "a/b", "..", "", "a\nb", "a\\b", "x" * 300, "\ud800", "é" * 128],
    ids=[
        "parent folder",
        "absolute",
        "subfolder",
        "dots",
        "empty",
        "line feed",
        "backslash",
        "long",
        "surrogate",
        "many bytes",
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, name):
    """
    The names in it are untrusted. A name that is not a plain file name is a problem, and no file
    of that name is accessed.
    """
    model = tmp_path / "model"
    write(tmp_path / "b", b"x")
    fill(model, a__safetensors=safetensors())
    write(model / "model.safetensors.index.json", index(["a.safetensors", name]))

    found = find_model_files(model)

    assert (found.missing, len(found.problems)) == ((), 1)
    assert "is not a file name" in found.problems[0]
    assert not describe_model(model).is_complete


def test_anything_but_a_regular_file_is_skipped_with_a_reason(tmp_path):
    """
    FIFOs, devices, links to folders, circular links and unfinished downloads are skipped.
    """
    other = tmp_path / "other"
    model = fill(
        tmp_path / "model", m__gguf=gguf(), b__gguf__part=b"", __hidden__gguf=b"", c__tmp=b""
    )
    fill(other, x__gguf=b"x")
    os.mkfifo(model / "fifo")
    (model / "zero").symlink_to("/dev/zero")
    (model / "folder").symlink_to(other)
    (model / "around").symlink_to(".")
    (model / "loop").symlink_to("loop")

    found = find_model_files(model)

    assert paths(found.files) == ["m.gguf"]
    assert [(skipped.path, skipped.reason) for skipped in found.skipped] == [
        ("around", "a link to a directory"),
        ("b.gguf.part", "an unfinished download"),
        ("c.tmp", "an unfinished download"),
        ("fifo", "a FIFO"),
        ("folder", "a link to a directory"),
        ("loop", "ELOOP"),
        ("zero", "a device"),
    ]
    assert found.problems == ("'loop' cannot be accessed: ELOOP",)


def test_the_database_of_the_catalog_is_skipped(tmp_path):
    """
    It can be in a model folder, under any name.
    """
    model = fill(tmp_path, m__gguf=gguf(), catalog__db=b"x")
    (model / "link.gguf").symlink_to("catalog.db")
    protected = {safe_open.file_identity((model / "catalog.db").stat())}

    found = describe_model(model, protected=protected)

    assert paths(found.files.files) == ["m.gguf"]
    assert paths(found.files.skipped) == ["catalog.db", "link.gguf"]
    with pytest.raises(ProtectedFileError):
        find_model_files(model / "catalog.db", protected=protected)


def test_the_number_of_files_in_a_model_is_limited(tmp_path, monkeypatch):
    """
    For the root of a disk an error is raised early, and the disk is not walked.
    """
    monkeypatch.setattr(model_files, "MAX_ENTRIES", 20)
    fill(tmp_path / "many", **{f"f{i}": b"" for i in range(21)})
    fill(tmp_path / "few", **{f"f{i}": b"" for i in range(20)})
    (tmp_path / "deep" / "/".join("d" * 21)).mkdir(parents=True)

    assert len(find_model_files(tmp_path / "few").files) == 20
    for name in ("many", "deep"):
        with pytest.raises(BadLayoutError, match="more than 20"):
            find_model_files(tmp_path / name)


@pytest.mark.parametrize("given", ["shard", "folder"])
def test_a_set_of_too_many_shards_is_refused(tmp_path, given):
    """
    A name can claim 99,999 shards. They are not all listed.
    """
    shard = write(tmp_path / "m-00001-of-99999.gguf", gguf())

    with pytest.raises(BadLayoutError):
        find_model_files(shard if given == "shard" else tmp_path)


@pytest.fixture
def dig(tmp_path):
    """Makes nested folders, deeper than Python's own functions can make or remove."""

    def make(name, depth):
        descriptor = os.open(tmp_path, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=descriptor)
            below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        os.close(descriptor)
        return tmp_path

    yield make
    subprocess.run(["rm", "-r", str(tmp_path)], check=True)


@pytest.mark.slow
def test_the_deepest_possible_folder_is_walked(dig, tmp_path):
    """
    Any depth that fits in a path is walked.
    """
    root = dig("d", (4000 - len(str(tmp_path))) // 2)

    assert find_model_files(root).is_complete


def test_a_folder_that_is_too_deep_for_a_path_is_a_problem(dig):
    """
    It is reported, and the other files are found.
    """
    root = fill(dig("d" * 250, 20), m__gguf=gguf())

    found = find_model_files(root)

    assert paths(found.files) == ["m.gguf"]
    assert "ENAMETOOLONG" in found.problems[0]


def test_a_path_that_is_neither_file_nor_folder_raises_an_error(tmp_path):
    """
    The error depends on what the path is.
    """
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(FileNotFoundError):
        find_model_files(tmp_path / "gone")
    with pytest.raises(NotAFileError):
        describe_model(tmp_path / "fifo")
    with pytest.raises(OSError, match="loop"):
        find_model_files(tmp_path / "loop")
