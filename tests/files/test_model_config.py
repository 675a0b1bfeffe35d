"""Readers of config.json and of index files, and how a description uses them."""

import json
import subprocess
import sys

import pytest
from builders import (
    fill,
    index,
    safetensors,
    write,
)

from model_catalog import (
    BadHeaderError,
    HeaderLimitError,
)
from model_catalog.files.formats.tensors.packed_weights import Packing
from model_catalog.files.model_config import ModelConfig, read_config, read_index
from model_catalog.files.model_description import describe_model


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
            ModelConfig(quantization="gptq 4-bit", packing=Packing(4)),
        ),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            ModelConfig(quantization="fp8", packing=Packing()),
        ),
        (
            {"quantization_config": {"quant_method": ["x"], "bits": 4}},
            ModelConfig(quantization="4-bit", packing=Packing(4)),
        ),
        (
            {"quantization_config": {"quant_method": "x", "bits": 2**40}},
            ModelConfig(quantization="x", packing=Packing()),
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
    "byte order mark": b"\xef\xbb\xbf{}",
    "control character": b'{"a":"\x01"}',
    "too long": b"{}" + b" " * 5 * 1024 * 1024,
    "trailing content": b"{}{}",
    "not UTF-8": b'{"a":"\xff"}',
    "a long value": b'{"a":"' + b"x" * 1_200_000 + b'"}',
    "many members": b"{" + b",".join(b'"%d":1' % i for i in range(10_001)) + b"}",
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_a_config_that_is_not_valid_json_is_a_reason(tmp_path, content):
    """
    Reading it raises an error. A description lists it as a reason why the model is incomplete, or
    says that the verdict is unknown, if a limit was exceeded.
    """
    fill(tmp_path, m__safetensors=safetensors())
    path = write(tmp_path / "config.json", content)

    with pytest.raises(BadHeaderError) as caught:
        read_config(path)
    found = describe_model(tmp_path)

    is_limit = isinstance(caught.value, HeaderLimitError)
    texts = found.completeness.unknown if is_limit else found.reasons
    said = "was not judged" if is_limit else "cannot be read"
    assert [text.split(":")[0] for text in texts] == [f"'config.json' {said}"]
    assert found.completeness.verdict == ("unknown" if is_limit else "incomplete")
    assert found.header.parameter_count == 34


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"weight_map":[]}',
        b'{"weight_map":{"a":1}}',
        b'{"weight_map":{"a":"b","a":"m.safetensors"}}',
    ],
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


PYTHON_JSON = {
    "Infinity": b'{"time_step_limit":[0.0,Infinity],"n_positions":8}',
    "-Infinity": b'{"x":-Infinity,"n_positions":8}',
    "NaN": b'{"x":{"y":NaN},"n_positions":8}',
    "duplicate name": b'{"n_positions":4,"n_positions":8}',
    "duplicate name in an object": b'{"x":{"a":1,"a":2},"n_positions":8}',
    "lone surrogate": rb'{"x":"\ud800","n_positions":8}',
    "number out of range": b'{"x":1e999,"n_positions":8}',
    "integer of 400 digits": b'{"x":' + b"9" * 400 + b',"n_positions":8}',
    "200 levels": b'{"x":' + b"[" * 200 + b"]" * 200 + b',"n_positions":8}',
}


@pytest.mark.parametrize("content", PYTHON_JSON.values(), ids=PYTHON_JSON)
def test_a_config_that_pythons_json_accepts_is_read(tmp_path, content):
    """
    transformers reads config.json with `json`, and writes an infinite number as Infinity.
    """
    path = write(tmp_path / "config.json", content)

    assert read_config(path).context_length == json.loads(content)["n_positions"]


@pytest.mark.parametrize(
    ("name", "content", "reader"),
    [
        ("config.json", b"{}" + b" " * 5 * 1024 * 1024, read_config),
        ("config.json", b'{"a":"' + b"x" * 1_200_000 + b'"}', read_config),
        ("config.json", b"{" + b",".join(b'"%d":1' % i for i in range(10_001)) + b"}", read_config),
        ("i.json", index(f"{i}.safetensors" for i in range(10_001)), read_index),
    ],
    ids=["long", "long value", "many members", "many files"],
)
def test_a_limit_is_told_from_damage(tmp_path, name, content, reader):
    """
    The file may be valid, so it is not called damaged.
    """
    with pytest.raises(HeaderLimitError, match=r"not read \(limit\)"):
        reader(write(tmp_path / name, content))


@pytest.mark.slow
def test_an_index_of_497_000_tensors_needs_little_memory(tmp_path):
    """
    Large mixtures of experts with scales have as many. Names of weights take no memory.
    """
    entries = (
        f'"model.layers.{i:030}.weight_scale":"m-{i % 163}.safetensors"' for i in range(497_000)
    )
    path = write(tmp_path / "i.json", '{"weight_map":{' + ",\n".join(entries) + "}}")
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

    assert names == 163
    assert mebibytes < 64


@pytest.mark.parametrize(
    "text",
    [
        '{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}',
        '{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}',
        '{"weight_map":{"a":"1.safetensors"},"weight_map":{"b":"2.safetensors"}}',
        '{"weight_map":{"a":1}}',
        '{"weight_map":["1.safetensors"]}',
        '{"metadata":{"total_size":NaN},"weight_map":{}}',
        '{"weight_map":{"a":"1.safetensors"}',
        "{}",
        "[]",
    ],
)
def test_a_short_index_is_read_as_a_long_one(tmp_path, text):
    """An index up to 256 KiB is decoded at once. With spaces it is long, and read in parts."""
    outcomes = []
    for content in (text, text[:1] + " " * 300 * 1024 + text[1:]):
        path = tmp_path / "i.json"
        path.write_text(content)
        try:
            outcomes.append(read_index(path))
        except BadHeaderError as error:
            outcomes.append(error.reason)

    assert outcomes[0] == outcomes[1]
