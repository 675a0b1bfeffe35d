"""Which files a signature must cover, and that model-signing gives the same verdict."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from signed_bundles import bundle, digests, pem, private_key, private_pem, statement

from model_catalog import BadLayoutError, BadSignatureError, ProtectedFileError
from model_catalog.files import safe_open
from model_catalog.files.digest import file_digest
from model_catalog.files.signing import required_files
from model_catalog.files.signing.public_key import read_public_key
from model_catalog.files.signing.required_files import required_file_paths
from model_catalog.files.signing.signature import require_matching_files, verify_bundle

PRIVATE = private_key()
KEY = read_public_key(pem(PRIVATE))
FILES = digests(a__bin=b"a", b__bin=b"b", config__json=b"{}")


@pytest.fixture
def signed(tmp_path):
    path = tmp_path / "model.sig"
    path.write_bytes(bundle(PRIVATE, statement(FILES)))
    return verify_bundle(path, KEY)


@pytest.fixture
def model(tmp_path):
    """A folder with the files in FILES."""
    root = tmp_path / "m"
    root.mkdir()
    for name, content in {"a.bin": b"a", "b.bin": b"b", "config.json": b"{}"}.items():
        (root / name).write_bytes(content)
    return root


def digests_of(root, signed, **how):
    """Return the digests of all files that the signature must cover, as a caller computes them."""
    at = root if root.is_dir() else root.parent
    return {path: file_digest(at / path) for path in required_file_paths(root, signed, **how)}


def test_a_signature_must_cover_every_file_that_is_not_ignored(model):
    """
    Hidden files and unfinished downloads can be loaded too. The bundle is found by its identity.
    """
    (model / "other.sig").write_bytes(bundle(PRIVATE, statement(FILES)))
    signed = verify_bundle(model / "other.sig", KEY)
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("x")
    (model / "empty").mkdir()
    assert required_file_paths(model, signed) == ("a.bin", "b.bin", "config.json")
    require_matching_files(signed, digests_of(model, signed))

    (model / "sub" / ".git").mkdir(parents=True)
    for name in (".hidden", "c.bin.part", "sub/.git/x"):
        (model / name).write_text("x")
    assert required_file_paths(model, signed) == (
        ".hidden",
        "a.bin",
        "b.bin",
        "c.bin.part",
        "config.json",
        "sub/.git/x",
    )


def test_the_paths_are_sorted_by_their_bytes(model, signed):
    """
    The order on disk does not matter, and names may be invalid UTF-8.
    """
    for name in (
        b"z",
        b"\xff",
        "é".encode(),
        b"B",
        b"a",
        b"a-",
        b"a.bin.x",
        b"0",
        "\uff0e".encode(),
    ):
        (model / os.fsdecode(name)).write_bytes(b"x")
    (model / "e").mkdir()
    (model / "e" / "f").write_bytes(b"x")

    found = [os.fsencode(path) for path in required_file_paths(model, signed)]

    assert found == sorted(found)
    assert len(found) == 13


def test_a_single_file_is_required_by_its_name(model, signed):
    """
    Other files in the folder are not required.
    """
    assert required_file_paths(model / "a.bin", signed) == ("a.bin",)


def test_a_file_that_a_signature_cannot_cover_is_an_error(model, signed):
    """
    That is a link without `follow_links`, a link to a folder, a FIFO, or the database of the
    catalog. The error names it.
    """
    (model / "link").symlink_to("a.bin")
    with pytest.raises(BadSignatureError, match="'link' is a link"):
        required_file_paths(model, signed)
    assert "link" in required_file_paths(model, signed, follow_links=True)

    (model / "folder").mkdir()
    (model / "away").symlink_to("folder")
    with pytest.raises(BadSignatureError, match="'away' is a link to a folder"):
        required_file_paths(model, signed, follow_links=True)
    (model / "away").unlink()
    (model / "link").unlink()
    whole = model.parent / "linked"
    whole.symlink_to(model)
    with pytest.raises(BadSignatureError, match="linked' is a link"):
        required_file_paths(whole, signed)
    assert required_file_paths(whole, signed, follow_links=True) == required_file_paths(
        model, signed
    )

    with pytest.raises(ProtectedFileError):
        required_file_paths(
            model, signed, protected=[safe_open.file_identity((model / "b.bin").stat())]
        )
    os.mkfifo(model / "fifo")
    with pytest.raises(BadSignatureError, match="'fifo' is a FIFO"):
        required_file_paths(model, signed)


def test_a_folder_with_too_many_files_is_refused(model, signed, monkeypatch):
    """
    The limit is that of `find_model_files`.
    """
    monkeypatch.setattr(required_files, "MAX_ENTRIES", 2)
    with pytest.raises(BadLayoutError, match="more than 2 files"):
        required_file_paths(model, signed)


class Oracle:
    """The package that defines the format, called as its command line calls it."""

    def __init__(self, folder):
        pytest.importorskip("OpenSSL")
        self.hashing = pytest.importorskip("model_signing.hashing")
        self.signing = pytest.importorskip("model_signing.signing")
        self.verifying = pytest.importorskip("model_signing.verifying")
        self.private = folder / "private.pem"
        self.public = folder / "public.pem"
        self.bundle = folder / "m" / "model.sig"
        self.use(PRIVATE)

    def use(self, private):
        self.private.write_bytes(private_pem(private))
        self.public.write_bytes(pem(private))

    def config(self, *, links=False, git=True):
        return (
            self.hashing.Config()
            .set_ignored_paths(paths=[self.bundle.name], ignore_git_paths=git)
            .set_allow_symlinks(links)
        )

    def sign(self, root, config=None, **how):
        self.signing.Config().use_elliptic_key_signer(private_key=self.private).set_hashing_config(
            config or self.config(**how)
        ).sign(root, self.bundle)

    def accepts(self, root, **how):
        try:
            self.verifying.Config().use_elliptic_key_verifier(
                public_key=self.public
            ).set_hashing_config(self.config(**how)).verify(root, self.bundle)
        except Exception as error:  # noqa: BLE001 - any error is a refusal
            print(error)
            return False
        return True

    def refusal_reason(self, root, **how):
        """Return why this project refuses the bundle, or None."""
        try:
            signed = verify_bundle(self.bundle, read_public_key(self.public))
            require_matching_files(signed, digests_of(root, signed, **how))
        except BadSignatureError as error:
            return error.reason
        return None


@pytest.fixture
def oracle(tmp_path, model):
    return Oracle(tmp_path)


def swap_for_link(model):
    (model / "a.bin").rename(model.parent / "elsewhere")
    (model / "a.bin").symlink_to(model.parent / "elsewhere")


CHANGES = {
    "nothing": (lambda model: None, None),
    "an ignored file": (lambda model: (model / ".gitattributes").write_text("x"), None),
    "an empty folder": (lambda model: (model / "empty").mkdir(), None),
    "a changed byte": (lambda model: (model / "a.bin").write_bytes(b"A"), "tampered with: 'a.bin'"),
    "an extra file": (lambda model: (model / "x").write_bytes(b"x"), "not signed: 'x'"),
    "a hidden file": (lambda model: (model / ".x").write_bytes(b"x"), "not signed: '.x'"),
    "a git folder below": (
        lambda model: ((model / "d" / ".git").mkdir(parents=True), (model / "d/.git/x").touch()),
        "not signed: 'd/.git/x'",
    ),
    "a missing file": (lambda model: (model / "a.bin").unlink(), "missing: 'a.bin'"),
    "a renamed file": (
        lambda model: (model / "a.bin").rename(model / "c.bin"),
        "renamed: 'a.bin' to 'c.bin'",
    ),
    "a link in place of a file": (
        swap_for_link,
        (
            "'a.bin' is a link, which can be changed to lead to another file: "
            "allow links with follow_links"
        ),
    ),
    "a FIFO": (lambda model: os.mkfifo(model / "x"), "'x' is a FIFO"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_model_signing_gives_the_same_verdict(model, oracle, change):
    """
    For the signed folder, and after each change to it.
    """
    make, reason = CHANGES[change]
    oracle.sign(model)
    make(model)

    assert oracle.refusal_reason(model) == reason
    assert oracle.accepts(model) == (reason is None)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_keys_on_the_curves_of_model_signing_are_read(model, oracle, curve):
    """
    Both refuse the bundle of another key.
    """
    oracle.use(private_key(curve))
    oracle.sign(model)
    assert (oracle.refusal_reason(model), oracle.accepts(model)) == (None, True)

    oracle.use(private_key(curve))
    assert "signed with another key than sha256:" in oracle.refusal_reason(model)
    assert not oracle.accepts(model)


def test_model_signing_gives_the_same_verdict_on_links(model, oracle):
    """
    A bundle that was made through links is accepted if links are followed.
    """
    swap_for_link(model)
    oracle.sign(model, links=True)

    assert "'a.bin' is a link" in oracle.refusal_reason(model)
    assert oracle.refusal_reason(model, follow_links=True) is None
    assert (oracle.accepts(model), oracle.accepts(model, links=True)) == (False, True)


def test_model_signing_gives_the_same_verdict_on_a_single_file(tmp_path, oracle):
    """
    The bytes of the file are signed, and its name is not.
    """
    root = tmp_path / "one.gguf"
    root.write_bytes(b"x")
    oracle.sign(root)
    root = root.rename(tmp_path / "renamed.gguf")
    assert (oracle.refusal_reason(root), oracle.accepts(root)) == (None, True)

    root.write_bytes(b"y")
    assert oracle.refusal_reason(root) == "tampered with: 'renamed.gguf'"
    assert not oracle.accepts(root)


def test_git_paths_are_required_if_the_signer_included_them(model, oracle):
    """
    model-signing needs an option for that. This project reads it from the bundle.
    """
    (model / ".gitattributes").write_text("x")
    oracle.sign(model, git=False)
    assert (oracle.refusal_reason(model), oracle.accepts(model, git=False)) == (None, True)

    (model / ".gitattributes").write_text("y")
    assert oracle.refusal_reason(model) == "tampered with: '.gitattributes'"
    assert not oracle.accepts(model, git=False)


def test_other_digests_of_model_signing_are_refused(model, oracle):
    """
    They are not mistaken for SHA-256 digests of whole files.
    """
    for reason, config in {
        "its digests are 'blake2b'": oracle.config().use_file_serialization(
            hashing_algorithm="blake2"
        ),
        "its digests are 'blake3'": oracle.config().use_file_serialization(
            hashing_algorithm="blake3"
        ),
        "it signs 'shards'": oracle.config().use_shard_serialization(),
    }.items():
        oracle.sign(model, config)
        assert reason in oracle.refusal_reason(model)


def test_model_signing_accepts_the_bundles_of_these_tests(model, oracle):
    """
    The helper of the other tests writes the real format.
    """
    oracle.bundle.write_bytes(bundle(PRIVATE, statement(FILES)))

    assert (oracle.refusal_reason(model), oracle.accepts(model)) == (None, True)
