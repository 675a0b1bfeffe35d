"""The scan of the store of Ollama: manifests by name and blobs by digest."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from layouts import DETAILS, Ollama, listing, sha256, write

from model_catalog.stores.manifests import parse_parameter_count
from model_catalog.stores.scan_result import Claims
from model_catalog.stores.scanners.ollama import scan
from model_catalog.upkeep import adopt

sys.path.append(str(Path(__file__).parents[1] / "files"))

from builders import safetensors

GGUF = b"GGUF" + bytes(100)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "models/manifests").mkdir(parents=True)
    return Ollama(tmp_path / "models")


def only(scanned):
    assert scanned.problems == ()
    (model,) = scanned.found
    return model


@pytest.mark.parametrize(
    ("manifest", "reference"),
    [
        ("llama3:8b", "llama3"),
        ("bob/llama3:8b", "bob/llama3"),
        ("hf.co/unsloth/Qwen-GGUF:8b", "hf.co/unsloth/Qwen-GGUF"),
        ("localhost/library/llama3:8b", "localhost/library/llama3"),
    ],
)
def test_a_model_has_the_name_that_ollama_shows(store, manifest, reference):
    """
    The default registry and namespace are left out. The tag is the version.
    """
    store.model(manifest, GGUF)

    model = only(scan(store.root))

    assert (model.store, model.provider) == ("ollama", "ollama")
    assert (model.reference, model.version, model.aliases) == (reference, "8b", ())


def test_a_host_can_have_a_port(store):
    """
    The colon in the folder name does not start a tag.
    """
    path = store.model("x", GGUF)
    port = store.root / "manifests/localhost:5000/library/x/latest"
    port.parent.mkdir(parents=True)
    path.rename(port)

    assert only(scan(store.root)).reference == "localhost:5000/library/x"


def test_the_layers_are_files_with_roles_and_digests(store):
    """
    The path of the model is that of its weights. Its size includes all blobs.
    """
    more = [store.layer("projector", b"GGUFp"), store.layer("adapter", b"GGUFa")]
    manifest = store.model("llava", GGUF, more=more)
    blobs = store.root / "blobs"
    os.utime(manifest, (0, 1_700_000_000))

    model = only(scan(store.root))

    roles = {"weights", "projector", "adapter", "template", "license", "config"}
    assert {file.role for file in model.files} == roles
    assert [file.path for file in model.files] == sorted(blob.name for blob in blobs.iterdir())
    assert all(file.path == file.digest.replace(":", "-") for file in model.files)
    assert (model.local_path, model.folder) == (
        str(blobs / f"sha256-{sha256(GGUF)}"),
        str(blobs),
    )
    assert model.size_bytes == sum(blob.stat().st_size for blob in blobs.iterdir())
    assert model.downloaded_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert model.is_complete


def test_the_claims_come_from_the_config(store):
    """
    They are as exact as Ollama writes them. No header is read.
    """
    store.model("llama3", GGUF, details={**DETAILS, "context_length": 8192})

    assert only(scan(store.root)).claims == Claims(
        format="gguf",
        architecture="llama",
        quantization="Q4_K_M",
        context_length=8192,
        parameter_count=8_000_000_000,
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8.0B", 8_000_000_000),
        ("137M", 137_000_000),
        ("1.24B", 1_240_000_000),
        ("671.5B", 671_500_000_000),
        ("1T", 10**12),
        ("22.7K", 22_700),
        ("999999T", None),
        ("0B", None),
        ("8", None),
        ("8 B", 8_000_000_000),
        ("1.5b", 1_500_000_000),
        ("8\u212a", None),
        ("-8B", None),
        ("\u0668B", None),
        ("9" * 5000 + "B", None),
        (8, None),
        (None, None),
    ],
)
def test_a_parameter_count_is_parsed(text, count):
    """
    Any other text gives None.
    """
    assert parse_parameter_count(text) == count


@pytest.mark.parametrize(
    "details",
    [
        {"model_format": "\x1b[2J", "model_family": ["llama"], "file_type": "unknown"},
        {"model_format": "", "model_family": "x" * 200, "context_length": -1},
        {"context_length": True, "model_type": "many"},
        {},
    ],
)
def test_invalid_values_in_a_config_are_ignored(store, details):
    """
    A value that cannot be right is not reported.
    """
    store.model("m", GGUF, details=details)

    assert only(scan(store.root)).claims == Claims()


def test_tags_can_share_blobs(store):
    """
    Each tag is a version with its own list of files.
    """
    for tag in ("m:b", "m:a", "copy:latest"):
        store.model(tag, GGUF)

    scanned = scan(store.root)

    keys = [(model.reference, model.version) for model in scanned.found]
    assert keys == [("copy", "latest"), ("m", "a"), ("m", "b")]
    assert len({model.local_path for model in scanned.found}) == 1
    assert len({model.files for model in scanned.found}) == 1
    assert scan(store.root) == scanned


def test_blob_names_of_older_releases_contain_a_colon(store):
    """
    The digest has the usual form, and the path has the name on disk.
    """
    Ollama(store.root, separator=":").model("m", GGUF)

    model = only(scan(store.root))

    assert model.is_complete
    assert model.local_path == str(store.root / f"blobs/sha256:{sha256(GGUF)}")
    assert {file.digest for file in model.files} == {file.path for file in model.files}


def test_a_digest_can_be_upper_case(store):
    """
    Ollama accepts it, and the blob has the same name.
    """
    path = store.model("m", GGUF)
    digest = sha256(GGUF)
    path.write_text(path.read_text().replace(digest, digest.upper()))
    (store.root / f"blobs/sha256-{digest}").rename(store.root / f"blobs/sha256-{digest.upper()}")

    model = only(scan(store.root))

    assert model.is_complete
    assert f"sha256:{digest}" in {file.digest for file in model.files}


def test_weights_can_be_hundreds_of_tensors(store):
    """
    In a safetensors model each tensor is a layer, and each JSON file is another.
    """
    layers = [store.layer("tensor", f"t{n}".encode(), name=f"blk.{n}") for n in range(300)]
    json_layers = [
        store.layer("json", b"{}", name="config.json"),
        store.layer("json", b"[]", name="tokenizer.json"),
    ]
    config = store.config({"model_format": "safetensors"})
    store.manifest("m", [*json_layers, *layers], config)

    model = only(scan(store.root))

    by_role = [file.role for file in model.files]
    assert (by_role.count("weights"), by_role.count("tokenizer")) == (300, 1)
    assert model.local_path == str(store.root / f"blobs/sha256-{sha256(b't0')}")
    assert model.is_complete


@pytest.mark.parametrize(
    "details",
    [
        {"remote_host": "https://ollama.com:443", "remote_model": "gpt"},
        {"remote_model": "gpt"},
    ],
)
@pytest.mark.parametrize("kind", ["license", "none", "null"])
def test_a_cloud_model_is_named_and_left_out(store, details, kind):
    """
    It has a manifest and no weights on this machine. Ollama writes null for no layers.
    """
    layers = {"license": [store.layer("license", b"MIT")], "none": [], "null": None}[kind]
    store.manifest("gpt:cloud", layers, store.config(details))

    scanned = scan(store.root)

    assert (scanned.found, scanned.problems) == ((), ())
    assert scanned.remote_models == ("gpt:cloud",)


def test_a_draft_belongs_to_its_model(store):
    """
    The model is not a draft, and its path is that of its own weights.
    """
    draft = store.layer("draft", b"GGUFdraft")
    store.manifest("m", [draft, store.layer("model", GGUF)], store.config(DETAILS))

    model = only(scan(store.root))

    assert {file.role for file in model.files} == {"weights", "draft", "config"}
    assert (model.kind, model.is_complete) == ("model", True)
    assert model.local_path.endswith(sha256(GGUF))


def test_the_tensors_of_a_draft_have_a_prefix(store):
    """
    The config names it. Without it, all tensors are weights of the model.
    """
    layers = [
        store.layer("tensor", b"t1", name="draft.blk.0"),
        store.layer("tensor", b"t2", name="blk.0"),
    ]
    details = {"model_format": "safetensors", "draft": {"tensor_prefix": "draft."}}
    store.manifest("a", layers, store.config(details))
    store.manifest("b", layers, store.config({"model_format": "safetensors", "draft": 7}))

    with_draft, without = scan(store.root).found

    assert sorted(file.role for file in with_draft.files) == ["config", "draft", "weights"]
    assert with_draft.local_path.endswith(sha256(b"t2"))
    assert sorted(file.role for file in without.files) == ["config", "weights", "weights"]


async def test_the_parameters_of_tensor_layers_are_added_up(store, catalog):
    """
    Each layer is a safetensors file with a tensor of its own.
    """
    blobs = [safetensors([(f"t{n}", "F16", (4, 8))], {"n": str(n)}) for n in range(3)]
    layers = [store.layer("tensor", blob, name=f"t{n}") for n, blob in enumerate(blobs)]
    store.manifest("m", layers, store.config({"model_format": "safetensors"}))

    await adopt(catalog, scan(store.root))

    model = await catalog.get_model("m", "ollama", "latest")
    assert (model.parameter_count, model.quantization) == (3 * 32, "F16")
    assert model.incomplete_reason is None


def test_blobs_of_a_manifest_that_cannot_be_read_are_no_orphans(store):
    """
    They may belong to it. An unfinished download is a leftover in any case.
    """
    manifest = store.model("m", GGUF)
    manifest.write_text("{")
    partial = write(store.root / f"blobs/sha256-{'a' * 64}.tmp", b"half")

    scanned = scan(store.root)

    assert len(scanned.problems) == 1
    assert [(each.path, each.kind) for each in scanned.leftovers] == [(str(partial), "partial")]


def test_a_model_without_weights_is_a_problem(store):
    """
    Only cloud models may lack weights.
    """
    path = store.manifest("m:8b", [store.layer("template", b"x")], store.config(DETAILS))

    (problem,) = scan(store.root).problems

    assert (problem.path, problem.reason) == (str(path), "it lists no weights")
    assert (problem.reference, problem.version) == ("m", "8b")


def test_a_missing_blob_is_a_reason(store):
    """
    The model is found, with the path that its weights would have.
    """
    store.model("m", GGUF)
    blob = store.root / f"blobs/sha256-{sha256(GGUF)}"
    blob.unlink()

    model = only(scan(store.root))

    assert model.reasons == (f"missing: {blob.name!r}",)
    assert model.local_path == str(blob)


@pytest.mark.parametrize("name", ["-partial", "-partial-0", ".tmp"])
def test_an_unfinished_download_is_a_reason(store, name):
    """
    Ollama writes a partial download next to the blob.
    """
    store.model("m", GGUF)
    blob = store.root / f"blobs/sha256-{sha256(GGUF)}"
    blob.rename(f"{blob}{name}")

    assert only(scan(store.root)).reasons == (
        f"missing: {blob.name!r}",
        f"unfinished downloads: {blob.name!r}",
    )


def test_a_truncated_blob_is_a_reason(store):
    """
    The manifest contains its expected size.
    """
    store.model("m", GGUF)
    blob = store.root / f"blobs/sha256-{sha256(GGUF)}"
    os.truncate(blob, 10)

    assert only(scan(store.root)).reasons == (f"{blob.name!r} has 10 bytes: 104 are needed",)


def test_an_unreadable_config_is_a_reason(store):
    """
    The model is still found by its weights.
    """
    config = store.layer("x", b"{")
    store.manifest("m", [store.layer("model", GGUF)], config)

    model = only(scan(store.root))

    (reason,) = model.reasons
    assert reason == f"'sha256-{sha256(b'{')}': the JSON is truncated"
    assert model.claims == Claims()


def test_a_truncated_manifest_is_a_problem(store):
    """
    The other models are found. Its model may still exist.
    """
    half = store.model("half:8b", GGUF)
    store.model("m", GGUF)
    half.write_bytes(half.read_bytes()[:100])

    scanned = scan(store.root)

    assert [model.reference for model in scanned.found] == ["m"]
    (problem,) = scanned.problems
    assert problem.path == str(half)
    blob = str(store.root / f"blobs/sha256-{sha256(GGUF)}")
    assert scanned.may_hide("half", "8b", blob)
    assert not scanned.may_hide("half", "4b", blob)
    assert not scanned.may_hide("gone", "8b", blob)


def test_without_the_blobs_folder_all_blobs_are_missing(store):
    """
    A user may have deleted the folder to free space.
    """
    store.model("m", GGUF)
    (store.root / "blobs").rename(store.root / "elsewhere")

    (reason,) = only(scan(store.root)).reasons

    assert reason.startswith("missing: ")


def test_hidden_files_are_ignored(store):
    """
    File managers and editors create them.
    """
    path = store.model("m", GGUF)
    write(path.parent / ".DS_Store", b"\0\0\0\1Bud1")
    write(path.parent / ".latest.swp", b"")
    write(store.root / "manifests/.DS_Store", b"")

    assert only(scan(store.root)).reference == "m"


def test_a_folder_without_manifests_is_an_empty_store(tmp_path):
    """
    Ollama creates its folders on first use.
    """
    scanned = scan(tmp_path)

    assert (scanned.found, scanned.problems) == ((), ())


def test_the_manifest_of_these_tests_has_the_form_of_ollama(store):
    """
    Its members have the order in which Ollama writes them, without whitespace.
    """
    manifest = json.loads(store.model("m", GGUF).read_text())

    assert list(manifest) == ["schemaVersion", "mediaType", "config", "layers"]
    assert manifest["layers"][0] == {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{sha256(GGUF)}",
        "size": len(GGUF),
    }


def test_a_scan_writes_nothing(store):
    """
    No byte, time stamp or name differs afterwards.
    """
    store.model("m", GGUF)
    before = listing(store.root)

    scan(store.root)

    assert listing(store.root) == before


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_folder_of_manifests_that_is_a_link_hides_its_models(store, tmp_path, levels):
    """
    Their blobs are elsewhere, so the path of the link does not tell that they may still exist.
    """
    manifest = store.model("me/m:8b", GGUF)
    folder = manifest.parents[levels - 1]
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")

    scanned = scan(store.root, follow_links=False)

    assert scanned.found == ()
    assert scanned.may_hide("me/m", "8b", str(store.root / f"blobs/sha256-{sha256(GGUF)}"))
