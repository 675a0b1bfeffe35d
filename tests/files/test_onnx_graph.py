"""The external data that an ONNX model names, in models that the package onnx 1.23.2 has saved."""

import pytest
from builders import write

from model_catalog import BadHeaderError
from model_catalog.files.formats import onnx_graph
from model_catalog.files.model_config import read_onnx_index
from model_catalog.files.model_description import describe_model

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx")


def onnx_model(path, *, external):
    """Save a model with two tensors by the package onnx, whose data can be in a second file."""
    tensors = [
        onnx.numpy_helper.from_array(np.arange(1000, dtype=np.float32), name) for name in ("a", "b")
    ]
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1000])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1000])
    nodes = [
        onnx.helper.make_node("Add", ["x", "a"], ["t"]),
        onnx.helper.make_node("Add", ["t", "b"], ["y"]),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [info], [out], tensors))
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


def test_the_path_of_an_onnx_model_stands_for_its_external_data_too(tmp_path):
    """
    The verdict and the size are those of its folder, also if the data is short or missing.
    """
    path = onnx_model(tmp_path / "model.onnx", external=True)
    data = path.with_name("model.onnx_data")
    content = data.read_bytes()

    for change in (lambda: None, lambda: data.write_bytes(content[:-1]), data.unlink):
        change()
        by_file, by_folder = describe_model(path), describe_model(tmp_path)
        assert by_file.completeness == by_folder.completeness
        assert by_file.size_bytes == by_folder.size_bytes
    assert by_file.reasons == ("missing: 'model.onnx_data'",)


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
