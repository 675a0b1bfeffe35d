"""Projectors and drafts in another folder than their model."""

import pytest
from layouts import fill, write

from model_catalog.stores.scanners import directory, lmstudio
from model_catalog.upkeep import Verdict, adopt, check_models, scan_store, verify_models

GGUF = b"GGUF" + bytes(100)


def summary(scanned):
    """Return the path, the kind and the files of each model, by reference and version."""
    assert scanned.problems == ()
    return {
        (model.reference, model.version): (
            model.local_path[len(scanned.root) + 1 :],
            model.kind,
            [file.path for file in model.files],
        )
        for model in scanned.found
    }


def make(root, *paths):
    for path in paths:
        write(root / path, GGUF)


@pytest.mark.parametrize("companion", ["mmproj-F16.gguf", "mtp-m.gguf"])
def test_a_projector_above_the_folder_of_the_only_model_belongs_to_it(tmp_path, companion):
    """
    The model gets the path of the folder that has both, and keeps its name.
    """
    shards = [f"Q4/m-0000{number}-of-00002.gguf" for number in (1, 2)]
    make(tmp_path / "vl", companion, *shards)

    assert summary(directory.scan(tmp_path)) == {
        ("vl/Q4/m-00001-of-00002.gguf", ""): ("vl", "model", sorted([companion, *shards])),
    }


@pytest.mark.parametrize("model", ["m.gguf", "Q4/m.gguf"])
def test_a_projector_in_a_folder_beside_the_only_model_belongs_to_it(tmp_path, model):
    """
    Some repositories have a folder for each kind of file.
    """
    make(tmp_path / "vl", "mmproj/mmproj.gguf", model)

    assert summary(directory.scan(tmp_path)) == {
        (f"vl/{model}", ""): ("vl", "model", sorted([model, "mmproj/mmproj.gguf"])),
    }


@pytest.mark.parametrize(
    "paths",
    [
        ["mmproj.gguf", "Q4/m.gguf", "Q8/m.gguf"],
        ["mmproj.gguf", "Q4/m.gguf", "other/a.ckpt"],
        ["mmproj.gguf", "a/b/m.gguf"],
        ["mmproj.gguf", "a/m.safetensors"],
        ["mmproj/mmproj.gguf", "m.gguf", "n.gguf"],
        ["mmproj/mmproj.gguf", "models/m.gguf"],
        ["a/mmproj.gguf", "b/c/m.gguf"],
        ["a/b/mmproj.gguf", "m.gguf"],
    ],
    ids=[
        "two quantizations",
        "another model",
        "far below",
        "not gguf",
        "two beside",
        "a folder of models",
        "far beside",
        "far above",
    ],
)
def test_a_projector_that_could_belong_to_another_model_is_recorded_by_itself(tmp_path, paths):
    """
    Its kind says what it is.
    """
    make(tmp_path / "x", *paths)

    found = summary(directory.scan(tmp_path))

    assert {key[0]: value[0] for key, value in found.items()} == {
        f"x/{path}": f"x/{path}" for path in paths
    }
    assert found[f"x/{paths[0]}", ""][1] == "projector"


def test_two_projectors_in_different_folders_do_not_move_a_model_twice(tmp_path):
    """
    The first one belongs to it. Both would if they were in one folder.
    """
    make(tmp_path / "x", "mmproj-F16.gguf", "mmproj-F32.gguf", "Q4/m.gguf")
    make(tmp_path / "y", "mmproj.gguf", "a/m.gguf", "a/b/mmproj.gguf")

    found = summary(directory.scan(tmp_path))

    assert found["x/Q4/m.gguf", ""][2] == ["Q4/m.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"]
    assert found["y/a/m.gguf", ""] == ("y", "model", ["a/m.gguf", "mmproj.gguf"])
    assert found["y/a/b/mmproj.gguf", ""][1] == "projector"


def test_a_repository_of_lm_studio_keeps_the_version_of_its_model(tmp_path):
    """
    The version is the path of the model's file.
    """
    make(tmp_path, "bob/vl/mmproj.gguf", "bob/vl/Q4/m.gguf")

    assert summary(lmstudio.scan(tmp_path)) == {
        ("bob/vl", "Q4/m.gguf"): ("bob/vl", "model", ["Q4/m.gguf", "mmproj.gguf"]),
    }


def test_unfinished_shards_are_told_with_their_folder(tmp_path):
    """
    The paths of the model's files begin at the folder that has both.
    """
    make(tmp_path / "x", "mmproj.gguf", "Q4/m-00001-of-00002.gguf")
    fill(tmp_path / "x", Q4___m_2__part=b"")
    (tmp_path / "x/Q4/m_2.part").rename(tmp_path / "x/Q4/m-00002-of-00002.gguf.part")

    (model,) = directory.scan(tmp_path).found

    assert model.reasons == (
        "missing: 'Q4/m-00002-of-00002.gguf'",
        "unfinished downloads: 'Q4/m-00002-of-00002.gguf.part'",
    )


async def test_a_model_keeps_its_row_when_a_projector_comes_and_goes(on_sqlite, tmp_path):
    """
    Its tags stay, and checks and verifications find its files.
    """

    async def scan():
        await adopt(on_sqlite, await scan_store(on_sqlite, "directory", tmp_path))
        (found,) = [model async for model in on_sqlite.iter_models() if model.kind == "model"]
        return found

    make(tmp_path / "x", "Q4/m.gguf")
    first = await scan()
    await on_sqlite.tag_model(first, tags=["mine"])
    make(tmp_path / "x", "mmproj.gguf")

    second = await scan()

    assert (second.id, second.reference, second.tags) == (first.id, first.reference, ("mine",))
    assert second.local_path == str(tmp_path / "x")
    assert (await check_models(on_sqlite)).is_as_recorded
    results = [each async for each in verify_models(on_sqlite)]
    assert {each.verdict for each in results} == {Verdict.INCOMPLETE}
    (tmp_path / "x/mmproj.gguf").unlink()
    third = await scan()
    assert (third.id, third.local_path) == (first.id, str(tmp_path / "x/Q4/m.gguf"))
