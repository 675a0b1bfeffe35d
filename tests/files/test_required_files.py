"""Which files at a path a signature has to be over, and what model-signing says of them."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from signed_bundles import bundle, digests, pem, private_key, private_pem, statement

from model_catalog import BadLayoutError, BadSignatureError, ProtectedFileError
from model_catalog.files import safe_open
from model_catalog.files.digest import file_digest
from model_catalog.files.signing import required_files as covered_room
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
    """A folder as FILES has it."""
    root = tmp_path / "m"
    root.mkdir()
    for name, content in {"a.bin": b"a", "b.bin": b"b", "config.json": b"{}"}.items():
        (root / name).write_bytes(content)
    return root


def found_in(root, signed, **how):
    """The digests of all that the signature has to be over, as a caller gets them."""
    at = root if root.is_dir() else root.parent
    return {path: file_digest(at / path) for path in required_file_paths(root, signed, **how)}


def test_every_file_has_to_be_signed_but_what_was_left_out(model):
    """
    Hidden files and unfinished downloads can be loaded too; the bundle is known by its identity.
    """
    (model / "other.sig").write_bytes(bundle(PRIVATE, statement(FILES)))
    signed = verify_bundle(model / "other.sig", KEY)
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("x")
    (model / "empty").mkdir()
    assert required_file_paths(model, signed) == ("a.bin", "b.bin", "config.json")
    require_matching_files(signed, found_in(model, signed))

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


def test_the_paths_come_in_the_order_of_their_bytes(model, signed):
    """
    Whatever order the disk has them in, and also where they are not UTF-8.
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


def test_a_single_file_is_covered_by_its_name(model, signed):
    """
    Whatever lies beside it.
    """
    assert required_file_paths(model / "a.bin", signed) == ("a.bin",)


def test_what_no_signature_can_be_over_is_named(model, signed):
    """
    Links, unless they are followed on purpose, and then those to folders; FIFOs; and the database.
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


def test_a_folder_without_end_is_no_model(model, signed, monkeypatch):
    """
    It is given up on as it is by `members`.
    """
    monkeypatch.setattr(covered_room, "MAX_ENTRIES", 2)
    with pytest.raises(BadLayoutError, match="more than 2 files"):
        required_file_paths(model, signed)


class Oracle:
    """The package that defines the format, as its command line calls it."""

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
        except Exception as error:  # noqa: BLE001 - whatever it raises is a refusal
            print(error)
            return False
        return True

    def our_reason(self, root, **how):
        """Why we refuse it, or None."""
        try:
            signed = verify_bundle(self.bundle, read_public_key(self.public))
            require_matching_files(signed, found_in(root, signed, **how))
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
    "what is left out": (lambda model: (model / ".gitattributes").write_text("x"), None),
    "an empty folder": (lambda model: (model / "empty").mkdir(), None),
    "a byte": (lambda model: (model / "a.bin").write_bytes(b"A"), "tampered with: 'a.bin'"),
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
    "a link in its place": (
        swap_for_link,
        "'a.bin' is a link, which can be turned to another file: have links followed on purpose",
    ),
    "a FIFO": (lambda model: os.mkfifo(model / "x"), "'x' is a FIFO"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_model_signing_gives_the_same_verdict(model, oracle, change):
    """
    On the folder it signed, and after each change to it.
    """
    make, reason = CHANGES[change]
    oracle.sign(model)
    make(model)

    assert oracle.our_reason(model) == reason
    assert oracle.accepts(model) == (reason is None)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_model_signings_keys_are_read(model, oracle, curve):
    """
    On each of its curves; and the bundle of one key is refused by both for another.
    """
    oracle.use(private_key(curve))
    oracle.sign(model)
    assert (oracle.our_reason(model), oracle.accepts(model)) == (None, True)

    oracle.use(private_key(curve))
    assert "signed with another key than sha256:" in oracle.our_reason(model)
    assert not oracle.accepts(model)


def test_model_signing_agrees_on_links(model, oracle):
    """
    What was signed through links is accepted through links, where they are followed on purpose.
    """
    swap_for_link(model)
    oracle.sign(model, links=True)

    assert "'a.bin' is a link" in oracle.our_reason(model)
    assert oracle.our_reason(model, follow_links=True) is None
    assert (oracle.accepts(model), oracle.accepts(model, links=True)) == (False, True)


def test_model_signing_agrees_on_a_single_file(tmp_path, oracle):
    """
    Its name is not signed, its bytes are.
    """
    root = tmp_path / "one.gguf"
    root.write_bytes(b"x")
    oracle.sign(root)
    root = root.rename(tmp_path / "renamed.gguf")
    assert (oracle.our_reason(root), oracle.accepts(root)) == (None, True)

    root.write_bytes(b"y")
    assert oracle.our_reason(root) == "tampered with: 'renamed.gguf'"
    assert not oracle.accepts(root)


def test_git_paths_are_signed_where_the_signer_says_so(model, oracle):
    """
    model-signing has to be told of it again; we are told by the bundle.
    """
    (model / ".gitattributes").write_text("x")
    oracle.sign(model, git=False)
    assert (oracle.our_reason(model), oracle.accepts(model, git=False)) == (None, True)

    (model / ".gitattributes").write_text("y")
    assert oracle.our_reason(model) == "tampered with: '.gitattributes'"
    assert not oracle.accepts(model, git=False)


def test_model_signings_other_digests_are_refused(model, oracle):
    """
    They are not misread for those of whole files with SHA-256.
    """
    for reason, config in {
        "its digests are 'blake2b'": oracle.config().use_file_serialization(
            hashing_algorithm="blake2"
        ),
        "its digests are 'blake3'": oracle.config().use_file_serialization(
            hashing_algorithm="blake3"
        ),
        "it is over 'shards'": oracle.config().use_shard_serialization(),
    }.items():
        oracle.sign(model, config)
        assert reason in oracle.our_reason(model)


def test_a_bundle_of_the_tests_is_one_of_model_signings(model, oracle):
    """
    What the other tests here are made with is no format of their own.
    """
    oracle.bundle.write_bytes(bundle(PRIVATE, statement(FILES)))

    assert (oracle.our_reason(model), oracle.accepts(model)) == (None, True)
