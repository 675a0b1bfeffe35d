"""Checkpoints of every format in a plain folder, and the count of all other files."""

import json
import pickle
import struct

import pytest
from layouts import fill, write

from model_catalog.cli import main
from model_catalog.stores import PassedOver
from model_catalog.stores.scanners import directory, lmstudio
from model_catalog.upkeep import adopt, register_path, scan_store
from model_catalog.upkeep.store_sync.header_claims import read_header_claims

GGUF = b"GGUF" + bytes(100)
PICKLE = pickle.dumps({"state_dict": [1, 2]}, 2)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Runs a command line in a folder of its own; returns exit code, output and messages."""
    monkeypatch.setenv("MODEL_CATALOG_URL", str(tmp_path / "c.db"))

    def run(*arguments):
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


def names(scanned):
    """Return the paths of the files of each model, by reference."""
    assert scanned.problems == ()
    return {model.reference: [file.path for file in model.files] for model in scanned.found}


@pytest.mark.parametrize(
    "name",
    ["v1-5.ckpt", "4x.pth", "vae.pt", "ae.sft", "ggml-base.bin", "yolo.onnx", "m.tflite", "m.nemo"],
)
def test_each_checkpoint_is_a_model(tmp_path, name):
    """
    Its reference is its path below the folder.
    """
    write(tmp_path / "sub" / name, PICKLE)

    assert names(directory.scan(tmp_path)) == {f"sub/{name}": [name]}


async def test_an_old_importance_matrix_has_the_kind_of_its_name(catalog, tmp_path):
    """
    A scan and `add` say `imatrix` of a file that llama-imatrix wrote before it wrote GGUF files.

    Such a file begins with the number of its entries, so its bytes tell nothing.
    """
    entry = struct.pack("<ii5sii4f", 1, 5, b"blk.0", 3, 4, 1.0, 2.0, 3.0, 4.0)
    path = write(tmp_path / "imatrix.dat", entry)

    await adopt(catalog, await scan_store(catalog, "directory", tmp_path))
    added = await register_path(catalog, path, "mine", "local")

    assert added.model.kind == "imatrix"
    assert (await catalog.get_model("imatrix.dat", "local")).kind == "imatrix"


async def test_a_checkpoint_is_unsafe_by_its_bytes(catalog, tmp_path):
    """
    Its name does not tell: a .bin file can be a pickle, and a .ckpt file need not be one.
    """
    fill(tmp_path, a__ckpt=PICKLE, b__bin=PICKLE, c__ckpt=GGUF, d__bin=b"lmgg" + bytes(100))
    write(tmp_path / "firmware.bin", b"\x7fELF" + bytes(100))

    await adopt(catalog, await scan_store(catalog, "directory", tmp_path))

    listed = {model.reference: model for model in await catalog.list_models()}
    assert {ref: model.unsafe for ref, model in listed.items()} == {
        "a.ckpt": True,
        "b.bin": True,
        "c.ckpt": False,
        "d.bin": False,
        "firmware.bin": False,
    }
    kinds = {model.kind for ref, model in listed.items() if ref != "firmware.bin"}
    assert (kinds, listed["firmware.bin"].kind) == ({"model"}, "unknown")
    assert (listed["d.bin"].format, listed["d.bin"].incomplete_reason) == ("ggml", None)
    assert listed["d.bin"].unknown_reason == "weights in the format GGML are not read"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"m.onnx": 1, "m.onnx_data": 2, "n.onnx": 3}, {"m.onnx": 2, "n.onnx": 1}),
        ({"m.onnx": 1, "m.onnx.data": 2, "n.onnx": 3}, {"m.onnx": 2, "n.onnx": 1}),
        ({"m.xml": 1, "m.bin": 2, "n.bin": 3}, {"m.xml": 2, "n.bin": 1}),
        ({"m.pdmodel": 1, "m.pdiparams": 2}, {"m.pdmodel": 2}),
        ({"m.index": 1, "m.data-00000-of-00001": 2, "m.meta": 3}, {"m.index": 2}),
        (
            {"m-00001-of-00001.safetensors": 1, "m.safetensors.index.json": 2, "n.index.json": 3},
            {"m-00001-of-00001.safetensors": 2},
        ),
    ],
    ids=["onnx", "onnx of torch", "openvino", "paddle", "tensorflow", "shards"],
)
def test_a_graph_and_its_tensors_are_one_model(tmp_path, files, expected):
    """
    The model has the name of the file that a program opens.
    """
    for name, size in files.items():
        write(tmp_path / name, bytes(size))

    assert {ref: len(paths) for ref, paths in names(directory.scan(tmp_path)).items()} == expected


def test_an_onnx_model_that_is_alone_has_all_files_of_its_folder(tmp_path):
    """
    Exporters name the files of external data after tensors. Beside another model, the names do not
    tell which of the two a file belongs to.
    """
    fill(tmp_path / "one", m__onnx=b"1", layer__0__weight=b"2", onnx__MatMul_7=b"3")
    fill(tmp_path / "two", m__onnx=b"1", n__onnx=b"1", layer__0__weight=b"2")

    scanned = directory.scan(tmp_path)

    assert names(scanned) == {
        "one/m.onnx": ["layer.0.weight", "m.onnx", "onnx.MatMul_7"],
        "two/m.onnx": ["m.onnx"],
        "two/n.onnx": ["n.onnx"],
    }
    assert scanned.passed_over.file_count == 1


def test_external_data_that_the_onnx_package_writes_belongs_to_the_model(tmp_path):
    """
    Version 1.23.2 names a file after each tensor, unless it is told one name for all of them.
    """
    onnx = pytest.importorskip("onnx")
    np = pytest.importorskip("numpy")
    tensors = [
        onnx.numpy_helper.from_array(np.zeros(2000, np.float32), f"layer.{number}::weight")
        for number in range(2)
    ]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2000])
    node = onnx.helper.make_node("Add", ["layer.0::weight", "layer.1::weight"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output], tensors))
    (tmp_path / "m").mkdir()
    onnx.save_model(
        model,
        tmp_path / "m/m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
    )

    (whole,) = directory.scan(tmp_path).found
    whole_read = read_header_claims(whole, lambda: False, ())[1]
    (tmp_path / "m" / whole.files[0].path).unlink()
    (part,) = directory.scan(tmp_path).found
    part_read = read_header_claims(part, lambda: False, ())[1]

    assert (len(whole.files), whole_read.verdict) == (3, "unknown")
    assert part_read.reasons == (f"missing: {whole.files[0].path!r}",)


@pytest.mark.parametrize(
    ("folder", "first"),
    [("m", "saved_model.pb"), ("m.mlpackage", "Data/weights/weight.bin"), ("m.mlmodelc", "a.bin")],
)
def test_a_bundle_is_one_model(tmp_path, folder, first):
    """
    Programs open the folder: a SavedModel of TensorFlow, and a package of Core ML.
    """
    write(tmp_path / folder / first, b"1")
    write(tmp_path / folder / "variables/variables.data-00000-of-00001", b"2")

    (model,) = directory.scan(tmp_path).found

    assert (model.reference, model.local_path, len(model.files)) == (
        folder,
        str(tmp_path / folder),
        2,
    )


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_3.pth",
        "training_args.bin",
        "optimizer.bin",
        "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ],
)
def test_the_state_of_a_training_is_not_a_model(tmp_path, name):
    """
    Trainers write it beside the weights. It is counted as passed over.
    """
    write(tmp_path / name, PICKLE)

    scanned = directory.scan(tmp_path)

    assert (scanned.found, scanned.passed_over.file_count) == ((), 1)


def test_files_of_no_model_are_counted_with_their_sizes(tmp_path):
    """
    Hidden files, links, leftovers and files of a model are not among them. A file with two names
    counts once. In a store of a program nothing is counted.
    """
    fill(tmp_path, a__gguf=GGUF, notes__txt=b"12345", sub___image__png=b"123", x__pt__part=b"1")
    fill(
        tmp_path, org___m___config__json=b"{}", org___m___m__safetensors=GGUF, org___m___r__md=b"1"
    )
    write(tmp_path / ".hidden", b"1")
    write(tmp_path / "empty/config.json", b"{}")
    (tmp_path / "link.txt").symlink_to("notes.txt")
    (tmp_path / "sub/other.txt").hardlink_to(tmp_path / "notes.txt")

    passed_over = directory.scan(tmp_path).passed_over

    disk_bytes = sum(
        (tmp_path / name).stat().st_blocks * 512
        for name in ("notes.txt", "sub/image.png", "empty/config.json")
    )
    assert passed_over == PassedOver(3, 10, disk_bytes)
    assert lmstudio.scan(tmp_path).passed_over == PassedOver()


def test_files_beside_the_parts_of_a_folder_are_counted(tmp_path):
    """
    A folder looks like that of a pipeline, and holds only quantizations.
    """
    fill(tmp_path, scheduler___s__part=b"1", unet___u__part=b"1", a__gguf=GGUF, b__gguf=GGUF)
    fill(tmp_path, c___notes__txt=b"12")
    (tmp_path / "c/again.txt").hardlink_to(tmp_path / "c/notes.txt")

    scanned = directory.scan(tmp_path)

    assert names(scanned) == {"a.gguf": ["a.gguf"], "b.gguf": ["b.gguf"]}
    assert (scanned.passed_over.file_count, scanned.passed_over.size_bytes) == (1, 2)
    assert len(scanned.leftovers) == 2


def test_the_command_line_says_what_was_passed_over(cli, tmp_path):
    """
    One line, however many files there are; and a member of the JSON.
    """
    fill(tmp_path / "m", a__gguf=GGUF, **{f"n{number}__txt": b"12" for number in range(30)})
    disk_bytes = 30 * (tmp_path / "m/n1.txt").stat().st_blocks * 512

    _, out, err = cli("scan", str(tmp_path / "m"))
    (store,) = json.loads(cli("scan", str(tmp_path / "m"), "--json")[1])["stores"]

    assert [line for line in err.splitlines() if "passed over" in line] == [
        f"30 files passed over, {disk_bytes / 1000:.0f} kB: not part of a model"
    ]
    assert "n1.txt" not in out
    assert store["passed_over"]["file_count"] == 30
    assert store["passed_over"]["size_bytes"] == 60


async def test_a_second_scan_of_a_plain_folder_changes_nothing(on_sqlite, tmp_path):
    """
    Whatever is in it: checkpoints, pairs of files, pointers, projectors, unfinished downloads.
    """
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 5\n"
    fill(tmp_path, a__ckpt=PICKLE, b__bin=b"1", m__xml=b"1", m__bin=b"2", p__gguf=pointer)
    fill(tmp_path, one___m__onnx=b"1", one___weights=b"2", vl___mmproj__gguf=GGUF)
    fill(tmp_path, vl___Q4___m__gguf=GGUF, c___config__json=b"{}", c___m__safetensors__part=b"")
    fill(tmp_path, llamacpp___models___n___model__gguf=GGUF, models___loras___l__safetensors=GGUF)
    first = await adopt(on_sqlite, await scan_store(on_sqlite, "directory", tmp_path))

    second = await adopt(on_sqlite, await scan_store(on_sqlite, "directory", tmp_path))

    assert len(first.new) == len(second.unchanged) == 9
    assert (second.new, second.changed, second.gone, second.problems) == ((), (), (), ())


def test_the_progress_of_a_scan_never_falls(tmp_path):
    """
    Models are found folder by folder, and named when all are known.
    """
    fill(tmp_path, llamacpp___models___n___model__gguf=GGUF, a__ckpt=b"1", b___c__ckpt=b"1")
    counts = []

    directory.scan(tmp_path, progress=counts.append)

    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 3)
