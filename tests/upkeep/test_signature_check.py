"""Verify signatures with real keys and bundles, and record the results."""

import asyncio
import sqlite3
import sys
from contextlib import closing

import pytest
from conftest import a_model
from signed_bundles import bundle, digest, pem, private_key, statement

from model_catalog import InvalidKeyError, ModelNotFoundError
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.upkeep import (
    accept_model,
    register_path,
    verify_models,
    verify_signature,
)

NAME = ("m", "local")
SIGNER = private_key()
KEY = pem(SIGNER)


@pytest.fixture
def store(tmp_path):
    """A folder of models."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


FILES = {"a.bin": b"a" * 100, "b.bin": b"b" * 100, "inner/c.bin": b"c" * 100}


def create_signed_folder(folder, files=None, key=SIGNER):
    files = FILES if files is None else files
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    stated = statement({name: digest(content) for name, content in files.items()})
    (folder / "model.sig").write_bytes(bundle(key, stated))
    return folder


async def register(catalog, path, *, read=False):
    found = await register_path(catalog, path, provider="local", reference="m", digest=read)
    return found.model


async def verify(catalog, **options):
    return await verify_signature(catalog, *NAME, **{"key": KEY, **options})


async def test_a_valid_signature_is_recorded(catalog, store, tmp_path):
    """
    The fingerprint of the key is recorded. The caller passes the key as bytes or as a path.
    """
    await register(catalog, create_signed_folder(store))
    (tmp_path / "key.pem").write_bytes(KEY)

    found = await verify(catalog, key=tmp_path / "key.pem")

    assert (found.is_valid, found.reason) == (True, None)
    model = await catalog.get_model(*NAME)
    assert model.signed_by == found.key_fingerprint == (await verify(catalog)).key_fingerprint
    assert (model.signature_verdict, model.signature_detail) == ("valid", None)
    assert model.signature_checked_at is not None
    assert found.model.signed_by == model.signed_by


def tamper(folder):
    (folder / "a.bin").write_bytes(b"A" * 100)


def add(folder):
    (folder / "inner" / "extra.bin").write_bytes(b"x")


def delete(folder):
    (folder / "b.bin").unlink()


def rename(folder):
    (folder / "b.bin").rename(folder / "z.bin")


def sign_with_another_key(folder):
    create_signed_folder(folder, key=private_key())


def break_the_bundle(folder):
    (folder / "model.sig").write_bytes(b"{}")


def link(folder):
    (folder / "b.bin").rename(folder.parent / "b.bin")
    (folder / "b.bin").symlink_to(folder.parent / "b.bin")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (tamper, "tampered with: 'a.bin'"),
        (add, "not signed: 'inner/extra.bin'"),
        (delete, "missing: 'b.bin'"),
        (rename, "renamed: 'b.bin' to 'z.bin'"),
        (sign_with_another_key, ""),
        (break_the_bundle, ""),
        (link, "'b.bin' is a link"),
    ],
)
@pytest.mark.parametrize("read", [True, False], ids=["known digests", "no digests"])
async def test_a_model_that_differs_from_its_signature_is_refused(
    on_sqlite, store, change, reason, read
):
    """
    The refusal is a result. It is recorded with its reason, and replaces an earlier valid verdict.
    """
    await register(on_sqlite, create_signed_folder(store), read=read)
    before = await verify(on_sqlite)

    change(store)
    found = await verify(on_sqlite)

    assert (before.is_valid, found.is_valid) == (True, False)
    assert reason in found.reason
    model = await on_sqlite.get_model(*NAME)
    assert (model.signature_verdict, model.signed_by) == ("refused", None)
    assert model.signature_detail == found.reason


async def test_links_are_followed_on_request(on_sqlite, store):
    """
    A cache of blobs consists of links.
    """
    await register(on_sqlite, create_signed_folder(store))
    link(store)

    assert not (await verify(on_sqlite)).is_valid
    assert (await verify(on_sqlite, follow_links=True)).is_valid


async def test_the_bundle_of_a_file_is_beside_it(on_sqlite, store, tmp_path):
    """
    Its name is the name of the file and `.sig`, unless the caller passes another path.
    """
    path = store / "m.bin"
    path.write_bytes(b"m")
    await register(on_sqlite, path)
    signed = bundle(SIGNER, statement({".": digest(b"m")}))
    (tmp_path / "elsewhere.sig").write_bytes(signed)

    with pytest.raises(FileNotFoundError):
        await verify(on_sqlite)
    assert (await on_sqlite.get_model(*NAME)).signature_verdict is None
    assert (await verify(on_sqlite, bundle=tmp_path / "elsewhere.sig")).is_valid
    (store / "m.bin.sig").write_bytes(signed)
    assert (await verify(on_sqlite)).is_valid


@pytest.mark.parametrize("is_listed", [True, False], ids=["files listed", "files not listed"])
async def test_the_signature_of_one_shard_is_not_enough_for_a_set(on_sqlite, store, is_listed):
    """
    A model of several files is signed as a folder. A signature of the recorded shard alone says
    nothing about the others.
    """
    names = [f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    files = {name: make_gguf("llama", number) for number, name in enumerate(names, 1)}
    create_signed_folder(store, files)
    first = store / names[0]
    shard_bundle = bundle(SIGNER, statement({".": digest(files[names[0]])}))
    store.joinpath(f"{names[0]}.sig").write_bytes(shard_bundle)
    if is_listed:
        await register(on_sqlite, first)
    else:
        await on_sqlite.register_model(a_model("m", provider="local", local_path=str(first)))

    by_shard = await verify(on_sqlite, bundle=f"{first}.sig")
    store.joinpath(f"{names[0]}.sig").unlink()
    by_folder = await verify(on_sqlite)
    (store / names[1]).write_bytes(make_gguf("llama", 9))
    tampered = await verify(on_sqlite)

    assert not by_shard.is_valid
    assert by_folder.is_valid
    assert not tampered.is_valid
    assert names[1] in tampered.reason


@pytest.fixture
def opened_paths():
    """The paths that this process opens, reported by an audit hook."""
    found = []
    is_active = True

    def record_open(event, arguments):
        if is_active and event == "open" and isinstance(arguments[0], str):
            found.append(arguments[0])

    # An audit hook cannot be removed.
    sys.addaudithook(record_open)
    yield found
    is_active = False


def update_file_rows(folder, sql, *parameters):
    """Update the rows of files with a plain driver."""
    with closing(sqlite3.connect(folder / "catalog.db")) as raw, raw:
        raw.execute(f"UPDATE model_files SET {sql}", parameters)


def move_hash_times(folder):
    """Set the hash times of the files one hour after their modification times."""
    update_file_rows(folder, "hashed_at = hashed_at + 3600")


async def test_unchanged_files_are_not_read_again(on_sqlite, tmp_path, store, opened_paths):
    """
    Their recorded digest is used. A file that was written to is read.
    """
    await register(on_sqlite, create_signed_folder(store), read=True)
    move_hash_times(tmp_path)
    reports = []
    opened_paths.clear()

    known = await verify(on_sqlite, on_progress=reports.append)
    opened = [path for path in opened_paths if path.endswith(".bin")]
    (store / "a.bin").write_bytes(FILES["a.bin"])
    opened_paths.clear()
    again = await verify(on_sqlite)
    await asyncio.sleep(0)

    assert known.is_valid
    assert opened == []
    assert (reports[-1].done_bytes, reports[-1].total_bytes) == (300, 300)
    assert again.is_valid
    assert [path for path in opened_paths if path.endswith(".bin")] == [str(store / "a.bin")]


async def test_files_hashed_right_after_writing_are_read_again(on_sqlite, store, opened_paths):
    """
    A file that was hashed within 2 s of its last write may have changed without a new time.
    """
    await register(on_sqlite, create_signed_folder(store), read=True)
    opened_paths.clear()

    await verify(on_sqlite)

    assert len([path for path in opened_paths if path.endswith(".bin")]) == 3


async def test_a_damaged_file_is_read_again(on_sqlite, tmp_path, store):
    """
    Its status is unchanged, but its expected digest is not that of its content.
    """
    await register(on_sqlite, create_signed_folder(store), read=True)
    tamper(store)
    fingerprint = str(Fingerprint.from_stat((store / "a.bin").stat()))
    update_file_rows(tmp_path, "fingerprint = ? WHERE path = 'a.bin'", fingerprint)
    async for each in verify_models(on_sqlite):
        assert each.verdict == "mismatch"
    move_hash_times(tmp_path)

    assert not (await verify(on_sqlite)).is_valid


@pytest.mark.parametrize("how", ["registered", "accepted"])
async def test_new_content_clears_the_verdict(catalog, store, how):
    """
    The signature says nothing about content that is registered or accepted later.
    """
    await register(catalog, create_signed_folder(store), read=True)
    await verify(catalog)
    tamper(store)

    if how == "registered":
        await register(catalog, store, read=True)
    else:
        await accept_model(catalog, *NAME)

    model = await catalog.get_model(*NAME)
    assert (model.signed_by, model.signature_verdict, model.signature_checked_at) == (
        None,
        None,
        None,
    )


async def test_an_error_records_no_verdict(on_sqlite, store):
    """
    An unknown model, an invalid key, a missing bundle and a missing file are errors, and the record
    stays.
    """
    with pytest.raises(ModelNotFoundError):
        await verify(on_sqlite)
    await register(on_sqlite, create_signed_folder(store))
    with pytest.raises(InvalidKeyError):
        await verify(on_sqlite, key=b"no key")
    with pytest.raises(FileNotFoundError):
        await verify(on_sqlite, bundle=store / "gone.sig")
    (store / "model.sig").unlink()
    with pytest.raises(FileNotFoundError):
        await verify(on_sqlite)
    store.rename(store.with_name("away"))
    with pytest.raises(FileNotFoundError):
        await verify(on_sqlite)

    assert (await on_sqlite.get_model(*NAME)).signature_verdict is None
