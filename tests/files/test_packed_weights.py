"""Quantization and parameters of weights that are packed into integers."""

import json

import pytest
from builders import fill, index, raw_safetensors, write

from model_catalog.files.model_config import read_config
from model_catalog.files.model_description import describe_model

BITS = {"F8_E4M3": 8, "U8": 8, "I8": 8, "F16": 16, "BF16": 16, "F32": 32, "I32": 32, "U32": 32}
BITS |= {"I64": 64}


def packed(**tensors):
    """A safetensors file from tensors (type, elements); in their names `__` stands for `.`."""
    header, end = {}, 0
    for name, (dtype, elements) in tensors.items():
        begin, end = end, end + elements * BITS[dtype] // 8
        entry = {"dtype": dtype, "shape": [elements], "data_offsets": [begin, end]}
        header[name.replace("__", ".")] = entry
    return raw_safetensors(json.dumps(header).encode(), bytes(end))


# Each file has a matrix of 64 x 64 parameters, and a norm of 64 in 16 bits.
NORM = {"norm__weight": ("F16", 64)}
PARAMETERS = 64 * 64 + 64
GPTQ = packed(
    q__qweight=("I32", 512),
    q__qzeros=("I32", 8),
    q__scales=("F16", 64),
    q__g_idx=("I32", 64),
    **NORM,
)
AWQ = packed(q__qweight=("I32", 512), q__qzeros=("I32", 8), q__scales=("F16", 64), **NORM)
MLX = packed(q__weight=("U32", 512), q__scales=("BF16", 64), q__biases=("BF16", 64), **NORM)
MLX_8_BIT = packed(q__weight=("U32", 1024), q__scales=("BF16", 64), q__biases=("BF16", 64), **NORM)
COMPRESSED = packed(
    q__weight_packed=("I32", 512), q__weight_scale=("F16", 64), q__weight_shape=("I64", 2), **NORM
)
NF4 = packed(
    q__weight=("U8", 2048),
    q__weight__absmax=("U8", 64),
    q__weight__nested_absmax=("F32", 1),
    q__weight__nested_quant_map=("F32", 256),
    q__weight__quant_map=("F32", 16),
    q__weight__quant_state__bitsandbytes__nf4=("U8", 90),
    **NORM,
)
INT8 = packed(q__weight=("I8", 4096), q__SCB=("F32", 64), q__weight_format=("U8", 1), **NORM)
FP8 = packed(q__weight=("F8_E4M3", 4096), q__weight_scale_inv=("F32", 1), **NORM)
MXFP4 = packed(q_blocks=("U8", 2048), q_scales=("U8", 128), **NORM)
NVFP4 = packed(
    q__weight=("U8", 2048), q__weight_scale=("F8_E4M3", 256), q__weight_scale_2=("F32", 1), **NORM
)
UNKNOWN = packed(q__w_words=("I32", 512), **NORM)
HQQ = packed(q__W_q=("U8", 2048), q__scale=("F16", 64), **NORM)


def settings(**members):
    return {"quantization_config": members}


def mlx(**members):
    affine = {"group_size": 64, "bits": 4, "mode": "affine", **members}
    return {"quantization": affine, "quantization_config": affine}


MODELS = {
    "gptq": (GPTQ, settings(quant_method="gptq", bits=4), "gptq 4-bit", PARAMETERS),
    "gptq without a config": (GPTQ, None, None, None),
    "gptq without bits": (GPTQ, settings(quant_method="gptq"), "gptq", None),
    "awq": (AWQ, settings(quant_method="awq", bits=4, version="gemm"), "awq 4-bit", PARAMETERS),
    "old awq": (AWQ, settings(quant_method="awq", w_bit=4), "awq 4-bit", PARAMETERS),
    "mlx": (MLX, mlx(), "mlx 4-bit", PARAMETERS),
    "mlx without a config": (MLX, None, None, None),
    "mlx with a layer of 8 bits": (
        MLX_8_BIT,
        mlx(q={"group_size": 64, "bits": 8}),
        "mlx mixed, mostly 4-bit",
        PARAMETERS,
    ),
    "mlx with another group size": (
        MLX,
        mlx(q={"group_size": 32, "bits": 4}),
        "mlx 4-bit",
        None,
    ),
    "mlx mxfp4": (MLX, mlx(mode="mxfp4"), "mlx mxfp4 4-bit", PARAMETERS),
    "compressed-tensors": (
        COMPRESSED,
        settings(
            quant_method="compressed-tensors",
            format="pack-quantized",
            config_groups={"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
        ),
        "compressed-tensors 4-bit",
        PARAMETERS,
    ),
    "compressed-tensors of two widths": (
        COMPRESSED,
        settings(
            quant_method="compressed-tensors",
            config_groups={"a": {"weights": {"num_bits": 4}}, "b": {"weights": {"num_bits": 8}}},
        ),
        "compressed-tensors",
        None,
    ),
    "bitsandbytes nf4": (
        NF4,
        settings(quant_method="bitsandbytes", load_in_4bit=True, load_in_8bit=False),
        "bitsandbytes 4-bit",
        PARAMETERS,
    ),
    "bitsandbytes nf4 without a config": (NF4, None, "bitsandbytes 4-bit", PARAMETERS),
    "bitsandbytes 8 bits": (INT8, settings(load_in_8bit=True), "bitsandbytes 8-bit", PARAMETERS),
    "bitsandbytes 8 bits without a config": (INT8, None, "bitsandbytes 8-bit", PARAMETERS),
    "fp8": (FP8, settings(quant_method="fp8"), "fp8", PARAMETERS),
    "fp8 without a config": (FP8, None, "F8_E4M3", PARAMETERS),
    "mxfp4": (MXFP4, settings(quant_method="mxfp4"), "mxfp4", PARAMETERS),
    "mxfp4 without a config": (MXFP4, None, "mxfp4", PARAMETERS),
    "nvfp4": (
        NVFP4,
        settings(quant_method="modelopt", quant_algo="NVFP4"),
        "modelopt NVFP4",
        PARAMETERS,
    ),
    "nvfp4 without a config": (NVFP4, None, "fp4", PARAMETERS),
    "words of an unknown program": (UNKNOWN, settings(quant_method="x", bits=4), "x 4-bit", None),
    "words without a config": (UNKNOWN, None, None, None),
    "bytes of an unknown program": (HQQ, settings(quant_method="hqq", nbits=4), "hqq 4-bit", None),
}


@pytest.mark.parametrize(
    ("weights", "config", "quantization", "parameters"), MODELS.values(), ids=MODELS
)
def test_packed_weights_count_as_the_model_does(
    tmp_path, weights, config, quantization, parameters
):
    """
    The quantization and the count are those of the model or unknown, not those of the words.
    """
    fill(tmp_path, model__safetensors=weights)
    if config is not None:
        fill(tmp_path, config__json=json.dumps({"torch_dtype": "float16", **config}))

    header = describe_model(tmp_path).header

    assert (header.quantization, header.parameter_count) == (quantization, parameters)


def test_shards_of_packed_weights_are_counted_together(tmp_path):
    """
    Only one shard has packed weights, and another has only a norm.
    """
    norm = packed(other__weight=("F16", 64))
    fill(tmp_path, a__safetensors=GPTQ, b__safetensors=norm)
    write(tmp_path / "model.safetensors.index.json", index(["a.safetensors", "b.safetensors"]))
    fill(tmp_path, config__json=json.dumps(settings(quant_method="gptq", bits=4)))

    whole = describe_model(tmp_path).header
    (tmp_path / "b.safetensors").unlink()
    cut = describe_model(tmp_path).header

    assert (whole.quantization, whole.parameter_count) == ("gptq 4-bit", PARAMETERS + 64)
    assert cut.parameter_count is None


@pytest.mark.parametrize(
    "value", [[], 4, {"bits": -1}, {"bits": True, "group_size": 2**70}, {"config_groups": [1]}]
)
def test_settings_of_a_wrong_type_are_ignored(tmp_path, value):
    """
    They give no quantization, and raise no error.
    """
    config = {"quantization": value, "quantization_config": value}
    path = write(tmp_path / "config.json", json.dumps(config))

    assert read_config(path).quantization is None
