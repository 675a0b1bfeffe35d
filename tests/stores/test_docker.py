"""The scan of the store of Docker Model Runner: an index, manifests, blobs and bundles."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hostile_entries import change_members
from layouts import sha256, write
from new_layouts import Docker

from model_catalog.stores.scan_result import Claims
from model_catalog.stores.scanners.docker import scan
from model_catalog.upkeep import adopt, verify_models

sys.path.append(str(Path(__file__).parents[1] / "files"))

from builders import PARAMETERS, gguf_shard

GGUF = b"GGUF" + bytes(100)
ID = "f" * 64


@pytest.fixture
def store(tmp_path):
    return Docker(tmp_path / "models")


def only(scanned):
    assert scanned.problems == ()
    (model,) = scanned.found
    return model


@pytest.mark.parametrize(
    ("tag", "reference", "version"),
    [
        ("docker.io/ai/gemma3:4B-Q4_K_M", "ai/gemma3", "4B-Q4_K_M"),
        ("index.docker.io/me/m:latest", "me/m", "latest"),
        ("huggingface.co/org/name:Q8_0", "huggingface.co/org/name", "Q8_0"),
        ("localhost:5000/ai/m:v1", "localhost:5000/ai/m", "v1"),
        ("localhost:5000/ai/m", "localhost:5000/ai/m", "latest"),
    ],
)
def test_a_model_has_the_name_that_the_program_accepts(store, tag, reference, version):
    """
    The registry of Docker Hub is left out. The tag is the version.
    """
    store.manifest([tag], [store.layer("gguf.v3", GGUF)])

    model = only(scan(store.root))

    assert (model.store, model.provider) == ("docker", "docker")
    assert (model.reference, model.version, model.aliases) == (reference, version, ())


@pytest.mark.parametrize("tags", [None, []])
def test_a_model_without_a_tag_has_its_id_as_name(store, tags):
    """
    The program writes null for the tags of a model whose only tag was moved to another one.
    """
    manifest = store.manifest(tags, [store.layer("gguf.v3", GGUF)])

    model = only(scan(store.root))

    assert (model.reference, model.version) == (f"sha256:{manifest.name}", "")


def test_the_layers_are_files_with_roles_and_digests(store):
    """
    The path of the model is that of its weights. The digests are those of the content.
    """
    more = [store.layer("mmproj", b"GGUFp"), store.layer("license", b"MIT")]
    more.append(store.layer("chat.template.jinja", b"{{ x }}"))
    manifest = store.model("ai/m:latest", GGUF, more=more)
    os.utime(manifest, (0, 1_700_000_000))

    model = only(scan(store.root))

    assert {file.role for file in model.files} == {
        *("weights", "projector", "license", "template", "config")
    }
    blobs = store.root / "blobs/sha256"
    assert [file.path for file in model.files] == sorted(blob.name for blob in blobs.iterdir())
    assert all(file.digest == f"sha256:{file.path}" for file in model.files)
    assert model.local_path == str(blobs / sha256(GGUF))
    assert model.downloaded_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert model.is_complete


@pytest.mark.parametrize(
    ("media_type", "path", "role"),
    [
        ("application/vnd.cncf.model.weight.v1.raw", "a/mmproj-F16.gguf", "projector"),
        ("application/vnd.cncf.model.weight.v1.raw", "a/m.safetensors", "weights"),
        ("application/vnd.cncf.model.weight.v1.raw", "odd\x1b[2J", "weights"),
        ("application/vnd.cncf.model.weight.config.v1.raw", "tokenizer.json", "tokenizer"),
        ("application/vnd.docker.ai.model.file", "sub/config.json", "config"),
        ("application/vnd.docker.ai.dir.tar", None, "other"),
        ("application/vnd.docker.ai.mmproj", "any.gguf", "projector"),
        (7, 7, "other"),
    ],
)
def test_an_annotation_tells_the_file_of_a_layer(store, media_type, path, role):
    """
    ModelPack and the format with a layer for each file have one media type for several roles.
    """
    layer = store.layer("", b"other", path, media_type=media_type)
    store.model("ai/m:latest", GGUF, more=[layer])

    model = only(scan(store.root))

    assert [file.role for file in model.files if file.digest == layer["digest"]] == [role]


def test_the_claims_come_from_the_config(store):
    """
    They are as exact as the program writes them.
    """
    store.model("ai/m:latest", GGUF)

    assert only(scan(store.root)).claims == Claims(
        format="gguf",
        architecture="llama",
        quantization="Q4_K_M",
        context_length=8192,
        parameter_count=361_820_000,
    )


@pytest.mark.parametrize(
    ("config", "claims"),
    [
        (
            {"format": "safetensors", "paramSize": "8b"},
            Claims(format="safetensors", parameter_count=8 * 10**9),
        ),
        ({"format": "\x1b", "context_size": True, "quantization": "unknown"}, Claims()),
        ([], Claims()),
    ],
)
def test_a_config_of_modelpack_is_read_and_invalid_values_are_not(store, config, claims):
    """
    ModelPack calls the number of parameters `paramSize`.
    """
    store.manifest(["docker.io/ai/m:latest"], [store.layer("gguf.v3", GGUF)], config)

    assert only(scan(store.root)).claims == claims


def test_the_links_of_a_bundle_are_counted_once(store):
    """
    They are the blobs of the model by other names.
    """
    manifest = store.model("ai/m:latest", GGUF)
    before = scan(store.root)
    store.bundle(manifest, model__gguf=GGUF)

    after = scan(store.root)

    assert (after.disk_bytes, after.leftovers) == (before.disk_bytes, ())
    assert only(after).local_path == only(before).local_path


async def test_shards_as_blobs_are_a_whole_model(store, catalog):
    """
    The header of a shard says which one it is. The name of a blob says nothing.
    """
    shards = [gguf_shard(number, 2) for number in (1, 2)]
    layers = [store.layer("gguf.v3", shard) for shard in shards]
    store.manifest(["docker.io/ai/m:latest"], layers, config={})

    await adopt(catalog, scan(store.root))
    (verified,) = [each async for each in verify_models(catalog)]

    model = await catalog.get_model("ai/m", "docker", "latest")
    assert (model.incomplete_reason, verified.verdict) == (None, "ok")
    assert (model.architecture, model.parameter_count) == ("llama", 2 * PARAMETERS)


def test_leftovers_are_named(store):
    """
    A download that was stopped, a blob and a bundle that no model needs, and temporary files.
    """
    store.model("ai/m:latest", GGUF)
    partial = write(store.root / f"blobs/sha256/{ID}.incomplete", b"half")
    orphan = write(store.root / f"blobs/sha256/{sha256(b'lost')}", b"lost")
    manifest = write(store.root / f"manifests/sha256/{ID}", b"{}")
    temporary = write(store.root / "models.json.tmp-123", b"{")
    bundle = write(store.root / f"bundles/sha256/{ID}/config.json", b"{}")

    scanned = scan(store.root)

    assert {(each.path, each.kind) for each in scanned.leftovers} == {
        *((str(path), "partial") for path in (partial, temporary)),
        *((str(path), "orphan") for path in (orphan, manifest, bundle)),
    }
    assert only(scanned).is_complete


def test_an_unfinished_download_is_a_reason(store):
    """
    The program renames the file when its digest was verified.
    """
    store.model("ai/m:latest", GGUF)
    blob = store.root / f"blobs/sha256/{sha256(GGUF)}"
    blob.rename(f"{blob}.incomplete")

    model = only(scan(store.root))

    assert model.reasons == (f"missing: {blob.name!r}", f"unfinished downloads: {blob.name!r}")
    assert model.local_path == str(blob)


def test_without_its_index_a_store_has_no_models(store):
    """
    The program reads a missing index as an empty one. All blobs are then leftovers.
    """
    store.model("ai/m:latest", GGUF)
    (store.root / "models.json").unlink()

    scanned = scan(store.root)

    assert (scanned.found, scanned.problems) == ((), ())
    assert {each.kind for each in scanned.leftovers} == {"orphan"}


def test_blobs_of_a_model_that_cannot_be_read_are_no_orphans(store):
    """
    They may belong to it, so nobody should delete them.
    """
    manifest = store.model("ai/m:latest", GGUF)
    write(manifest, b"{")

    scanned = scan(store.root)

    assert [(each.path, each.reference, each.version) for each in scanned.problems] == [
        (str(manifest), "ai/m", "latest")
    ]
    assert scanned.leftovers == ()


def test_a_model_whose_manifest_is_lost_is_a_problem(store):
    """
    Every name of the model is protected from being reported as gone.
    """
    store.index({"id": f"sha256:{ID}", "tags": ["docker.io/ai/a:x", "docker.io/ai/b:y"]})

    scanned = scan(store.root)

    assert [(each.reference, each.version) for each in scanned.problems] == [
        ("ai/a", "x"),
        ("ai/b", "y"),
    ]
    assert scanned.may_hide("ai/b", "y", "/any")


@pytest.mark.parametrize("models", [[], None])
def test_an_index_without_models_is_empty(store, models):
    """
    A new store has an empty list. The program writes null when its last model was removed.
    """
    write(store.root / "models.json", json.dumps({"models": models}))

    scanned = scan(store.root)

    assert (scanned.found, scanned.problems, scanned.leftovers) == ((), (), ())


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256", "manifests"])
def test_a_folder_of_the_store_can_be_a_link(store, tmp_path, part):
    """
    As on a host whose blobs were moved to another disk. The paths are those below the store.
    """
    store.model("ai/m:latest", GGUF)
    before = only(scan(store.root))
    (store.root / part).rename(tmp_path / "disk")
    (store.root / part).symlink_to(tmp_path / "disk")

    assert only(scan(store.root)) == before
    assert scan(store.root, follow_links=False).found == ()


def test_a_manifest_without_a_config_is_told_from_one_with_a_bad_layer(tmp_path):
    """The reason names the part of the manifest that is not valid."""
    reasons = []
    for change in ({"config": None}, {"layers": [None]}):
        store = Docker(tmp_path / f"{len(reasons)}")
        change_members(store.model("ai/m:latest", GGUF), **change)
        (problem,) = scan(store.root).problems
        reasons.append(problem.reason)

    assert reasons == ["its config is not an object", "one of its layers is not an object"]
