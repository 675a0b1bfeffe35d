"""Verification of signature bundles, and how little of a bundle is trusted before that."""

import copy
import hashlib
import json
import os
import pickle
import random

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from signed_bundles import (
    bundle,
    digest,
    digests,
    envelope,
    pem,
    private_key,
    resource,
    root_of,
    statement,
)

from model_catalog import (
    BadSignatureError,
    InvalidModelError,
    NotAFileError,
    ProtectedFileError,
)
from model_catalog.files import safe_open
from model_catalog.files.signing import signature
from model_catalog.files.signing.public_key import read_public_key
from model_catalog.files.signing.signature import (
    SignatureDifferences,
    SignedManifest,
    compare_files,
    require_matching_files,
    verify_bundle,
)

PRIVATE = private_key()
KEY = read_public_key(pem(PRIVATE))
FILES = digests(a__bin=b"a", b__bin=b"b", config__json=b"{}")


def write_bundle(tmp_path, content):
    path = tmp_path / "model.sig"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def verify_statement(tmp_path, stated):
    """Return the manifest of a statement that is signed with the key."""
    return verify_bundle(write_bundle(tmp_path, bundle(PRIVATE, stated)), KEY)


@pytest.fixture
def signed(tmp_path):
    return verify_statement(tmp_path, statement(FILES))


def test_a_valid_bundle_lists_the_signed_files(tmp_path):
    """
    It gives their digests in the form of this package, and the fingerprint of the key.
    """
    path = write_bundle(tmp_path, bundle(PRIVATE, statement(FILES)))

    found = verify_bundle(path, KEY)

    der = pem(PRIVATE, serialization.Encoding.DER)
    assert found == SignedManifest(
        path=str(path),
        key_fingerprint="sha256:" + hashlib.sha256(der).hexdigest(),
        digests=FILES,
        ignored_paths=frozenset({".git", ".github", ".gitignore", ".gitattributes", "model.sig"}),
        identity=safe_open.file_identity(path.stat()),
    )
    assert list(found.digests) == list(FILES)
    require_matching_files(found, FILES)


@pytest.mark.parametrize(
    ("curve", "right", "wrong"),
    [
        (ec.SECP256R1(), hashes.SHA256(), hashes.SHA512()),
        (ec.SECP384R1(), hashes.SHA384(), hashes.SHA256()),
        (ec.SECP521R1(), hashes.SHA512(), hashes.SHA256()),
    ],
)
def test_the_key_decides_the_algorithm(tmp_path, curve, right, wrong):
    """
    Each curve has its hash. A signature with another hash is invalid.
    """
    private = private_key(curve)
    payload = json.dumps(statement(FILES)).encode()
    good = write_bundle(tmp_path, envelope(private, payload, algorithm=right))

    assert verify_bundle(good, read_public_key(pem(private))).digests == FILES
    bad = write_bundle(tmp_path, envelope(private, payload, algorithm=wrong))
    with pytest.raises(BadSignatureError, match="is not signed with the key"):
        verify_bundle(bad, read_public_key(pem(private)))


def test_a_bundle_of_another_key_is_refused(tmp_path):
    """
    Its hint may name that key, be absent, or be wrong. The error contains the expected key.
    """
    other = read_public_key(pem(private_key()))
    path = write_bundle(tmp_path, bundle(PRIVATE, statement(FILES)))
    with pytest.raises(BadSignatureError, match=f"another key than {other.fingerprint}") as caught:
        verify_bundle(path, other)
    assert caught.value.path == str(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    for hint in ({}, {"hint": None}, {"hint": ""}, {"hint": other.hint}, {"rawBytes": "AAAA"}):
        stated = envelope(PRIVATE, json.dumps(statement(FILES)).encode())
        stated["verificationMaterial"]["publicKey"] = hint
        with pytest.raises(BadSignatureError, match=f"not signed with the key {other.fingerprint}"):
            verify_bundle(write_bundle(tmp_path, stated), other)


def test_a_bundle_without_a_hint_is_read(tmp_path):
    """
    The first releases of model-signing wrote the key itself, which is never trusted.
    """
    stated = envelope(PRIVATE, json.dumps(statement(FILES)).encode())
    stated["verificationMaterial"]["publicKey"] = {"rawBytes": "AAAA", "keyDetails": "X"}

    assert verify_bundle(write_bundle(tmp_path, stated), KEY).digests == FILES


def test_the_payload_type_is_part_of_the_signed_message(tmp_path):
    """
    Neither the type nor the payload can be changed alone.
    """
    payload = json.dumps(statement(FILES)).encode()
    other_type = envelope(PRIVATE, payload, payload_type="text/plain")
    with pytest.raises(BadSignatureError, match="is not signed with the key"):
        verify_bundle(write_bundle(tmp_path, other_type), KEY)
    other_type["dsseEnvelope"]["payloadType"] = "text/plain"
    with pytest.raises(BadSignatureError, match="payload is 'text/plain'"):
        verify_bundle(write_bundle(tmp_path, other_type), KEY)


def test_other_kinds_of_bundles_are_refused(tmp_path):
    """
    Certificates, other Sigstore bundles and several signatures are not supported.
    """
    good = envelope(PRIVATE, json.dumps(statement(FILES)).encode())
    for reason, change in {
        "certificate": lambda stated: stated.update(
            verificationMaterial={"certificate": {"rawBytes": ""}}
        ),
        "does not say that it is signed with a key": lambda stated: stated.update(
            verificationMaterial={}
        ),
        "media type is 'application/vnd.dev.sigstore.bundle": lambda stated: stated.update(
            mediaType="application/vnd.dev.sigstore.bundle+json;version=0.2"
        ),
        "one signed statement": lambda stated: stated["dsseEnvelope"]["signatures"].append(
            stated["dsseEnvelope"]["signatures"][0]
        ),
        "not base64": lambda stated: stated["dsseEnvelope"].update(payload="!"),
    }.items():
        stated = copy.deepcopy(good)
        change(stated)
        with pytest.raises(BadSignatureError, match=reason):
            verify_bundle(write_bundle(tmp_path, stated), KEY)


@pytest.mark.parametrize(
    ("reason", "stated"),
    [
        ("signs 'shards'", statement(FILES, method="shards", shard_size=3.0)),
        ("digests are 'blake2b'", statement(FILES, hash_type="blake2b")),
        ("digests are 'blake3'", statement(FILES, hash_type="blake3")),
        (
            "is not a SHA-256",
            statement({}, resources=[resource("a", "00" * 32), resource("b", "ab")]),
        ),
        ("is not a SHA-256", statement({"a": "A" * 64})),
        (
            "no name or no SHA-256",
            statement(
                {}, resources=[{"name": "a", "algorithm": "sha256-sharded-3", "digest": "00" * 32}]
            ),
        ),
        ("signs no files", statement({})),
        ("twice", statement({}, resources=[resource("a", "00" * 32), resource("a", "11" * 32)])),
        ("root digest does not match", statement(FILES, root=root_of([resource("a", "00" * 32)]))),
        ("along with other files", statement({".": FILES["a.bin"], "a": FILES["a.bin"]})),
        ("ignores the whole model", statement(FILES, ignore_paths=["."])),
        ("ignores the whole model", statement(FILES, ignore_paths=["model.sig", ""])),
        ("not a list of texts", statement(FILES, ignore_paths="a")),
        ("not a list of texts", statement(FILES, ignore_paths=[1])),
        ("signs 'a.bin' and also ignores it", statement(FILES, ignore_paths=["a.bin"])),
        ("signs 'd/a' and also ignores it", statement({"d/a": "00" * 32}, ignore_paths=["d/"])),
        ("before 1.0", {**statement(FILES), "predicateType": "https://model_signing/Digests/v0.1"}),
        (
            "predicate type is 'https://slsa",
            {**statement(FILES), "predicateType": "https://slsa.dev/v1"},
        ),
        ("statement type is 'x'", {**statement(FILES), "_type": "x"}),
        ("not written by model-signing", {**statement(FILES), "subject": []}),
        ("not an in-toto statement", []),
        ("is not UTF-8", b'"\xff"'),
        ("invalid JSON", b"{"),
        ("invalid JSON", b"{} {}"),
        ("NaN is not a JSON value", b'{"a": NaN}'),
        ("duplicate name", b'{"a": 1, "a": 2}'),
        ("nested too deeply", b"[" * 100_000 + b"]" * 100_000),
        ("contains more than 200,000 values", b"[" + b"1," * 200_000 + b"1]"),
    ],
)
def test_a_signed_statement_is_still_validated(tmp_path, reason, stated):
    """
    A statement that cannot be compared file by file is refused with the reason.
    """
    with pytest.raises(BadSignatureError, match=reason):
        verify_statement(tmp_path, stated)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../a",
        "d/../a",
        "/a",
        "d//a",
        "d/",
        "./a",
        "a\n",
        "a\0",
        "\x1b[2J",
        "\x9b",
        "\udcff",
    ],
)
def test_a_path_that_leaves_the_model_is_refused(tmp_path, name):
    """
    A path with control characters, or not in normal form, is refused too.
    """
    with pytest.raises(BadSignatureError, match="not a path inside a model") as caught:
        verify_statement(tmp_path, statement({name: "00" * 32}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["..a", "a..", "...", "d/.hidden", "a\\b", "a:0:3", "ü", " ", "{,[" * 9]
)
def test_any_other_path_is_accepted(tmp_path, name):
    """
    Every name that a file system allows can be signed.
    """
    assert list(verify_statement(tmp_path, statement({name: "00" * 32})).digests) == [name]


def test_an_ignored_path_covers_everything_below_it(tmp_path):
    """
    The same name in a subfolder is not ignored. Paths outside of the model have no effect.
    """
    ignored = [".git/", "d/x", "/etc", "../up", "d/../a.bin"]

    found = verify_statement(tmp_path, statement(FILES, ignore_paths=ignored))

    assert found.ignored_paths == {".git", "d/x"}
    for path in (".git", ".git/config", ".git/a/b", "d/x", "d/x/y"):
        assert found.is_ignored(path)
    for path in (".gitignore", "sub/.git", "d", "d/xy", "x", "a.bin", "etc", "up"):
        assert not found.is_ignored(path)
    assert not verify_statement(tmp_path, {**statement(FILES)}).is_ignored("a.bin")


def test_a_bundle_is_opened_safely(tmp_path):
    """
    A FIFO does not block, a database is not opened, and no more is read than the limit.
    """
    path = write_bundle(tmp_path, bundle(PRIVATE, statement(FILES)))
    with pytest.raises(ProtectedFileError):
        verify_bundle(path, KEY, protected=[safe_open.file_identity(path.stat())])
    os.mkfifo(tmp_path / "fifo")
    for wrong in (tmp_path / "fifo", tmp_path):
        with pytest.raises(NotAFileError):
            verify_bundle(wrong, KEY)
        with pytest.raises(NotAFileError):
            read_public_key(wrong)
    with pytest.raises(FileNotFoundError):
        verify_bundle(tmp_path / "none", KEY)
    os.truncate(path, signature.MAX_BUNDLE_BYTES + 1)
    with pytest.raises(BadSignatureError, match="larger than 16 MiB"):
        verify_bundle(path, KEY)


def test_a_bundle_with_too_many_values_is_not_parsed(tmp_path):
    """
    16 MiB of `[],` would need 350 MiB as lists, before any signature is verified.
    """
    for content in (b'{"a": [' + b"[]," * 1_000 + b"[]]}", b"[" * 5_000_000):
        with pytest.raises(BadSignatureError, match="more than 1,000 values"):
            verify_bundle(write_bundle(tmp_path, content), KEY)


ODD = [None, True, 0, -1, 1.5, "", "x", "\0", [], {}, [[]], [{}], {"": None}, ["x", 1], 10**40]


def places(value):
    """Yield each place in a JSON value, as its container and its key or index."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def odd_variants(value):
    """Yield the value with each place in it replaced by each odd value, or deleted."""
    for number in range(len(list(places(value)))):
        for replacement in ODD:
            changed = copy.deepcopy(value)
            container, key = list(places(changed))[number]
            container[key] = replacement
            yield changed
        changed = copy.deepcopy(value)
        container, key = list(places(changed))[number]
        del container[key]
        yield changed


@pytest.mark.slow
def test_a_value_of_a_wrong_type_is_refused_anywhere(tmp_path):
    """
    In the bundle and in its statement: BadSignatureError is raised, or the value has no effect.
    """
    stated = statement(FILES)
    payload = json.dumps(stated).encode()
    outside = [
        read_if_valid(tmp_path, json.dumps(changed).encode())
        for changed in odd_variants(envelope(PRIVATE, payload))
    ]
    assert {repr(found.digests) for found in outside if found is not None} == {repr(FILES)}

    inside = [read_if_valid(tmp_path, bundle(PRIVATE, changed)) for changed in odd_variants(stated)]
    assert len(outside) > 150
    assert len(inside) > 400
    assert 0 < sum(found is not None for found in outside + inside) < 200


@pytest.mark.slow
def test_a_mutated_bundle_is_refused(tmp_path):
    """
    3,000 mutations raise BadSignatureError, or leave the list of files unchanged.
    """
    randomness = random.Random(20_261_124)
    good = bundle(PRIVATE, statement(FILES))
    outcomes = [read_if_valid(tmp_path, mutated(good, randomness)) for _ in range(3_000)]

    kept = [found for found in outcomes if found is not None]
    assert {(repr(found.digests), found.key_fingerprint) for found in kept} == {
        (repr(FILES), KEY.fingerprint)
    }
    assert len(kept) < 300


@pytest.mark.slow
def test_a_mutated_statement_is_read_or_refused(tmp_path):
    """
    2,000 mutated and then signed statements raise nothing but BadSignatureError.
    """
    randomness = random.Random(20_261_124)
    payload = json.dumps(statement(FILES)).encode()
    for _ in range(2_000):
        read_if_valid(tmp_path, bundle(PRIVATE, mutated(payload, randomness)))


def read_if_valid(tmp_path, content):
    """Return the manifest of a bundle, or None if it raises BadSignatureError."""
    try:
        return verify_bundle(write_bundle(tmp_path, content), KEY)
    except BadSignatureError as error:
        text = str(error)
    assert text.isprintable()
    assert len(text) < 1_000 + len(str(tmp_path))
    return None


def mutated(content, randomness):
    changed = bytearray(content)
    for _ in range(randomness.choice((1, 1, 2, 8))):
        at = randomness.randrange(len(changed))
        match randomness.randrange(5):
            case 0:
                changed[at] ^= 1 << randomness.randrange(8)
            case 1:
                del changed[at : at + randomness.randrange(1, 40)]
            case 2:
                changed[at:at] = changed[at // 2 : at // 2 + randomness.randrange(1, 40)]
            case 3:
                changed[at:at] = randomness.choice(
                    (b"[", b"{", b'"', b"NaN", b"9" * 5000, b"\xff", b"\\ud800", b"1e999", b"\0")
                )
            case 4:
                changed[at] = randomness.randrange(256)
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "expected", "named"),
    [
        (
            {"a.bin": digest(b"A")},
            SignatureDifferences(tampered=("a.bin",)),
            "tampered with: 'a.bin'",
        ),
        ({"a.bin": None}, SignatureDifferences(missing=("a.bin",)), "missing: 'a.bin'"),
        ({"new": digest(b"n")}, SignatureDifferences(extra=("new",)), "not signed: 'new'"),
        (
            {"a.bin": None, "c.bin": digest(b"a")},
            SignatureDifferences(renamed=(("a.bin", "c.bin"),)),
            "renamed: 'a.bin' to 'c.bin'",
        ),
        (
            {"a.bin": digest(b"b"), "b.bin": digest(b"a")},
            SignatureDifferences(tampered=("a.bin", "b.bin")),
            "tampered with: 'a.bin', 'b.bin'",
        ),
        (
            {"a.bin": digest(b"A"), "b.bin": None, "x\n": digest(b"x")},
            SignatureDifferences(tampered=("a.bin",), missing=("b.bin",), extra=("x\n",)),
            r"tampered with: 'a.bin'; missing: 'b.bin'; not signed: 'x\\n'",
        ),
    ],
)
def test_files_that_differ_from_the_signed_ones_are_named(signed, change, expected, named):
    """
    Tampered, missing, extra and renamed files are listed with their paths.
    """
    found = {name: value for name, value in {**FILES, **change}.items() if value is not None}

    assert compare_files(signed, found) == expected
    with pytest.raises(BadSignatureError) as caught:
        require_matching_files(signed, found)
    assert caught.value.reason == named.replace("\\\\", "\\")
    assert caught.value.path == signed.path


def test_ignored_files_are_not_compared(signed):
    """
    The same name in a subfolder is compared.
    """
    require_matching_files(
        signed, {**FILES, ".git/HEAD": digest(b"x"), ".gitattributes": digest(b"y")}
    )
    with pytest.raises(BadSignatureError, match=r"not signed: 'sub/\.gitignore'"):
        require_matching_files(signed, {**FILES, "sub/.gitignore": digest(b"x")})


def test_the_error_lists_a_few_of_many_names(signed):
    """
    It stays on one line. `compare_files` returns all names.
    """
    found = {**FILES, **{f"x{number}": digest(b"x") for number in range(1_000)}}

    assert len(compare_files(signed, found).extra) == 1_000
    with pytest.raises(BadSignatureError, match=r"'x101' and 995 more$"):
        require_matching_files(signed, found)


def test_a_single_signed_file_can_have_any_name(tmp_path):
    """
    model-signing writes `.` for its name. It cannot be found among several files.
    """
    alone = verify_statement(tmp_path, statement({".": digest(b"x")}))
    assert alone.is_single_file

    require_matching_files(alone, {"one.gguf": digest(b"x")})
    require_matching_files(alone, {".": digest(b"x")})
    with pytest.raises(BadSignatureError, match=r"tampered with: 'one\.gguf'"):
        require_matching_files(alone, {"one.gguf": digest(b"y")})
    for count, found in ((0, {}), (2, {"a": digest(b"x"), "b": digest(b"x")})):
        with pytest.raises(BadSignatureError, match=f"signs one file.* {count} files were found"):
            require_matching_files(alone, found)


@pytest.mark.parametrize("value", ["", "00" * 32, "sha256:" + "A" * 64, "blake3:" + "0" * 64])
def test_a_digest_in_another_form_is_an_error(signed, value):
    """
    Otherwise every file would look tampered with.
    """
    with pytest.raises(InvalidModelError, match="is not a SHA-256"):
        require_matching_files(signed, {**FILES, "a.bin": value})
