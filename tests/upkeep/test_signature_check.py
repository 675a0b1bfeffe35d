"""Who signed a model: real keys, real bundles, and what is recorded of them."""

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


def a_signed_folder(folder, files=None, key=SIGNER):
    files = FILES if files is None else files
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    stated = statement({name: digest(content) for name, content in files.items()})
    (folder / "model.sig").write_bytes(bundle(key, stated))
    return folder


async def recorded(catalog, path, *, read=False):
    found = await register_path(catalog, path, provider="local", reference="m", digest=read)
    return found.model


async def held(catalog, **options):
    return await verify_signature(catalog, *NAME, **{"key": KEY, **options})


async def test_a_valid_signature_is_recorded(catalog, store, tmp_path):
    """
    With the fingerprint of the key, which comes from the caller, as bytes or as a file.
    """
    await recorded(catalog, a_signed_folder(store))
    (tmp_path / "key.pem").write_bytes(KEY)

    found = await held(catalog, key=tmp_path / "key.pem")

    assert (found.is_valid, found.reason) == (True, None)
    model = await catalog.get_model(*NAME)
    assert model.signed_by == found.key_fingerprint == (await held(catalog)).key_fingerprint
    assert (model.signature_verdict, model.signature_detail) == ("valid", None)
    assert model.signature_checked_at is not None
    assert found.model.signed_by == model.signed_by


def tamper(folder):
    (folder / "a.bin").write_bytes(b"A" * 100)


def add(folder):
    (folder / "inner" / "extra.bin").write_bytes(b"x")


def take(folder):
    (folder / "b.bin").unlink()


def rename(folder):
    (folder / "b.bin").rename(folder / "z.bin")


def sign_by_another(folder):
    a_signed_folder(folder, key=private_key())


def break_the_bundle(folder):
    (folder / "model.sig").write_bytes(b"{}")


def link(folder):
    (folder / "b.bin").rename(folder.parent / "b.bin")
    (folder / "b.bin").symlink_to(folder.parent / "b.bin")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (tamper, "tampered with: 'a.bin'"),
        (add, "not signed: 'inner/extra.bin'"),
        (take, "missing: 'b.bin'"),
        (rename, "renamed: 'b.bin' to 'z.bin'"),
        (sign_by_another, ""),
        (break_the_bundle, ""),
        (link, "'b.bin' is a link"),
    ],
)
@pytest.mark.parametrize("read", [True, False], ids=["known digests", "no digests"])
async def test_what_is_not_as_signed_is_refused(on_sqlite, store, harm, reason, read):
    """
    That is a result, and recorded with its reason; a verdict that was valid before is not kept.
    """
    await recorded(on_sqlite, a_signed_folder(store), read=read)
    before = await held(on_sqlite)

    harm(store)
    found = await held(on_sqlite)

    assert (before.is_valid, found.is_valid) == (True, False)
    assert reason in found.reason
    model = await on_sqlite.get_model(*NAME)
    assert (model.signature_verdict, model.signed_by) == ("refused", None)
    assert model.signature_detail == found.reason


async def test_links_are_followed_on_request(on_sqlite, store):
    """
    As a cache of blobs has them.
    """
    await recorded(on_sqlite, a_signed_folder(store))
    link(store)

    assert not (await held(on_sqlite)).is_valid
    assert (await held(on_sqlite, follow_links=True)).is_valid


async def test_a_single_file_has_its_bundle_beside_it(on_sqlite, store, tmp_path):
    """
    The file's name and `.sig`, unless another bundle is named.
    """
    path = store / "m.bin"
    path.write_bytes(b"m")
    await recorded(on_sqlite, path)
    signed = bundle(SIGNER, statement({".": digest(b"m")}))
    (tmp_path / "elsewhere.sig").write_bytes(signed)

    with pytest.raises(FileNotFoundError):
        await held(on_sqlite)
    assert (await on_sqlite.get_model(*NAME)).signature_verdict is None
    assert (await held(on_sqlite, bundle=tmp_path / "elsewhere.sig")).is_valid
    (store / "m.bin.sig").write_bytes(signed)
    assert (await held(on_sqlite)).is_valid


@pytest.mark.parametrize("is_listed", [True, False], ids=["files known", "files unknown"])
async def test_one_shard_does_not_sign_for_a_set(on_sqlite, store, is_listed):
    """
    A model of several files is signed as the folder they lie in: a signature over the shard that it
    is recorded by says nothing of the others.
    """
    names = [f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    files = {name: make_gguf("llama", number) for number, name in enumerate(names, 1)}
    a_signed_folder(store, files)
    first = store / names[0]
    alone = bundle(SIGNER, statement({".": digest(files[names[0]])}))
    store.joinpath(f"{names[0]}.sig").write_bytes(alone)
    if is_listed:
        await recorded(on_sqlite, first)
    else:
        await on_sqlite.register_model(a_model("m", provider="local", local_path=str(first)))

    by_one = await held(on_sqlite, bundle=f"{first}.sig")
    store.joinpath(f"{names[0]}.sig").unlink()
    whole = await held(on_sqlite)
    (store / names[1]).write_bytes(make_gguf("llama", 9))
    tampered = await held(on_sqlite)

    assert not by_one.is_valid
    assert whole.is_valid
    assert not tampered.is_valid
    assert names[1] in tampered.reason


@pytest.fixture
def opens():
    """The paths that this process opens, as Python reports them."""
    found = []
    is_on = True

    def hear(event, arguments):
        if is_on and event == "open" and isinstance(arguments[0], str):
            found.append(arguments[0])

    # A hook cannot be taken away again.
    sys.addaudithook(hear)
    yield found
    is_on = False


def change_files(folder, sql, *parameters):
    """Write into the rows of the files with a plain driver."""
    with closing(sqlite3.connect(folder / "catalog.db")) as raw, raw:
        raw.execute(f"UPDATE model_files SET {sql}", parameters)


def make_older(folder):
    """Have the files been read an hour after they were written."""
    change_files(folder, "hashed_at = hashed_at + 3600")


async def test_what_was_read_before_is_not_read_again(on_sqlite, tmp_path, store, opens):
    """
    Files that are the same still have the digest that is recorded; one that was written to, and one
    of which other bytes were found, is read.
    """
    await recorded(on_sqlite, a_signed_folder(store), read=True)
    make_older(tmp_path)
    told = []
    opens.clear()

    known = await held(on_sqlite, on_progress=told.append)
    opened = [path for path in opens if path.endswith(".bin")]
    (store / "a.bin").write_bytes(FILES["a.bin"])
    opens.clear()
    again = await held(on_sqlite)
    await asyncio.sleep(0)

    assert known.is_valid
    assert opened == []
    assert (told[-1].done_bytes, told[-1].total_bytes) == (300, 300)
    assert again.is_valid
    assert [path for path in opens if path.endswith(".bin")] == [str(store / "a.bin")]


async def test_what_was_just_written_is_read_again(on_sqlite, store, opens):
    """
    A file that was hashed within 2 s of its writing may have other bytes and the same stamps.
    """
    await recorded(on_sqlite, a_signed_folder(store), read=True)
    opens.clear()

    await held(on_sqlite)

    assert len([path for path in opens if path.endswith(".bin")]) == 3


async def test_a_damaged_file_is_not_known_by_what_it_should_be(on_sqlite, tmp_path, store):
    """
    A file that looks as it did, and was found to have other bytes, is read: its expected digest
    does not vouch for it.
    """
    await recorded(on_sqlite, a_signed_folder(store), read=True)
    tamper(store)
    fingerprint = str(Fingerprint.from_stat((store / "a.bin").stat()))
    change_files(tmp_path, "fingerprint = ? WHERE path = 'a.bin'", fingerprint)
    async for each in verify_models(on_sqlite):
        assert each.verdict == "mismatch"
    make_older(tmp_path)

    assert not (await held(on_sqlite)).is_valid


@pytest.mark.parametrize("how", ["registered", "accepted"])
async def test_a_verdict_is_of_the_bytes_that_were_signed(catalog, store, how):
    """
    Other bytes that are recorded afterwards are signed by nobody.
    """
    await recorded(catalog, a_signed_folder(store), read=True)
    await held(catalog)
    tamper(store)

    if how == "registered":
        await recorded(catalog, store, read=True)
    else:
        await accept_model(catalog, *NAME)

    model = await catalog.get_model(*NAME)
    assert (model.signed_by, model.signature_verdict, model.signature_checked_at) == (
        None,
        None,
        None,
    )


async def test_nothing_is_recorded_without_a_verdict(on_sqlite, store):
    """
    No model, no key that is one, no bundle, no file: an error, and the record as it was.
    """
    with pytest.raises(ModelNotFoundError):
        await held(on_sqlite)
    await recorded(on_sqlite, a_signed_folder(store))
    with pytest.raises(InvalidKeyError):
        await held(on_sqlite, key=b"no key")
    with pytest.raises(FileNotFoundError):
        await held(on_sqlite, bundle=store / "gone.sig")
    (store / "model.sig").unlink()
    with pytest.raises(FileNotFoundError):
        await held(on_sqlite)
    store.rename(store.with_name("away"))
    with pytest.raises(FileNotFoundError):
        await held(on_sqlite)

    assert (await on_sqlite.get_model(*NAME)).signature_verdict is None
