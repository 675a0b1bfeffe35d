"""Formats that are named and not read, and what stands in place of weights."""

import struct

import pytest
from builders import fill, safetensors, write

from model_catalog import PlaceholderError, UnknownFormatError
from model_catalog.files.formats.header_reader import read_header
from model_catalog.files.model_description import describe_model

DIGEST = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{DIGEST}\nsize 12345\n"
CTRANSLATE2 = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + bytes(100)
GGML = struct.pack("<II", 0x67676D6C, 51864) + bytes(100)


@pytest.mark.parametrize(
    ("name", "content", "format_"),
    [
        ("model.bin", CTRANSLATE2, "ctranslate2"),
        ("ggml-base.en.bin", GGML, "ggml"),
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


def test_an_npz_file_of_numpy_is_named(tmp_path):
    """
    It is a zip file, as PyTorch writes it, but it has no pickle.
    """
    np = pytest.importorskip("numpy")
    np.savez(tmp_path / "weights.npz", w=np.zeros(3))

    with pytest.raises(UnknownFormatError) as caught:
        read_header(tmp_path / "weights.npz")

    assert caught.value.format == "npz"
    assert describe_model(tmp_path).completeness.verdict == "unknown"
