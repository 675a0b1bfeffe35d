"""Which files belong to a model, and the description that their headers and config.json give."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from builders import (
    F32,
    PARAMETERS,
    fixtures,
    gguf,
    gguf_shard,
    index,
    safetensors,
)

from model_catalog import (
    BadHeaderError,
    BadLayoutError,
    NotAFileError,
    ProtectedFileError,
    StoppedError,
)
from model_catalog.files import model_files, safe_open
from model_catalog.files.file_names import file_role, parse_shard_name
from model_catalog.files.model_config import ModelConfig, read_config, read_index
from model_catalog.files.model_description import describe_model
from model_catalog.files.model_files import ModelFile, SkippedFile, find_model_files


def fill(folder, **files):
    """Write files with these contents; in their names `__` stands for `.` and `___` for `/`."""
    for name, content in files.items():
        write(folder / name.replace("___", "/").replace("__", "."), content)
    return folder


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def paths(files):
    return [file.path for file in files]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model-Q4_K_M.gguf", "weights"),
        ("model.safetensors", "weights"),
        ("unet/pytorch_model.BIN", "weights"),
        ("consolidated.00.pth", "weights"),
        ("mmproj-model-f16.gguf", "projector"),
        ("config.json", "config"),
        ("generation_config.json", "config"),
        ("model.safetensors.index.json", "config"),
        ("tokenizer.json", "tokenizer"),
        ("tokenizer_config.json", "tokenizer"),
        ("vocab.txt", "tokenizer"),
        ("merges.txt", "tokenizer"),
        ("README.md", "other"),
    ],
)
def test_the_role_of_a_file_comes_from_its_name(name, role):
    """
    The suffix decides, in any case, or a name that tokenizers use.
    """
    assert file_role(name) == role


@pytest.mark.parametrize(
    "name",
    [
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-0001-of-0003.gguf",
        "m-00001-of-00003.txt",
        "-00001-of-00003.gguf",
        "m-\u0660000\u0661-of-00003.gguf",
    ],
    ids=["zero", "after the last", "four digits", "text file", "no stem", "other digits"],
)
def test_a_name_that_only_resembles_a_shard_is_not_one(name):
    """
    Only the names that gguf-split and transformers write are shards.
    """
    assert parse_shard_name(name) is None


def test_a_single_file_is_a_model(tmp_path):
    """
    Other files in its folder do not belong to it.
    """
    fill(tmp_path, a__gguf=b"12345", b__gguf=b"1")

    found = find_model_files(tmp_path / "a.gguf")

    assert (found.root, found.files) == (str(tmp_path), (ModelFile("a.gguf", 5, "weights"),))
    assert found.is_complete


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


def shards(folder, *numbers, of=3):
    for number in numbers:
        write(folder / f"m-{number:05}-of-{of:05}.gguf", gguf_shard(number, of))
    return folder / f"m-{numbers[0]:05}-of-{of:05}.gguf"


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

    assert found.reasons == ("missing: m-00002-of-00003.gguf",)
    assert (found.header.parameter_count, found.header.expected_size_bytes) == (None, None)
    assert (found.header.is_complete, found.header.architecture) == (False, "llama")


def test_the_reason_lists_three_missing_files_and_counts_the_rest(tmp_path):
    """
    The list `missing` contains all of them.
    """
    found = describe_model(shards(tmp_path, 1, of=99))

    assert found.reasons == (
        "missing: m-00002-of-00099.gguf, m-00003-of-00099.gguf, m-00004-of-00099.gguf and 95 more",
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


CONFIG = {"model_type": "qwen2", "max_position_embeddings": 32768, "torch_dtype": "bfloat16"}


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


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, ModelConfig()),
        ({"architectures": ["LlamaForCausalLM"]}, ModelConfig("LlamaForCausalLM")),
        ({"model_type": "a\nb", "architectures": []}, ModelConfig()),
        ({"model_type": 1, "architectures": "x" * 129}, ModelConfig()),
        ({"n_positions": 1024}, ModelConfig(context_length=1024)),
        ({"text_config": {"max_position_embeddings": 8}}, ModelConfig(context_length=8)),
        ({"max_position_embeddings": 10**30, "n_positions": 2}, ModelConfig(context_length=2)),
        ({"max_position_embeddings": True}, ModelConfig()),
        ({"torch_dtype": "float16"}, ModelConfig(dtype="F16")),
        ({"dtype": "bfloat16", "torch_dtype": "x"}, ModelConfig(dtype="BF16")),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            ModelConfig(quantization="gptq 4-bit"),
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, ModelConfig(quantization="fp8")),
        ({"quantization_config": {"quant_method": ["x"], "bits": 4}}, ModelConfig()),
        (
            {"quantization_config": {"quant_method": "x", "bits": 2**40}},
            ModelConfig(quantization="x"),
        ),
    ],
    ids=[
        "empty",
        "class name",
        "unprintable name",
        "wrong types",
        "n_positions",
        "text_config",
        "larger than the limit",
        "bool",
        "torch_dtype",
        "dtype",
        "gptq",
        "no bits",
        "no method",
        "too many bits",
    ],
)  # fmt: skip
def test_only_valid_values_of_a_config_are_used(tmp_path, config, found):
    """
    A value of an unexpected type is ignored.
    """
    path = write(tmp_path / "config.json", json.dumps({"id2label": {"1": "x" * 9000}, **config}))

    assert read_config(path) == found


def test_packed_weights_have_the_quantization_of_the_config(tmp_path):
    """
    The header only states the integers into which they are packed.
    """
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    fill(tmp_path, m__safetensors=safetensors([("a", "I32", (8,))]))

    plain = describe_model(tmp_path).header.quantization
    fill(tmp_path, config__json=json.dumps(config))

    assert (plain, describe_model(tmp_path).header.quantization) == ("I32", "gptq 4-bit")


def test_a_number_at_the_end_of_the_read_window_is_complete(tmp_path):
    """
    A number can continue in the next part that is read.
    """
    for pad in range(65_490, 65_540):
        path = write(tmp_path / "c", f'{{"a":"{"x" * pad}","n_positions":1234567}}'.encode())

        assert read_config(path).context_length == 1_234_567


NOT_JSON = {
    "empty": b"",
    "list": b"[]",
    "nested deeply": b'{"a":' + b"[" * 100_000,
    "duplicate name": b'{"a":1,"a":2}',
    "duplicate name in an object": b'{"a":{"b":1,"b":2}}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "too long": b"{}" + b" " * 5 * 1024 * 1024,
    "trailing content": b"{}{}",
    "not UTF-8": b'{"a":"\xff"}',
    "a long value": b'{"a":"' + b"x" * 1_200_000 + b'"}',
    "many members": b"{" + b",".join(b'"%d":1' % i for i in range(10_001)) + b"}",
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_a_config_that_is_not_valid_json_is_a_reason(tmp_path, content):
    """
    Reading it raises an error. A description lists it as a reason why the model is incomplete.
    """
    fill(tmp_path, m__safetensors=safetensors())
    path = write(tmp_path / "config.json", content)

    with pytest.raises(BadHeaderError):
        read_config(path)
    found = describe_model(tmp_path)

    assert [reason.split(":")[0] for reason in found.reasons] == ["'config.json' cannot be read"]
    assert found.header.parameter_count == 34


@pytest.mark.parametrize(
    "content",
    [b"{", b'{"weight_map":[]}', b'{"weight_map":{"a":1}}', b'{"weight_map":{"a":"b","a":"b"}}'],
    ids=["truncated", "list", "number", "duplicate name"],
)
def test_an_unreadable_index_is_a_reason(tmp_path, content):
    """
    Without the index it is unknown whether the model is complete.
    """
    fill(tmp_path, m__safetensors=safetensors())
    write(tmp_path / "model.safetensors.index.json", content)

    assert not describe_model(tmp_path).is_complete


def test_an_index_of_100_000_tensors_needs_little_memory(tmp_path):
    """
    The largest models have as many. The file is read as a stream.
    """
    weights = {f"layers.{i:050}.weight": f"m-{i % 100:05}.safetensors" for i in range(100_000)}
    path = write(
        tmp_path / "model.safetensors.index.json", json.dumps({"weight_map": weights}, indent=2)
    )
    code = """if True:
        import sys
        from model_catalog.files.model_config import read_index
        names = len(read_index(sys.argv[1]).file_names)
        peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
        print(names, int(peak[0].split()[1]) // 1024 if peak else 0)
    """

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    names, mebibytes = map(int, done.stdout.split())

    assert names == 100
    assert mebibytes < 64


def test_the_number_of_files_in_an_index_is_limited(tmp_path):
    """
    The limit is 10,000 files.
    """
    path = write(tmp_path / "i.json", index(f"{i}.safetensors" for i in range(10_001)))

    with pytest.raises(BadHeaderError, match="10,000"):
        read_index(path)


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
        (b"<html>", "it is not a GGUF, safetensors or pickle file"),
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
