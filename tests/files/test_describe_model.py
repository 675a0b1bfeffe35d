"""The description of a model: its combined header and the reasons why it is incomplete."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from builders import (
    CONFIG,
    F32,
    PARAMETERS,
    fill,
    fixtures,
    gguf,
    gguf_shard,
    index,
    safetensors,
    shards,
    write,
)

from model_catalog import (
    StoppedError,
)
from model_catalog.files.model_description import describe_model


def paths(files):
    return [file.path for file in files]


def test_a_relative_file_name_is_accepted(tmp_path, monkeypatch):
    """
    A name without a folder is relative to the current folder.
    """
    fill(tmp_path, a__gguf=gguf())
    monkeypatch.chdir(tmp_path)

    assert describe_model("a.gguf").is_complete


def test_a_blob_is_a_model(tmp_path):
    """
    In the store of Ollama, files are named by their digests.
    """
    path = write(tmp_path / "sha256-0123", gguf())

    found = describe_model(path)

    assert found.files.files[0].role == "weights"
    assert found.header.architecture == "llama"


def test_the_shards_of_a_set_are_described_as_one_model(tmp_path):
    """
    Parameters and sizes are summed. Values that only the first shard states apply to the set.
    """
    shard = shards(tmp_path, 1, 2, 3)

    found = describe_model(shard)

    assert (found.header.parameter_count, found.header.shard_count) == (3 * PARAMETERS, 3)
    assert (found.header.architecture, found.header.quantization) == ("llama", "Q4_K_M")
    assert (found.header.context_length, found.header.license) == (4096, "apache-2.0")
    assert found.header.expected_size_bytes == found.size_bytes == found.files.size_bytes
    assert (found.is_complete, found.header.is_complete, found.header.shard_index) == (
        True,
        True,
        None,
    )


def test_a_first_shard_without_tensors_adds_no_parameters(tmp_path):
    """
    gguf-split can write a first shard without tensors.
    """
    shard = shards(tmp_path, 1, 2, of=2)
    shard.write_bytes(gguf_shard(1, 2, tensors=()))

    assert describe_model(shard).header.parameter_count == PARAMETERS


def test_an_incomplete_set_has_no_parameter_count(tmp_path):
    """
    A sum over some of the shards would be a wrong number.
    """
    found = describe_model(shards(tmp_path, 1, 3))

    assert found.reasons == ("missing: 'm-00002-of-00003.gguf'",)
    assert (found.header.parameter_count, found.header.expected_size_bytes) == (None, None)
    assert (found.header.is_complete, found.header.architecture) == (False, "llama")


def test_the_reason_lists_three_missing_files_and_counts_the_rest(tmp_path):
    """
    The list `missing` contains all of them.
    """
    found = describe_model(shards(tmp_path, 1, of=99))

    assert found.reasons == (
        (
            "missing: 'm-00002-of-00099.gguf', 'm-00003-of-00099.gguf', "
            "'m-00004-of-00099.gguf' and 95 more"
        ),
    )
    assert len(found.files.missing) == 98


def test_a_truncated_shard_is_a_reason(tmp_path):
    """
    The reason names the shard, its size and the size that it needs.
    """
    shard = shards(tmp_path, 1, 2, of=2)
    size = shard.stat().st_size
    os.truncate(shard, size - 1)

    found = describe_model(shard)

    assert found.reasons == (f"'{shard.name}' has {size - 1} bytes: {size} are needed",)
    assert found.header.is_complete is False


def test_a_renamed_shard_is_detected_by_its_header(tmp_path):
    """
    The file name and the header of a shard must agree.
    """
    write(tmp_path / "m-00001-of-00002.gguf", gguf_shard(2, 2))
    write(tmp_path / "m-00002-of-00002.gguf", gguf_shard(2, 2))
    write(tmp_path / "whole.gguf", gguf_shard(1, 2))

    assert describe_model(tmp_path / "m-00001-of-00002.gguf").reasons == (
        ("the header of 'm-00001-of-00002.gguf' says shard 2 of 2, and its name says 1 of 2"),
    )
    assert not describe_model(tmp_path / "whole.gguf").is_complete


def snapshot(folder):
    """Make a snapshot as in the cache of Hugging Face: links to blobs two folders up."""
    one = safetensors([("a", "F32", (1,))])
    two = safetensors([("b", "BF16", (9, 9))])
    names = ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"]
    blobs = {
        names[0]: one,
        names[1]: two,
        "config.json": json.dumps(CONFIG),
        "model.safetensors.index.json": index(names),
        "tokenizer.json": "{}",
        "onnx/note.txt": "x",
        ".gitattributes": "x",
    }
    root = folder / "snapshots" / "0123"
    for number, (name, content) in enumerate(blobs.items()):
        blob = write(folder / "blobs" / f"{number:064}", content)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(blob, path.parent))
    return root, len(one) + len(two)


def test_a_snapshot_of_hugging_face_is_a_model(tmp_path):
    """
    Links are followed, and the files keep the names of the links.
    """
    root, weight_bytes = snapshot(tmp_path)

    found = describe_model(root)

    assert [(file.path, file.role) for file in found.files.files] == [
        ("config.json", "config"),
        ("model-00001-of-000002.safetensors", "weights"),
        ("model-00002-of-000002.safetensors", "weights"),
        ("model.safetensors.index.json", "config"),
        ("onnx/note.txt", "other"),
        ("tokenizer.json", "tokenizer"),
    ]
    assert sum(f.size_bytes for f in found.files.files if f.role == "weights") == weight_bytes
    assert found.is_complete, found.reasons
    assert (found.header.architecture, found.header.context_length) == ("qwen2", 32768)
    assert (found.header.quantization, found.header.parameter_count) == ("BF16", 82)


def test_a_broken_link_is_a_missing_file(tmp_path):
    """
    Deleting files in a cache leaves such links behind.
    """
    root, _ = snapshot(tmp_path)
    (root / "model-00002-of-000002.safetensors").resolve().unlink()

    found = describe_model(root)

    assert found.files.missing == ("model-00002-of-000002.safetensors",)
    assert (found.is_complete, found.header.parameter_count) == (False, None)


def test_weights_that_are_not_in_the_index_are_not_counted(tmp_path):
    """
    Some repositories contain the same weights a second time, in the training layout.
    """
    fill(tmp_path, a__safetensors=safetensors())
    write(tmp_path / "consolidated.safetensors", safetensors([("x", "F32", (99,))]))
    write(tmp_path / "model.safetensors.index.json", index(["a.safetensors"]))

    assert describe_model(tmp_path).header.parameter_count == 34


@pytest.mark.parametrize("name", ["a.gguf", "z.safetensors"], ids=["by suffix", "by content"])
def test_an_index_with_a_gguf_file_makes_the_set_incomplete(tmp_path, name):
    """
    A file of another format does not count as weights of the index.
    """
    fill(tmp_path, b__safetensors=safetensors(), vae___m__safetensors=safetensors())
    write(tmp_path / name, gguf())
    write(tmp_path / "model.safetensors.index.json", index([name, "b.safetensors"]))
    fill(tmp_path / "gguf only", a__gguf=gguf(), vae___m__safetensors=safetensors())
    write(tmp_path / "gguf only" / "model.safetensors.index.json", index(["a.gguf"]))

    assert describe_model(tmp_path).header.parameter_count is None
    assert describe_model(tmp_path / "gguf only").header.parameter_count == 34


def test_safetensors_in_several_folders_are_one_model(tmp_path):
    """
    The parameters of the parts of a diffusion model are summed.
    """
    fill(tmp_path, unet___m__safetensors=safetensors(), vae___m__safetensors=safetensors())

    assert describe_model(tmp_path).header.parameter_count == 68


def test_several_files_in_one_folder_are_alternatives(tmp_path):
    """
    For a folder with every quantization, only the common values are stated.
    """
    fill(tmp_path, a__gguf=gguf(), q8___b__gguf=gguf((("general.architecture", "text", "llama"),)))

    header = describe_model(tmp_path).header

    assert (header.architecture, header.parameter_count) == ("llama", PARAMETERS)
    assert (header.quantization, header.name, header.shard_count) == (None, None, None)


def test_a_projector_is_not_an_alternative(tmp_path):
    """
    It belongs to the model, and its values are not those of the model.
    """
    fill(tmp_path, m__gguf=gguf())
    write(tmp_path / "mmproj-f16.gguf", gguf((("general.architecture", "text", "clip"),)))

    found = describe_model(tmp_path)

    assert [file.role for file in found.files.files] == ["weights", "projector"]
    assert found.header.architecture == "llama"
    assert describe_model(tmp_path / "mmproj-f16.gguf").header.architecture == "clip"


def test_safetensors_have_priority_over_pickles(tmp_path):
    """
    A pickle without safetensors is described, and marked as unsafe.
    """
    fill(tmp_path / "both", m__safetensors=safetensors(), m__bin=pickle.dumps(1))
    fill(tmp_path / "alone", m__bin=pickle.dumps(1), config__json=json.dumps(CONFIG))

    both, alone = describe_model(tmp_path / "both"), describe_model(tmp_path / "alone")

    assert (both.header.format, both.header.unsafe) == ("safetensors", False)
    assert (alone.header.format, alone.header.unsafe) == ("pickle", True)
    assert (alone.header.architecture, alone.header.quantization) == ("qwen2", "BF16")
    assert alone.is_complete


def test_the_header_has_priority_over_the_config(tmp_path):
    """
    The config provides only the values that the header lacks.
    """
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    fill(tmp_path, m__gguf=gguf(), config__json=json.dumps(config))

    header = describe_model(tmp_path).header

    assert (header.architecture, header.context_length) == ("llama", 4096)
    assert header.quantization == "Q4_K_M"


def test_packed_weights_have_the_quantization_of_the_config(tmp_path):
    """
    The header only states the integers into which they are packed.
    """
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    fill(tmp_path, m__safetensors=safetensors([("a", "I32", (8,))]))

    plain = describe_model(tmp_path).header.quantization
    fill(tmp_path, config__json=json.dumps(config))

    assert (plain, describe_model(tmp_path).header.quantization) == (None, "gptq 4-bit")


def test_a_name_that_is_not_utf_8_is_accepted(tmp_path):
    """
    It has the form of os.fsdecode, and the names are sorted by their bytes.
    """
    for name in (b"\xff.gguf", "é.gguf".encode(), "\U0001f999.gguf".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(gguf())

    found = describe_model(tmp_path)

    assert [os.fsencode(path) for path in paths(found.files.files)] == [
        "é.gguf".encode(),
        "\U0001f999.gguf".encode(),
        b"\xff.gguf",
    ]
    assert found.is_complete


def test_a_file_without_read_permission_is_a_reason(tmp_path):
    """
    A folder or a file that cannot be read makes the model incomplete.
    """
    fill(tmp_path, m__gguf=gguf(), n__gguf=gguf(), below___m__gguf=gguf())
    (tmp_path / "n.gguf").chmod(0)
    (tmp_path / "below").chmod(0)
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    code = """if True:
        import os, sys
        from model_catalog.files.model_description import describe_model
        os.geteuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))
        print(*describe_model(sys.argv[1]).reasons, sep=os.linesep)
    """

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    (tmp_path / "below").chmod(0o700)

    assert done.stdout.splitlines() == [
        "the folder 'below' cannot be read: EACCES",
        "'n.gguf' cannot be read: EACCES",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGUF", "the file ends within the header"),
        (b"<html>", "it is a web page, not the file: download it again"),
        (b"", "the file is empty"),
    ],
    ids=["truncated", "web page", "empty"],
)
def test_a_damaged_file_is_described_with_a_reason(tmp_path, content, reason):
    """
    No error is raised, because there is a file with a size.
    """
    path = write(tmp_path / "m.gguf", content)

    found = describe_model(path)

    assert found.reasons == (f"'m.gguf' cannot be read: {reason}",)
    assert (found.header, found.size_bytes) == (None, len(content))


def test_a_file_of_an_unknown_format_is_not_a_reason(tmp_path):
    """
    A .bin file can contain anything, and nothing is known to be wrong with it.
    """
    fill(tmp_path, model__bin=b"\x06\0\0\0WhisperSpec", m__gguf=gguf())

    assert describe_model(tmp_path).is_complete


def test_a_folder_without_weights_is_incomplete(tmp_path):
    """
    A config alone is not a model.
    """
    fill(tmp_path, config__json="{}")

    found = describe_model(tmp_path)

    assert (found.header, found.reasons) == (None, ("no weights were found",))


def test_a_description_can_be_stopped(tmp_path):
    """
    `stop` is called between two headers.
    """
    shard = shards(tmp_path, 1, 2, 3)
    answers = iter([False, True])

    with pytest.raises(StoppedError):
        describe_model(shard, lambda: next(answers))


def test_real_shards_are_one_model():
    """
    safetensors and transformers wrote these files.
    """
    found = describe_model(fixtures() / "synthetic" / "tiny-sharded")

    assert found.is_complete
    assert (found.header.architecture, found.header.context_length) == ("llama", 2048)
    assert (found.header.parameter_count, found.header.quantization) == (256, "F16")
    assert found.header.shard_count == 2


def test_the_quantization_of_parts_does_not_depend_on_their_order(tmp_path):
    """
    The safetensors part with the most parameters provides the type.
    """
    fill(tmp_path, a__safetensors=safetensors([("a", "F32", (2,))]))
    fill(tmp_path, b__safetensors=safetensors([("b", "F16", (20,))]))
    write(tmp_path / "model.safetensors.index.json", index(["a.safetensors", "b.safetensors"]))

    assert describe_model(tmp_path).header.quantization == "F16"


def test_two_shard_sets_in_a_folder_are_alternatives(tmp_path):
    """
    Shards are combined only within their set.
    """
    shards(tmp_path, 1, 2, of=2)
    write(tmp_path / "n-00001-of-00001.gguf", gguf(tensors=[("a", (2 * PARAMETERS,), F32)]))

    assert describe_model(tmp_path).header.parameter_count == 2 * PARAMETERS
