"""The kind of a model, by the header of its weights and by the names of its files."""

from pathlib import Path

import pytest

from model_catalog.files import describe_model
from model_catalog.files.model_kind import KINDS, kind_of_files, kind_of_model

gguf = pytest.importorskip("gguf")


def write_gguf(path: Path, architecture: str, type_: str | None = None) -> Path:
    """Write a file with the gguf package (0.19.0)."""
    writer = gguf.GGUFWriter(path, architecture)
    if type_ is not None:
        writer.add_type(type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "architecture", "type_", "kind"),
    [
        ("m.gguf", "qwen3", None, "model"),
        ("m.gguf", "qwen3", gguf.GGUFType.MODEL, "model"),
        ("m.gguf", "qwen3", gguf.GGUFType.ADAPTER, "adapter"),
        ("m.gguf", "clip", gguf.GGUFType.MMPROJ, "projector"),
        ("m.gguf", "clip", None, "projector"),
        ("m.gguf", "qwen3", gguf.GGUFType.IMATRIX, "imatrix"),
        ("m.gguf", "eagle3", None, "draft"),
        ("m.gguf", "qwen3", "a newer type", "model"),
        ("mtp-m.gguf", "qwen3", gguf.GGUFType.MODEL, "draft"),
        ("imatrix.gguf", "qwen3", gguf.GGUFType.MODEL, "model"),
        ("m-LoRA-F16.gguf", "qwen3", None, "adapter"),
    ],
)
def test_a_gguf_file_states_its_kind(tmp_path, name, architecture, type_, kind):
    """`general.type` decides, and the architecture or the name if it is absent."""
    described = describe_model(write_gguf(tmp_path / name, architecture, type_))

    roles = {file.role for file in described.files.files}

    assert kind_of_model(roles, described.header) == kind


@pytest.mark.parametrize(
    ("roles", "kind"),
    [
        ({"weights", "projector", "draft", "config"}, "model"),
        ({"adapter", "config", "tokenizer"}, "adapter"),
        ({"tokenizer", "config"}, "tokenizer"),
        ({"config"}, "unknown"),
        (set(), "unknown"),
    ],
)
def test_the_roles_of_files_tell_a_kind(roles, kind):
    """Weights make a model, whatever else is beside them."""
    assert kind_of_files(roles) == kind


def test_the_kinds_are_a_closed_list():
    """A host may compare with these words."""
    assert KINDS == ("model", "adapter", "projector", "imatrix", "draft", "tokenizer", "unknown")
