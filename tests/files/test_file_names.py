"""What a file name tells: the role of the file and its shard set."""

import pytest

from model_catalog.files.file_names import file_role, parse_shard_name


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
