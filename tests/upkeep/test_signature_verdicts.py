"""Record the verdict on a signature, and clear it when the content changes."""

import dataclasses
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import signed_bundles

from model_catalog import InvalidKeyError, InvalidModelError, ModelNotFoundError
from model_catalog.upkeep import accept_model, register_path, verify_signature
from model_catalog.upkeep.queries.verification_queries import save_file_digest

NAME = ("m", "local")


@pytest.fixture
def signing():
    """The helpers that write bundles as model-signing writes them."""
    return signed_bundles


@pytest.fixture
def catalog(on_sqlite):
    """SQLite only: these tests are about files, which are the same for every database."""
    return on_sqlite


@pytest.fixture
def signed_folder(tmp_path, signing):
    """A signed folder with two files, and the private key."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"weights")
    found = {path.name: signing.digest(path.read_bytes()) for path in sorted(folder.iterdir())}
    key = signing.private_key()
    (folder / "model.sig").write_bytes(signing.bundle(key, signing.statement(found)))
    return folder, key


async def verify(catalog, signing, key, **options):
    return await verify_signature(catalog, *NAME, key=signing.pem(key), **options)


async def test_the_fingerprint_of_the_key_is_recorded(catalog, signing, signed_folder):
    """
    `signed_by` is the fingerprint of the key, as openssl computes it.
    """
    folder, key = signed_folder
    await register_path(catalog, folder, provider="local", reference="m")

    result = await verify(catalog, signing, key)

    assert (result.is_valid, result.reason) == (True, None)
    model = await catalog.get_model(*NAME)
    assert model.signed_by == result.key_fingerprint
    assert (model.signature_verdict, model.signature_detail) == ("valid", None)
    assert model.signature_checked_at is not None


def tamper(folder):
    (folder / "weights.bin").write_bytes(b"WEIGHTS")


def add(folder):
    (folder / "extra.py").write_text("import os")


def delete(folder):
    (folder / "config.json").unlink()


def rename(folder):
    (folder / "weights.bin").rename(folder / "other.bin")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (tamper, "tampered with: 'weights.bin'"),
        (add, "not signed: 'extra.py'"),
        (delete, "missing: 'config.json'"),
        (rename, "renamed: 'weights.bin' to 'other.bin'"),
    ],
    ids=["tampered", "extra", "missing", "renamed"],
)
async def test_a_changed_folder_is_refused(catalog, signing, signed_folder, change, reason):
    """
    The reason names the file, and the verdict is recorded.
    """
    folder, key = signed_folder
    await register_path(catalog, folder, provider="local", reference="m", digest=True)
    change(folder)

    result = await verify(catalog, signing, key)

    assert not result.is_valid
    assert reason in result.reason
    model = await catalog.get_model(*NAME)
    assert (model.signature_verdict, model.signed_by) == ("refused", None)
    assert reason in model.signature_detail


async def test_a_signature_by_another_key_is_refused(catalog, signing, signed_folder):
    """
    The result contains the fingerprint of the key that was used, and `signed_by` stays empty.
    """
    folder, _ = signed_folder
    await register_path(catalog, folder, provider="local", reference="m")

    result = await verify(catalog, signing, signing.private_key())

    assert not result.is_valid
    assert result.model.signed_by is None
    assert result.key_fingerprint.startswith("sha256:")


async def test_a_key_in_the_models_folder_is_not_used(catalog, signing, signed_folder):
    """
    Otherwise a folder could bring its own key, and would always be valid.
    """
    folder, _ = signed_folder
    other = signing.private_key()
    (folder / "key.pem").write_bytes(signing.pem(other))
    found = {
        path.name: signing.digest(path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.name != "model.sig"
    }
    (folder / "model.sig").write_bytes(signing.bundle(other, signing.statement(found)))
    await register_path(catalog, folder, provider="local", reference="m")

    assert not (await verify(catalog, signing, signing.private_key())).is_valid
    assert (await verify(catalog, signing, other)).is_valid


async def test_accepting_new_content_clears_the_verdict(catalog, signing, signed_folder):
    """
    Registering the same content again keeps the verdict.
    """
    folder, key = signed_folder
    await register_path(catalog, folder, provider="local", reference="m", digest=True)
    await verify(catalog, signing, key)

    await register_path(catalog, folder, provider="local", reference="m")
    kept = await catalog.get_model(*NAME)
    tamper(folder)
    await accept_model(catalog, *NAME)
    cleared = await catalog.get_model(*NAME)

    assert kept.signature_verdict == "valid"
    assert (cleared.signature_verdict, cleared.signed_by) == (None, None)


_watched_folders: list[str] = []
_opened_names: list[str] = []


def _record_open(event, arguments):
    # An audit hook cannot be removed, so it stays active until the process ends.
    if _watched_folders and event == "open" and str(arguments[0]).startswith(_watched_folders[0]):
        _opened_names.append(Path(arguments[0]).name)


sys.addaudithook(_record_open)


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "just written"])
async def test_recorded_digests_are_used_if_the_files_are_settled(
    catalog, signing, signed_folder, settled
):
    """
    A file that was hashed while it was written may have changed since, so it is read again.
    """
    folder, key = signed_folder
    model = (
        await register_path(catalog, folder, provider="local", reference="m", digest=True)
    ).model
    if settled:
        for file in await catalog.list_files(*NAME):
            await save_file_digest(
                catalog,
                model,
                dataclasses.replace(file, hashed_at=file.hashed_at + timedelta(hours=1)),
            )

    _watched_folders.append(str(folder))
    result = await verify(catalog, signing, key)
    _watched_folders.clear()
    opened = sorted(_opened_names)
    _opened_names.clear()

    assert result.is_valid
    read = [] if settled else ["config.json", "weights.bin"]
    assert opened == sorted(["model.sig", *read])
    tamper(folder)
    assert not (await verify(catalog, signing, key)).is_valid


async def test_errors_record_no_verdict(catalog, signing, signed_folder):
    """
    A model without a bundle is not refused. An invalid key and an unknown model are errors too.
    """
    folder, key = signed_folder
    (folder / "model.sig").unlink()
    await register_path(catalog, folder, provider="local", reference="m")

    with pytest.raises(FileNotFoundError):
        await verify(catalog, signing, key)
    with pytest.raises(InvalidKeyError):
        await verify_signature(catalog, *NAME, key=b"no key")
    with pytest.raises(ModelNotFoundError):
        await verify_signature(catalog, "other", "local", key=signing.pem(key))

    assert (await catalog.get_model(*NAME)).signature_verdict is None


async def test_the_path_of_the_bundle_can_be_given(catalog, signing, signed_folder, tmp_path):
    """
    A bundle outside the folder is used if its path is passed.
    """
    folder, key = signed_folder
    shutil.move(folder / "model.sig", tmp_path / "elsewhere.sig")
    await register_path(catalog, folder, provider="local", reference="m")

    assert (await verify(catalog, signing, key, bundle=tmp_path / "elsewhere.sig")).is_valid


async def test_links_are_refused_by_default(catalog, signing, signed_folder, tmp_path):
    """
    A cache of blobs consists of links; `follow_links` accepts them.
    """
    folder, key = signed_folder
    (folder / "weights.bin").rename(tmp_path / "blob")
    (folder / "weights.bin").symlink_to(tmp_path / "blob")
    await register_path(catalog, folder, provider="local", reference="m")

    assert "a link" in (await verify(catalog, signing, key)).reason
    assert (await verify(catalog, signing, key, follow_links=True)).is_valid


@pytest.mark.parametrize("is_single", [True, False], ids=["file", "folder"])
@pytest.mark.parametrize(
    ("target", "reason"),
    [("nowhere", "does not exist, or its link leads to no file"), ("weights.bin", "ELOOP")],
    ids=["lost blob", "unreadable"],
)
async def test_a_lost_or_unreadable_file_behind_a_link_is_refused(
    catalog, signing, tmp_path, is_single, target, reason
):
    """
    The verdict `valid` of an earlier check does not stay, and the file is named.
    """
    folder, key = tmp_path / "model", signing.private_key()
    folder.mkdir()
    (tmp_path / "blob").write_bytes(b"weights")
    path = folder / "weights.bin"
    path.symlink_to(tmp_path / "blob")
    name = "." if is_single else "weights.bin"
    bundle = signing.bundle(key, signing.statement({name: signing.digest(b"weights")}))
    (folder / ("weights.bin.sig" if is_single else "model.sig")).write_bytes(bundle)
    registered = path if is_single else folder
    await register_path(catalog, registered, provider="local", reference="m")
    before = await verify(catalog, signing, key, follow_links=True)
    path.unlink()
    path.symlink_to(target)

    refused = await verify(catalog, signing, key, follow_links=True)

    assert (before.is_valid, refused.is_valid) == (True, False)
    assert "weights.bin" in refused.reason
    assert reason in refused.reason
    model = await catalog.get_model(*NAME)
    assert (model.signature_verdict, model.signature_detail) == ("refused", refused.reason)


async def test_paths_that_need_no_signature_can_be_ignored(catalog, signing, signed_folder):
    """
    huggingface_hub 2.4 keeps metadata in `.cache` of a local_dir. A signed file is not ignored.
    """
    folder, key = signed_folder
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".cache/huggingface/CACHEDIR.TAG").write_text("Signature")
    (folder / "note.txt").write_text("mine")
    await register_path(catalog, folder, provider="local", reference="m")

    verdicts = {
        str(paths): (await verify(catalog, signing, key, ignore_paths=paths)).reason
        for paths in (
            [],
            [".cache"],
            [".cache/", folder / "note.txt"],
            ["./.cache/huggingface", "note.txt"],
            [".cache", "note.txt", "weights.bin"],
        )
    }

    assert list(verdicts.values()) == [
        "not signed: '.cache/huggingface/CACHEDIR.TAG', 'note.txt'",
        "not signed: 'note.txt'",
        None,
        None,
        "missing: 'weights.bin'",
    ]


@pytest.mark.parametrize("path", [".", "..", "../other", "/elsewhere", ""])
async def test_a_path_outside_of_the_model_cannot_be_ignored(catalog, signing, signed_folder, path):
    """
    Nor can the whole model. The record stays.
    """
    folder, key = signed_folder
    await register_path(catalog, folder, provider="local", reference="m")

    with pytest.raises(InvalidModelError, match="ignore_paths"):
        await verify(catalog, signing, key, ignore_paths=[path])

    assert (await catalog.get_model(*NAME)).signature_verdict is None
