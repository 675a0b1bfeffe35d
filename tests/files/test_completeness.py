"""The judge of completeness: which evidence gives which verdict, in which words."""

from dataclasses import dataclass

import pytest

from model_catalog.files.completeness.evidence import (
    Completeness,
    ReadEvidence,
    ReadFailure,
    StoreEvidence,
)
from model_catalog.files.completeness.judge import format_of_files, judge
from model_catalog.files.completeness.needed_files import needed_files
from model_catalog.files.file_names import file_role
from model_catalog.files.formats.header import Header
from model_catalog.files.model_config import WeightIndex

WHOLE = Header(format="safetensors", is_complete=True)


@dataclass(frozen=True)
class File:
    path: str
    size_bytes: int = 10

    @property
    def role(self):
        return file_role(self.path)


def files(*paths):
    return [File(path) for path in paths]


def shards(numbers, count, *, stem="model", suffix=".safetensors"):
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in numbers]


def read_all(paths, **more):
    headers = {path: WHOLE for path in paths if file_role(path) == "weights"}
    return ReadEvidence(headers=headers, **more)


@pytest.mark.parametrize(
    ("paths", "missing"),
    [
        (shards([0, 1, 2], 3), []),
        (shards([1, 2, 3], 3), []),
        (shards([0, 1, 2, 3], 3), []),
        (shards([0, 2], 3), ["model-00001-of-00003.safetensors"]),
        (shards([1, 2], 3), ["model-00003-of-00003.safetensors"]),
        (shards([0, 1, 3], 3), ["model-00002-of-00003.safetensors"]),
        (shards([1], 2, suffix=".fp16.safetensors"), ["model-00002-of-00002.fp16.safetensors"]),
        (shards([1], 2, stem="m.fp16"), ["m.fp16-00002-of-00002.safetensors"]),
        (shards([1], 2, suffix=".GGUF"), ["model-00002-of-00002.GGUF"]),
        (
            [*shards([1, 2], 2), *shards([1], 2, suffix=".fp16.safetensors")],
            ["model-00002-of-00002.fp16.safetensors"],
        ),
    ],
    ids=[
        "from 0",
        "from 1",
        "from 0 to N",
        "hole from 0",
        "last",
        "hole to N",
        "variant",
        "variant in the stem",
        "upper case",
        "two variants",
    ],
)
def test_the_names_of_shards_tell_which_are_missing(paths, missing):
    """
    transformers, diffusers and llama.cpp count from 1, and other programs from 0.
    """
    reasons = judge(files(*paths)).reasons

    assert reasons == tuple(f"missing: {name!r}" for name in missing)


@pytest.mark.parametrize(
    ("index", "paths"),
    [
        ("model.safetensors.index.json", shards([1], 2)),
        ("model.safetensors.index.fp16.json", shards([1], 2, suffix=".fp16.safetensors")),
        ("model.safetensors.index.fp16.json", shards([1], 2, stem="model.fp16")),
        ("pytorch_model.bin.index.json", shards([1], 2, stem="pytorch_model", suffix=".bin")),
    ],
    ids=["plain", "variant in the suffix", "variant in the stem", "bin"],
)
def test_the_index_decides_over_the_numbers_of_its_shards(index, paths):
    """
    Loaders follow the index. Without reading it, the numbers in the names count.
    """
    found = files(index, *paths)
    lists_one = read_all(paths, indexes={index: WeightIndex((*paths,), ())})
    lists_two = read_all(paths, indexes={index: WeightIndex((*paths, "b"), ())})

    assert len(judge(found).reasons) == 1
    assert judge(found, read=lists_one).reasons == ()
    assert judge(found, read=lists_two).reasons == ("missing: 'b'",)


def test_an_index_of_weights_that_were_not_asked_for_is_ignored():
    """
    `--include "*.gguf" "*.json"` downloads the index of the safetensors files too.
    """
    index = {"model.safetensors.index.json": WeightIndex(("a.safetensors",), ())}

    with_others = judge(files("m.gguf", *index), read=read_all(["m.gguf"], indexes=index))
    alone = judge(files(*index), read=read_all([], indexes=index))

    assert with_others.reasons == ()
    assert alone.reasons == ("no weights were found", "missing: 'a.safetensors'")


HERE = ("config.json", "tokenizer.json", "model.safetensors")


@pytest.mark.parametrize(
    ("here", "elsewhere", "needed"),
    [
        (HERE, ["README.md", ".gitattributes", "LICENSE", "a.png"], []),
        (HERE, ["pytorch_model.bin", "flax_model.msgpack", "onnx/m.onnx", "tf_model.h5"], []),
        (HERE, ["m-Q4_K_M.gguf", "original/consolidated.00.pth", "model.fp16.safetensors"], []),
        (
            HERE[2:],
            ["config.json", "tokenizer.json", "vocab.txt"],
            ["config.json", "tokenizer.json"],
        ),
        (HERE[2:], ["tokenizer.json"], []),
        (HERE[::2], ["vocab.json", "merges.txt"], ["vocab.json"]),
        (HERE, ["vocab.json", "tokenizer.model", "generation_config.json"], []),
        (["a-Q4.gguf"], ["a-Q8.gguf", "config.json", "tokenizer.json"], []),
        (shards([1], 2), shards([2], 2), shards([2], 2)),
        (
            ["model_index.json", "vae/config.json", "unet/config.json", "unet/m.safetensors"],
            ["vae/d.bin", "vae/d.safetensors", "vae/d.fp16.safetensors", "safety_checker/m.bin"],
            ["vae/d.safetensors"],
        ),
        (
            ["model_index.json", "unet/config.json", "unet/m.safetensors"],
            ["tokenizer/vocab.json", "tokenizer/merges.txt", "sd.safetensors"],
            ["tokenizer/vocab.json"],
        ),
        (
            [*HERE, "modules.json"],
            ["1_Pooling/config.json", "onnx/model.onnx", "onnx/config.json"],
            ["1_Pooling/config.json"],
        ),
    ],
    ids=[
        "papers",
        "formats",
        "quantizations",
        "config",
        "single file",
        "vocabulary",
        "second vocabulary",
        "gguf",
        "shard",
        "diffusers weights",
        "diffusers tokenizer",
        "sentence-transformers",
    ],
)
def test_only_files_that_loading_needs_make_a_model_incomplete(here, elsewhere, needed):
    """
    The list of a repository says what exists, not what was asked for.
    """
    assert needed_files(set(here), [*here, *elsewhere]) == needed


def test_a_repository_without_weights_is_whole_without_weights():
    """
    The repository of a tokenizer lists none. Without a list, weights are expected.
    """
    listed = StoreEvidence(listed={"tokenizer.json": 10, "README.md": 1})

    assert judge(files("tokenizer.json"), listed).reasons == ()
    assert judge(files("tokenizer.json")).reasons == ("no weights were found",)


@pytest.mark.parametrize(
    ("name", "existing", "counts"),
    [
        ("m.gguf.part", ["m.gguf"], False),
        ("m-00002-of-00002.gguf.part", ["m-00001-of-00002.gguf"], True),
        ("n.gguf.part", ["m.gguf"], False),
        ("m.gguf.aria2", ["m.gguf"], True),
        ("m.gguf.aria2", ["n.gguf"], False),
        ("README.md.incomplete", ["m.safetensors"], False),
        ("tokenizer.json.0a1b2c3d.incomplete", ["m.safetensors"], True),
        ("onnx/m.onnx.incomplete", ["m.safetensors"], False),
        ("m.safetensors.incomplete", ["onnx/m.onnx"], True),
        ("f" * 64, ["m.safetensors"], True),
    ],
    ids=[
        "finished",
        "shard",
        "another model",
        "control file",
        "control file of another",
        "not needed",
        "needed",
        "alternative",
        "preferred",
        "blob",
    ],
)
def test_an_unfinished_download_counts_if_its_file_is_needed_and_missing(name, existing, counts):
    """
    A killed download leaves its partial file, and the next try does not remove it. aria2 writes to
    the final name, and removes its control file at the end.
    """
    reasons = judge(files(*existing), StoreEvidence(unfinished=[name])).listing

    assert (f"unfinished downloads: {name!r}" in reasons) == counts


def test_the_sizes_of_a_list_are_compared_for_files_that_loading_needs():
    """
    A manifest requires all of its files.
    """
    found = files("m.gguf", "README.md", "sha256-1")
    store = StoreEvidence(
        listed={"m.gguf": 11, "README.md": 11}, required={"sha256-1": 11, "sha256-2": 5}
    )

    assert judge(found, store).reasons == (
        "missing: 'sha256-2'",
        "'m.gguf' has 10 bytes: 11 are needed",
        "'sha256-1' has 10 bytes: 11 are needed",
    )


@pytest.mark.parametrize(
    ("paths", "unknown"),
    [
        (["onnx/model.onnx", "config.json"], "weights in the format ONNX are not read"),
        (["m.nemo"], "weights in the format NeMo are not read"),
        (
            ["tf_model.h5", "flax_model.msgpack"],
            "weights in the format Flax (msgpack) and TensorFlow or Keras are not read",
        ),
        (["model.onnx", "model.safetensors"], None),
        (["model.bin"], None),
    ],
    ids=["onnx", "nemo", "two formats", "with a read format", "bin"],
)
def test_a_format_that_is_not_read_makes_the_verdict_unknown(paths, unknown):
    """
    It is named, and weights were found. A format that is read decides alone.
    """
    verdict = judge(files(*paths))

    assert verdict.reasons == ()
    assert verdict.unknown == (() if unknown is None else (unknown,))
    assert verdict.verdict == ("whole" if unknown is None else "unknown")


def test_a_limit_makes_the_verdict_unknown_and_damage_makes_it_incomplete():
    """
    A file that exceeds a limit of this package may be valid.
    """
    found = files("m.safetensors")
    limit = ReadEvidence(headers={"m.safetensors": ReadFailure("too large", is_damage=False)})
    damage = ReadEvidence(headers={"m.safetensors": ReadFailure("it overlaps")})

    assert judge(found, read=limit).unknown == ("'m.safetensors' was not judged: too large",)
    assert judge(found, read=limit).verdict == "unknown"
    assert judge(found, read=damage).reasons == ("'m.safetensors' cannot be read: it overlaps",)


def test_a_look_at_names_keeps_what_was_read_before():
    """
    The numbers of shards that an index lists are part of what the content decides.
    """
    names = Completeness(listing=("missing: 'a'",), counted=("missing: 'b'",))
    content = Completeness(listing=("old",), content=("truncated",), unknown=("limit",))

    kept = names.with_content_of(content)

    assert kept.reasons == ("missing: 'a'", "truncated")
    assert kept.unknown == ("limit",)
    assert content.with_content_of(names) is content
    assert names.with_content_of(names) is names


@pytest.mark.parametrize(
    ("paths", "format_"),
    [
        (["a.gguf", "b.safetensors"], "safetensors"),
        (["m.SFT"], "safetensors"),
        (["model.bin"], None),
        (["ggml-base.en.bin"], None),
        (["pytorch_model-00001-of-00002.bin"], "pickle"),
        (["m.ckpt"], "pickle"),
        (["openvino_model.bin", "openvino_model.xml"], "openvino"),
        (["m.onnx"], "onnx"),
        (["config.json"], None),
    ],
)
def test_the_format_comes_from_names_only_where_they_tell(paths, format_):
    """
    Several programs write .bin files, which are pickles only by PyTorch's own names.
    """
    assert format_of_files(files(*paths)) == format_
