"""Formats that are named and not read, and what stands in place of weights."""

import io
import struct

import numpy as np
import onnx
import pytest
from builders import fill, safetensors, write
from onnx import TensorProto, helper, numpy_helper

from model_catalog import BadHeaderError, PlaceholderError, UnknownFormatError
from model_catalog.files.formats import onnx_graph
from model_catalog.files.formats.header_reader import read_header
from model_catalog.files.model_config import read_onnx_index
from model_catalog.files.model_description import describe_model

DIGEST = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{DIGEST}\nsize 12345\n"
CTRANSLATE2 = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + bytes(100)
GGML = struct.pack("<II", 0x67676D6C, 51864) + bytes(100)


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "format_"),
    [
        ("model.bin", CTRANSLATE2, "ctranslate2"),
        ("ggml-base.en.bin", GGML, "ggml"),
        ("weights.npz", npz(), "npz"),
        ("model.keras", b"PK\x05\x06" + bytes(18), "tensorflow"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n" + bytes(50), "tensorflow"),
        ("flax_model.msgpack", b"\x81\xa1wx", "flax"),
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(20), "tflite"),
        ("m.pte", b"\x1c\0\0\0ET12" + bytes(20), "executorch"),
        ("m.nemo", b"./model_config.yaml" + bytes(500), "nemo"),
        ("m.llamafile", b"MZqFpD='\n" + bytes(500), "llamafile"),
        ("whatever.bin", b"\x01\x02\x03", None),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_format_is_named_and_its_verdict_is_unknown(tmp_path, name, content, format_):
    """
    The bytes decide where they tell, and else the name. Nothing is called a pickle.
    """
    path = write(tmp_path / "model" / name, content)
    write(tmp_path / "model/config.json", b'{"model_type": "whisper"}')

    with pytest.raises(UnknownFormatError) as caught:
        read_header(path)
    found = describe_model(tmp_path / "model")

    assert caught.value.format == format_
    assert (found.reasons, found.completeness.verdict) == ((), "unknown")
    assert (found.header and found.header.format) == format_
    assert format_ is None or (found.header.architecture, found.header.unsafe) == ("whisper", False)


def test_the_weights_of_openvino_are_told_by_their_neighbour(tmp_path):
    """
    They are a .bin file without magic bytes, beside an .xml file of the same name.
    """
    fill(tmp_path, openvino_model__bin=bytes(50), openvino_model__xml=b"<net/>")

    found = describe_model(tmp_path)

    assert found.header.format == "openvino"
    assert found.completeness.unknown == ("weights in the format OpenVINO are not read",)


@pytest.mark.parametrize("name", ["m.safetensors", "pytorch_model.bin", "m.gguf", "m.onnx"])
def test_a_pointer_of_git_lfs_is_not_the_file(tmp_path, name):
    """
    The size and the digest that it names are those of the file to fetch.
    """
    path = write(tmp_path / name, POINTER)

    with pytest.raises(PlaceholderError) as caught:
        read_header(path)
    (reason,) = describe_model(tmp_path).reasons

    assert (caught.value.size_bytes, caught.value.digest) == (12345, f"sha256:{DIGEST}")
    assert reason.startswith(f"{name!r} cannot be read: it is a Git LFS pointer")
    assert "12345 bytes" in reason
    assert DIGEST in reason


@pytest.mark.parametrize("name", ["m.safetensors", "pytorch_model.bin", "m.gguf", "m.onnx"])
def test_a_web_page_is_not_the_file(tmp_path, name):
    """
    A server that wants a login answers with a page, and a downloader saves it.
    """
    write(tmp_path / name, b"\xef\xbb\xbf\n <!DOCTYPE html><html>" + bytes(5000))

    (reason,) = describe_model(tmp_path).reasons

    assert reason == f"{name!r} cannot be read: it is a web page, not the file: download it again"


def test_a_pointer_in_place_of_a_tokenizer_is_noticed(tmp_path):
    """
    Large tokenizers are in LFS, as weights are.
    """
    fill(tmp_path, m__safetensors=safetensors(), tokenizer__json=POINTER)

    (reason,) = describe_model(tmp_path).reasons

    assert reason.startswith("'tokenizer.json' cannot be read: it is a Git LFS pointer")


def onnx_model(path, *, external):
    """Save a model with two tensors by the package onnx, whose data can be in a second file."""
    tensors = [
        numpy_helper.from_array(np.arange(1000, dtype=np.float32), name) for name in ("a", "b")
    ]
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1000])
    nodes = [helper.make_node("Add", ["x", "a"], ["t"]), helper.make_node("Add", ["t", "b"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [info], [out], tensors))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model, path, save_as_external_data=external, location="model.onnx_data", size_threshold=0
    )
    return path


def test_the_external_data_of_an_onnx_model_is_needed(tmp_path):
    """
    The graph names the file. The verdict is unknown if it is there, and incomplete if it is not.
    """
    path = onnx_model(tmp_path / "onnx/model.onnx", external=True)
    data = path.with_name("model.onnx_data")

    whole = describe_model(tmp_path).completeness
    index = read_onnx_index(path)
    data.write_bytes(data.read_bytes()[:-1])
    short = describe_model(tmp_path).reasons
    data.unlink()
    missing = describe_model(tmp_path).reasons

    assert (whole.verdict, whole.unknown) == (
        "unknown",
        ("weights in the format ONNX are not read",),
    )
    assert (index.file_names, index.invalid_names) == (("model.onnx_data",), ())
    assert short == (
        (
            f"'onnx/model.onnx_data' has {index.needed_bytes['model.onnx_data'] - 1} bytes: "
            f"{index.needed_bytes['model.onnx_data']} are needed"
        ),
    )
    assert missing == ("missing: 'onnx/model.onnx_data'",)


def test_an_onnx_model_without_external_data_names_none(tmp_path):
    """
    A truncated graph is damage.
    """
    path = onnx_model(tmp_path / "model.onnx", external=False)

    assert read_onnx_index(path).file_names == ()
    path.write_bytes(path.read_bytes()[:-50])
    assert describe_model(tmp_path).reasons == (
        "'model.onnx' cannot be read: the file ends within its graph",
    )


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a//b", "\n", "", "x" * 300])
def test_external_data_cannot_lead_out_of_the_folder(tmp_path, location):
    """
    The name is untrusted, and no file of that name is accessed.
    """
    path = onnx_model(tmp_path / "m/model.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())

    index = read_onnx_index(path)

    assert (index.file_names, index.invalid_names) == ((), (location,))
    assert "is not a file name" in describe_model(tmp_path / "m").reasons[0]


def test_bytes_that_are_no_onnx_model_name_no_files(tmp_path):
    """
    Any bytes can have such a name. They are not damage, because the format is not read.
    """
    whole = onnx_model(tmp_path / "model.onnx", external=True).read_bytes()
    generator = np.random.default_rng(1)
    for content in (b"", bytes(100), b"\xff" * 100, b"\x3a\x05\x2a\x03\x6a\x01\x0a"):
        path = write(tmp_path / "other.onnx", content)
        assert read_onnx_index(path).file_names == ()
    for _ in range(300):
        mutated = bytearray(whole)
        for at in generator.integers(0, len(whole), 4):
            mutated[at] = generator.integers(0, 256)
        path = write(tmp_path / "other.onnx", bytes(mutated))
        try:
            read_onnx_index(path)
        except BadHeaderError:
            continue


def test_the_number_of_fields_of_an_onnx_model_is_limited(tmp_path, monkeypatch):
    """
    Beyond the limit the verdict is unknown.
    """
    monkeypatch.setattr(onnx_graph, "MAX_FIELDS", 10)
    onnx_model(tmp_path / "model.onnx", external=True)

    found = describe_model(tmp_path).completeness

    assert found.reasons == ()
    assert "it has more than 10 fields" in found.unknown[0]
