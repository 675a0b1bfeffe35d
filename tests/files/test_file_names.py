"""What a file name tells: the role of the file and its shard set."""

import pytest

from model_catalog.files.file_names import (
    file_role,
    finished_name,
    is_index,
    is_partial_download,
    parse_shard_name,
)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model-Q4_K_M.gguf", "weights"),
        ("model.safetensors", "weights"),
        ("unet/pytorch_model.BIN", "weights"),
        ("consolidated.00.pth", "weights"),
        ("mmproj-model-f16.gguf", "projector"),
        ("m.mmproj-f16.gguf", "projector"),
        ("gemma.BF16-mmproj.gguf", "projector"),
        ("mtp-m-Q8_0.gguf", "draft"),
        ("eagle3-m.gguf", "draft"),
        ("MTP-m/dflash-m.safetensors", "draft"),
        ("dspark-m-00001-of-00002.gguf", "draft"),
        ("m-MTP-Q4_K_M.gguf", "weights"),
        ("imatrix.gguf", "imatrix"),
        ("imatrix.dat", "imatrix"),
        ("imatrix_unsloth.gguf_file", "imatrix"),
        ("m.imatrix", "imatrix"),
        ("m-imatrix.gguf", "imatrix"),
        ("m-imatrix-IQ2_XS.gguf", "weights"),
        ("m-LoRA-F16.gguf", "adapter"),
        ("ggml-lora-m.gguf", "adapter"),
        ("m-lora-merged-Q8_0.gguf", "weights"),
        ("explorative.gguf", "weights"),
        ("adapter_model.safetensors", "adapter"),
        ("adapter_model.bin", "adapter"),
        ("adapters.safetensors", "adapter"),
        ("unet/pytorch_lora_weights.safetensors", "adapter"),
        ("style_lora.safetensors", "adapter"),
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
        "m-00004-of-00003.gguf",
        "m-0001-of-0003.gguf",
        "m-00001-of-00003.txt",
        "-00001-of-00003.gguf",
        "m-\u0660000\u0661-of-00003.gguf",
    ],
    ids=["after the last", "four digits", "text file", "no stem", "other digits"],
)
def test_a_name_that_only_resembles_a_shard_is_not_one(name):
    """
    Only the names that gguf-split and transformers write are shards.
    """
    assert parse_shard_name(name) is None


@pytest.mark.parametrize(
    ("name", "final"),
    [
        ("m.gguf.incomplete", "m.gguf"),
        ("m.gguf.0a1b2c3d.incomplete", "m.gguf"),
        ("m.gguf.downloadInProgress", "m.gguf"),
        ("m.gguf.sync.part", "m.gguf"),
        ("m.gguf.partial", "m.gguf"),
        ("m.gguf.part", "m.gguf"),
        ("m.gguf.downloading", "m.gguf"),
        ("m.gguf.crdownload", "m.gguf"),
        ("incomplete-m.gguf", "m.gguf"),
        ("m.gguf.part1of2", "m.gguf"),
        ("m.gguf-split-a", "m.gguf"),
        ("sha256-0123-partial-12", "sha256-0123"),
        ("m.GGUF.PART", "m.GGUF"),
        ("m.bin.parallel_tmp", "m.bin"),
        ("m.safetensors_0_167772159", "m.safetensors"),
        ("m.gguf_167772160_335544319", "m.gguf"),
        ("m.pt_0_9", "m.pt"),
        ("m_0_9", None),
        ("m.txt_0_9", None),
        ("m.gguf", None),
        ("model-partial-v2.gguf", None),
        ("incomplete-", None),
        (".part", None),
        ("m.part1of2", None),
    ],
)
def test_an_unfinished_download_has_the_name_of_a_known_program(name, final):
    """
    As of huggingface_hub, LM Studio, llama.cpp, Jan, browsers, GPT4All, Ollama and ModelScope.
    """
    assert finished_name(name) == final
    assert is_partial_download(name) == (final is not None)


def test_a_control_file_of_aria2_is_a_partial_download():
    """
    It stands beside the file of the final name.
    """
    assert is_partial_download("m.gguf.aria2")
    assert finished_name("m.gguf.aria2") is None


@pytest.mark.parametrize(
    ("name", "number", "index"),
    [
        ("m-00000-of-00003.safetensors", 0, "m.safetensors.index.json"),
        ("m-00001-of-00002.fp16.safetensors", 1, "m.safetensors.index.fp16.json"),
        ("m.fp16-00001-of-00002.safetensors", 1, "m.safetensors.index.fp16.json"),
        ("m.fp16-00001-of-00002.safetensors", 1, "m.fp16.safetensors.index.json"),
        ("m-00001-of-00002.fp16.safetensors", 1, "m.fp16.safetensors.index.json"),
        ("m-00001-of-00002.SAFETENSORS", 1, "m.safetensors.index.json"),
        ("pytorch_model-00002-of-00002.bin", 2, "pytorch_model.bin.index.json"),
    ],
)
def test_a_shard_names_its_index(name, number, index):
    """
    diffusers 0.30 and later writes the variant behind the number, and transformers before it.
    """
    found, shards = parse_shard_name(name)

    assert (found, shards.file_name(found)) == (number, name)
    assert index in shards.index_names
    assert is_index(index)


@pytest.mark.parametrize(
    "name",
    [
        "m.sft",
        "m.onnx",
        "m.onnx_data",
        "tf_model.h5",
        "flax_model.msgpack",
        "m.npz",
        "m.nemo",
        "m.tflite",
        "m.pte",
        "m.pdparams",
        "m.llamafile",
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "m.mlpackage/Data/com.apple.CoreML/weight.bin",
    ],
)
def test_weights_of_formats_that_are_not_read_are_weights(name):
    """
    A model in such a format has weights.
    """
    assert file_role(name) == "weights"
