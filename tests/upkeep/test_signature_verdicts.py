"""Who signed a model: the verdict is recorded, and holds for as long as the bytes do."""

import dataclasses
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import signed_bundles

from model_catalog import InvalidKeyError, ModelNotFoundError
from model_catalog.upkeep import accept_model, register_path, verify_signature
from model_catalog.upkeep.queries.verification_queries import save_file_digest

NAME = ("m", "local")


@pytest.fixture
def signing():
    """Bundles as model-signing writes them."""
    return signed_bundles


@pytest.fixture
def catalog(on_sqlite):
    """What is on the disk is the same to every database."""
    return on_sqlite


@pytest.fixture
def signed(tmp_path, signing):
    """A folder with two files and a signature over them, and the key it is made with."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"weights")
    found = {path.name: signing.digest(path.read_bytes()) for path in sorted(folder.iterdir())}
    key = signing.private_key()
    (folder / "model.sig").write_bytes(signing.bundle(key, signing.statement(found)))
    return folder, key


async def hold(catalog, signing, key, **options):
    return await verify_signature(catalog, *NAME, key=signing.pem(key), **options)


async def test_a_valid_signature_is_recorded_with_its_key(catalog, signing, signed):
    """
    Who signed is the fingerprint of the key, as openssl gives it.
    """
    folder, key = signed
    await register_path(catalog, folder, provider="local", reference="m")

    done = await hold(catalog, signing, key)

    assert (done.is_valid, done.reason) == (True, None)
    model = await catalog.get_model(*NAME)
    assert model.signed_by == done.key_fingerprint
    assert (model.signature_verdict, model.signature_detail) == ("valid", None)
    assert model.signature_checked_at is not None


def tamper(folder):
    (folder / "weights.bin").write_bytes(b"WEIGHTS")


def add(folder):
    (folder / "extra.py").write_text("import os")


def take_away(folder):
    (folder / "config.json").unlink()


def rename(folder):
    (folder / "weights.bin").rename(folder / "other.bin")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (tamper, "tampered with: 'weights.bin'"),
        (add, "not signed: 'extra.py'"),
        (take_away, "missing: 'config.json'"),
        (rename, "renamed: 'weights.bin' to 'other.bin'"),
    ],
    ids=["tampered", "extra", "missing", "renamed"],
)
async def test_what_is_not_as_it_was_signed_is_refused(catalog, signing, signed, change, told):
    """
    The file is named, and the verdict recorded.
    """
    folder, key = signed
    await register_path(catalog, folder, provider="local", reference="m", digest=True)
    change(folder)

    done = await hold(catalog, signing, key)

    assert not done.is_valid
    assert told in done.reason
    model = await catalog.get_model(*NAME)
    assert (model.signature_verdict, model.signed_by) == ("refused", None)
    assert told in model.signature_detail


async def test_another_key_has_not_signed(catalog, signing, signed):
    """
    Which key it was held against is told, and nobody is said to have signed.
    """
    folder, _ = signed
    await register_path(catalog, folder, provider="local", reference="m")

    done = await hold(catalog, signing, signing.private_key())

    assert not done.is_valid
    assert done.model.signed_by is None
    assert done.key_fingerprint.startswith("sha256:")


async def test_a_key_that_lies_beside_the_model_is_not_looked_at(catalog, signing, signed):
    """
    A folder that brings its own key has signed itself.
    """
    folder, _ = signed
    other = signing.private_key()
    (folder / "key.pem").write_bytes(signing.pem(other))
    found = {
        path.name: signing.digest(path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.name != "model.sig"
    }
    (folder / "model.sig").write_bytes(signing.bundle(other, signing.statement(found)))
    await register_path(catalog, folder, provider="local", reference="m")

    assert not (await hold(catalog, signing, signing.private_key())).is_valid
    assert (await hold(catalog, signing, other)).is_valid


async def test_new_bytes_have_no_signature(catalog, signing, signed):
    """
    Accepting other bytes, or registering another size, forgets the verdict; the same bytes keep it.
    """
    folder, key = signed
    await register_path(catalog, folder, provider="local", reference="m", digest=True)
    await hold(catalog, signing, key)

    await register_path(catalog, folder, provider="local", reference="m")
    kept = await catalog.get_model(*NAME)
    tamper(folder)
    await accept_model(catalog, *NAME)
    gone = await catalog.get_model(*NAME)

    assert kept.signature_verdict == "valid"
    assert (gone.signature_verdict, gone.signed_by) == (None, None)


_watched: list[str] = []
_opened: list[str] = []


def _hook(event, arguments):
    # An audit hook stays for the life of the process.
    if _watched and event == "open" and str(arguments[0]).startswith(_watched[0]):
        _opened.append(Path(arguments[0]).name)


sys.addaudithook(_hook)


@pytest.mark.parametrize("settled", [True, False], ids=["long ago", "just now"])
async def test_what_was_read_already_is_not_read_again(catalog, signing, signed, settled):
    """
    The recorded digests of files that are the same still are enough; where a file was read in the
    moment it was written, it may be another and is read.
    """
    folder, key = signed
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

    _watched.append(str(folder))
    done = await hold(catalog, signing, key)
    _watched.clear()
    opened = sorted(_opened)
    _opened.clear()

    assert done.is_valid
    read = [] if settled else ["config.json", "weights.bin"]
    assert opened == sorted(["model.sig", *read])
    tamper(folder)
    assert not (await hold(catalog, signing, key)).is_valid


async def test_without_a_bundle_nothing_is_recorded(catalog, signing, signed):
    """
    A model that nobody signed is no refused one.
    """
    folder, key = signed
    (folder / "model.sig").unlink()
    await register_path(catalog, folder, provider="local", reference="m")

    with pytest.raises(FileNotFoundError):
        await hold(catalog, signing, key)
    with pytest.raises(InvalidKeyError):
        await verify_signature(catalog, *NAME, key=b"no key")
    with pytest.raises(ModelNotFoundError):
        await verify_signature(catalog, "other", "local", key=signing.pem(key))

    assert (await catalog.get_model(*NAME)).signature_verdict is None


async def test_a_bundle_may_lie_elsewhere(catalog, signing, signed, tmp_path):
    """
    Named, it is the one that counts.
    """
    folder, key = signed
    shutil.move(folder / "model.sig", tmp_path / "elsewhere.sig")
    await register_path(catalog, folder, provider="local", reference="m")

    assert (await hold(catalog, signing, key, bundle=tmp_path / "elsewhere.sig")).is_valid


async def test_links_are_refused_unless_they_are_wanted(catalog, signing, signed, tmp_path):
    """
    A cache of blobs is all links: on purpose they are followed.
    """
    folder, key = signed
    (folder / "weights.bin").rename(tmp_path / "blob")
    (folder / "weights.bin").symlink_to(tmp_path / "blob")
    await register_path(catalog, folder, provider="local", reference="m")

    assert "a link" in (await hold(catalog, signing, key)).reason
    assert (await hold(catalog, signing, key, follow_links=True)).is_valid
