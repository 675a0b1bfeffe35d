"""Stores in which only file names identify models: LM Studio, llama.cpp and plain folders."""

import json
import os
from datetime import UTC, datetime

import pytest
from layouts import C1, HuggingFace, fill, flat_llamacpp, listing, sha256, write

from model_catalog.stores.scan_result import FoundModel
from model_catalog.stores.scanners import directory, llamacpp, lmstudio
from model_catalog.stores.store_walk import StoreWalk

GGUF = b"GGUF" + bytes(100)
TINY = b"GGUF"


def summary(scanned):
    """Return the files and their roles of each model, by reference and version."""
    assert scanned.problems == ()
    return {
        (model.reference, model.version): [(file.path, file.role) for file in model.files]
        for model in scanned.found
    }


def paths(scanned):
    return [model.reference for model in scanned.found]


def test_each_model_file_in_a_folder_is_a_model(tmp_path):
    """
    Its reference is its path below the folder. Other files are ignored.
    """
    fill(tmp_path, a__gguf=GGUF, sub___b__safetensors=TINY, sub___B__GGUF=TINY, notes__txt=b"")
    fill(tmp_path, sub___tokenizer__json=b"{}")
    os.utime(tmp_path / "a.gguf", (0, 1_700_000_000))

    scanned = directory.scan(tmp_path)

    assert summary(scanned) == {
        ("a.gguf", ""): [("a.gguf", "weights")],
        ("sub/B.GGUF", ""): [("B.GGUF", "weights")],
        ("sub/b.safetensors", ""): [("b.safetensors", "weights")],
    }
    a, _, b = scanned.found
    assert (a.store, a.provider, a.size_bytes) == ("directory", "local", len(GGUF))
    assert a.downloaded_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert (b.local_path, b.folder) == (
        str(tmp_path / "sub/b.safetensors"),
        str(tmp_path / "sub"),
    )
    assert (a.claims.format, b.claims.format) == ("gguf", "safetensors")
    assert all(model.is_complete for model in scanned.found)


def test_a_shard_set_is_one_model(tmp_path):
    """
    Its path is that of the first existing shard. Missing shards are a reason.
    """
    for number in (2, 3):
        write(tmp_path / f"m-0000{number}-of-00003.gguf", GGUF)
    write(tmp_path / "m.gguf", GGUF)

    shards, whole = directory.scan(tmp_path).found

    assert (whole.reference, shards.reference) == ("m.gguf", "m-00002-of-00003.gguf")
    assert [file.path for file in shards.files] == [
        "m-00002-of-00003.gguf",
        "m-00003-of-00003.gguf",
    ]
    assert shards.size_bytes == 2 * len(GGUF)
    assert shards.reasons == ("missing: 'm-00001-of-00003.gguf'",)


def test_a_folder_with_a_config_is_one_model_with_everything_below_it(tmp_path):
    """
    All files belong to it, except hidden files and unfinished downloads.
    """
    fill(
        tmp_path,
        org___m___config__json=b"{}",
        org___m___model__safetensors=GGUF,
        org___m___onnx___x__onnx=b"1",
        org___m___sub___config__json=b"{}",
        org___m___sub___m__safetensors=GGUF,
        org___other__gguf=GGUF,
    )
    fill(tmp_path / "org/m", __git___config=b"", model__safetensors__part=b"", vocab__txt__part=b"")

    scanned = directory.scan(tmp_path)

    assert summary(scanned) == {
        ("org/m", ""): [
            ("config.json", "config"),
            ("model.safetensors", "weights"),
            ("onnx/x.onnx", "weights"),
            ("sub/config.json", "config"),
            ("sub/m.safetensors", "weights"),
        ],
        ("org/other.gguf", ""): [("other.gguf", "weights")],
    }
    model = scanned.found[0]
    assert model.local_path == model.folder == str(tmp_path / "org/m")
    assert model.reasons == ("unfinished downloads: 'vocab.txt.part'",)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_config_without_weights_is_not_a_model(tmp_path, name):
    """
    Many programs have a file of that name.
    """
    write(tmp_path / name, b"{}")
    fill(tmp_path, sub___m__gguf=GGUF)

    assert paths(directory.scan(tmp_path)) == ["sub/m.gguf"]


def test_a_pipeline_with_weights_in_subfolders_is_one_model(tmp_path):
    """
    Each subfolder has its own config.
    """
    fill(tmp_path / "sd", model_index__json=b"{}", unet___config__json=b"{}")
    fill(tmp_path / "sd", unet___m__safetensors=GGUF, vae___config__json=b"{}")
    fill(tmp_path / "sd", vae___m__safetensors=GGUF)

    (model,) = directory.scan(tmp_path).found

    assert model.reference == "sd"
    assert (len(model.files), model.is_complete) == (5, True)


def test_the_scanned_folder_itself_can_be_the_model(tmp_path):
    """
    Its reference is then the name of the folder.
    """
    fill(tmp_path / "mine", config__json=b"{}", m__safetensors=GGUF)

    (model,) = directory.scan(tmp_path / "mine").found

    assert (model.reference, model.local_path) == ("mine", str(tmp_path / "mine"))


def test_a_projector_belongs_to_the_only_model_in_its_folder(tmp_path):
    """
    If there are several models, it belongs to the one of its name. Otherwise it is a model.
    """
    fill(tmp_path, one___m__gguf=GGUF, one___mmproj_m__gguf=TINY, one___s__safetensors=TINY)
    fill(tmp_path, two___m__gguf=GGUF, two___n__gguf=GGUF, two___mmproj_m__gguf=TINY)
    fill(tmp_path, two___mmproj__gguf=TINY)

    assert summary(directory.scan(tmp_path)) == {
        ("one/m.gguf", ""): [("m.gguf", "weights"), ("mmproj_m.gguf", "projector")],
        ("one/s.safetensors", ""): [("s.safetensors", "weights")],
        ("two/m.gguf", ""): [("m.gguf", "weights"), ("mmproj_m.gguf", "projector")],
        ("two/mmproj.gguf", ""): [("mmproj.gguf", "projector")],
        ("two/n.gguf", ""): [("n.gguf", "weights")],
    }


@pytest.mark.parametrize("name", [".m.gguf", "m.gguf.part", "m.gguf.incomplete", "m.gguf.tmp"])
def test_hidden_files_and_unfinished_downloads_are_not_models(tmp_path, name):
    """
    Files in hidden folders are not models either.
    """
    write(tmp_path / name, GGUF)
    write(tmp_path / ".cache/m.gguf", GGUF)

    scanned = directory.scan(tmp_path)

    assert (scanned.found, scanned.problems) == ((), ())


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    """
    Two names of one file are two models with the same bytes.
    """
    fill(tmp_path, sub___m__gguf=GGUF)
    (tmp_path / "latest.gguf").symlink_to("sub/m.gguf")
    (tmp_path / "folder").symlink_to("sub")

    scanned = directory.scan(tmp_path)

    assert paths(scanned) == ["latest.gguf", "sub/m.gguf"]
    assert len({model.files[0].identity for model in scanned.found}) == 1
    assert [problem.reason for problem in scanned.problems] == [
        "it leads to a folder, which can be scanned by its own path"
    ]


def test_the_database_of_the_catalog_is_not_a_model(tmp_path):
    """
    Its name does not matter.
    """
    status = write(tmp_path / "catalog.gguf", b"SQLite").stat()
    write(tmp_path / "m.gguf", GGUF)

    scanned = directory.scan(tmp_path, protected={(status.st_dev, status.st_ino)})

    assert paths(scanned) == ["m.gguf"]


def test_a_repository_of_lm_studio_is_a_folder(tmp_path):
    """
    Each model file in it is a version, and a projector belongs to every version.
    """
    fill(tmp_path, bob___vision___m_Q4__gguf=GGUF, bob___vision___m_Q8__gguf=GGUF)
    fill(tmp_path, bob___vision___mmproj_m__gguf=TINY)
    fill(tmp_path, mlx___chat___config__json=b"{}", mlx___chat___m__safetensors=GGUF)
    for number in (1, 2):
        write(tmp_path / f"bob/big/Q4/m-0000{number}-of-00002.gguf", GGUF)

    scanned = lmstudio.scan(tmp_path)

    projector = ("mmproj_m.gguf", "projector")
    assert summary(scanned) == {
        ("bob/big", "Q4/m-00001-of-00002.gguf"): [
            ("m-00001-of-00002.gguf", "weights"),
            ("m-00002-of-00002.gguf", "weights"),
        ],
        ("bob/vision", "m_Q4.gguf"): [("m_Q4.gguf", "weights"), projector],
        ("bob/vision", "m_Q8.gguf"): [("m_Q8.gguf", "weights"), projector],
        ("mlx/chat", ""): [("config.json", "config"), ("m.safetensors", "weights")],
    }
    assert {(model.store, model.provider) for model in scanned.found} == {("lmstudio",) * 2}


def test_a_file_outside_of_a_repository_of_lm_studio_is_a_problem(tmp_path):
    """
    LM Studio does not show it. The problem tells the user why it was not found.
    """
    fill(tmp_path, m__gguf=GGUF, bob___n__gguf=GGUF)
    write(tmp_path / ".internal", b"")

    scanned = lmstudio.scan(tmp_path)

    assert scanned.found == ()
    assert [problem.path for problem in scanned.problems] == [
        str(tmp_path / "bob/n.gguf"),
        str(tmp_path / "m.gguf"),
    ]


def test_the_origin_of_a_file_of_llama_cpp_comes_from_its_json_file(tmp_path):
    """
    The file name alone does not tell where the repository ends.
    """
    file = flat_llamacpp(tmp_path, "org/a_b", "sub/m_Q4.gguf", GGUF)
    flat_llamacpp(tmp_path, "org/c", "n.gguf", GGUF, with_json=False)

    scanned = llamacpp.scan(tmp_path)

    assert summary(scanned) == {
        ("org/a_b", "sub/m_Q4.gguf"): [("org_a_b_sub_m_Q4.gguf", "weights")],
        ("org_c_n", ""): [("org_c_n.gguf", "weights")],
    }
    known, unknown = scanned.found
    assert (known.local_path, known.provider) == (str(file), "llamacpp")
    assert known.source_url == "https://huggingface.co/org/a_b/resolve/main/sub/m_Q4.gguf"
    assert unknown.source_url is None


def test_a_projector_of_llama_cpp_belongs_to_all_models_of_its_repository(tmp_path):
    """
    Without a model in its repository it is a separate model. A draft belongs to them too.
    """
    for path in ("m-Q4.gguf", "m-Q8.gguf", "m.mmproj-f16.gguf", "mtp-m.gguf"):
        flat_llamacpp(tmp_path, "org/v", path, GGUF)
    flat_llamacpp(tmp_path, "org/w", "mmproj-w.gguf", GGUF)
    flat_llamacpp(tmp_path, "org/x", "mmproj-x.gguf", GGUF, with_json=False)

    others = [("org_v_m.mmproj-f16.gguf", "projector"), ("org_v_mtp-m.gguf", "draft")]
    assert summary(llamacpp.scan(tmp_path)) == {
        ("org/v", "m-Q4.gguf"): [("org_v_m-Q4.gguf", "weights"), *others],
        ("org/v", "m-Q8.gguf"): [("org_v_m-Q8.gguf", "weights"), *others],
        ("org/w", "mmproj-w.gguf"): [("org_w_mmproj-w.gguf", "projector")],
        ("org_x_mmproj-x", ""): [("org_x_mmproj-x.gguf", "projector")],
    }


def test_a_projector_of_llama_cpp_is_not_given_to_another_repository(tmp_path):
    """
    All files are in one folder, also those of one model and of another one's projector.
    """
    flat_llamacpp(tmp_path, "org/v", "m-Q4.gguf", GGUF)
    flat_llamacpp(tmp_path, "org/w", "w.mmproj-f16.gguf", GGUF)

    assert summary(llamacpp.scan(tmp_path)) == {
        ("org/v", "m-Q4.gguf"): [("org_v_m-Q4.gguf", "weights")],
        ("org/w", "w.mmproj-f16.gguf"): [("org_w_w.mmproj-f16.gguf", "projector")],
    }


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/org/other/resolve/main/m.gguf",
        "https://user:secret@huggingface.co/org/m/resolve/main/m.gguf",
        "file:///org/m/resolve/main/m.gguf",
        "https://huggingface.co/org/m/resolve/main/m.gguf\x1b[2J",
        "https://hugging\x1b[2Jface.co/org/m/resolve/main/m.gguf",
        7,
    ],
)
def test_a_json_file_of_llama_cpp_must_match_the_file_name(tmp_path, url):
    """
    Otherwise two files could have the same reference and version.
    """
    file = flat_llamacpp(tmp_path, "org/m", "m.gguf", GGUF)
    json_file = write(file.with_name(f"{file.name}.json"), json.dumps({"url": url}))

    scanned = llamacpp.scan(tmp_path)

    assert paths(scanned) == ["org_m_m"]
    assert [problem.path for problem in scanned.problems] == [str(json_file)]


def test_both_layouts_of_llama_cpp_are_read(tmp_path):
    """
    Both exist in one folder until llama.cpp has moved the older files.
    """
    HuggingFace(tmp_path).revision("org/m", C1, {"m.gguf": GGUF})
    flat_llamacpp(tmp_path, "org/m", "m.gguf", GGUF)

    old, new = sorted(llamacpp.scan(tmp_path).found, key=lambda model: model.version, reverse=True)

    assert (old.reference, old.version) == ("org/m", "m.gguf")
    assert (new.store, new.provider, new.version) == ("llamacpp", "llamacpp", C1)
    assert new.files[0].digest == f"sha256:{sha256(GGUF)}"


def test_no_two_models_of_a_scan_have_the_same_name(tmp_path):
    """
    No store layout allows it. The first model is kept, and the other becomes a problem.
    """
    walk = StoreWalk.start("directory", tmp_path, (), None, None)
    for path in ("/a", "/b"):
        found = FoundModel(
            store="directory",
            provider="local",
            reference="m",
            local_path=path,
            folder="/",
            files=(),
            downloaded_at=None,
        )
        walk.add_model(found, path)

    scanned = walk.result()

    assert [model.local_path for model in scanned.found] == ["/a"]
    assert [problem.path for problem in scanned.problems] == ["/b"]


@pytest.mark.parametrize("scan", [directory.scan, lmstudio.scan, llamacpp.scan])
def test_a_scan_writes_nothing(tmp_path, scan):
    """
    No byte, time stamp or name differs afterwards.
    """
    fill(tmp_path, org___m___a__gguf=GGUF)
    flat_llamacpp(tmp_path, "org/m", "m.gguf", GGUF)
    before = listing(tmp_path)

    scanned = scan(tmp_path)

    assert scanned.found
    assert listing(tmp_path) == before
