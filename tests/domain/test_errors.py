"""The exceptions: their base, their attributes, their messages, and pickling."""

import pickle

import pytest

import model_catalog
from model_catalog import CatalogError, TooManyMissingError, errors
from model_catalog.errors import shown

TARGET = "'/c.db'"
EXAMPLES = [
    errors.BadHeaderError("/m.gguf", "its length is wrong"),
    errors.BadLayoutError("/m", "it contains more than 100,000 files"),
    errors.BadSignatureError("/m.sig", "another key signed it"),
    errors.CatalogBusyError(TARGET, "the database is locked", 1.5),
    errors.CatalogClosedError(TARGET),
    errors.CatalogCorruptError(TARGET, "file is not a database", "/c.db.backup"),
    errors.CatalogInUseError(TARGET, "process 7 has it open"),
    errors.CatalogReadOnlyError(TARGET, "attempt to write a readonly database"),
    errors.CatalogReplacedError(TARGET, "its file was removed"),
    errors.CatalogUnavailableError(TARGET, "no answer in time"),
    errors.CatalogUnavailableError(TARGET, "no answer in time", outcome_unknown=True),
    errors.DigestMismatchError("/m.gguf", "sha256:aa", "sha256:bb"),
    errors.FileChangedError("/m.gguf", "its size changed"),
    errors.ForeignDatabaseError(TARGET, "the tables 'a', 'b' and no catalog"),
    errors.HeaderLimitError("/m.gguf", "not read (limit): it declares 2,000,000 tensors"),
    errors.HostHasModelsError("gpu-07", 2),
    errors.HostNotFoundError("gpu-07"),
    errors.InvalidImportError(3, "it is not a JSON object"),
    errors.InvalidKeyError("'key.pem'", "it is an RSA key"),
    errors.InvalidModelError("size_bytes", -1, "is out of range: give 0 to 2**63 - 1"),
    errors.InvalidTargetError(TARGET, "it is a directory"),
    errors.ModelInUseError("placements", "hf:m"),
    errors.ModelInUseError(None, "hf:m", ["process 7 on host"]),
    errors.ClaimLostError(),
    errors.DeletionRefusedError("hf:m", "it is pinned"),
    errors.DownloadFailedError("hf:m", 3, "the network is down"),
    errors.DownloadTimeoutError("hf:m", 3.5, "its own download had not ended"),
    errors.HubDownloadError("hf:m", "the repository does not exist", "Check the name"),
    errors.IncompleteDownloadError("hf:m", "/m", ["missing: a"]),
    errors.NotEnoughSpaceError("/models", 10, 3),
    errors.ModelNotFoundError("m", "hf", "v1"),
    errors.MissingPrivilegeError(TARGET, "permission denied for table models"),
    errors.NotAFileError("/m", "a directory"),
    errors.NotInstalledError("cryptography", "signing"),
    errors.PlaceholderError("/m.bin", "it is a Git LFS pointer to sha256:aa", 9, "sha256:aa"),
    errors.ProtectedFileError("/c.db"),
    errors.SchemaOutOfDateError(TARGET, None, "0015"),
    errors.SchemaTooNewError(TARGET, "0099", "0015"),
    errors.StoppedError("the scan was stopped"),
    errors.StorageFullError(TARGET, "database or disk is full"),
    errors.TooManyMissingError("/mnt", 12, 15),
    errors.TransactionError("the transaction has ended"),
    errors.UnknownFormatError("/m.bin", "it is empty"),
    errors.UpgradeFailedError(TARGET, "0015", "no such column: x"),
    errors.WrongLoopError(TARGET, "another event loop", "loop"),
]


def public_attributes(error: CatalogError) -> dict:
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}


def test_there_is_an_example_of_every_public_exception():
    """The other tests cover all exceptions, and each exception of the package errors is public."""
    defined = {each for each in vars(errors).values() if isinstance(each, type)}
    classes = {each for each in defined if issubclass(each, CatalogError)} - {CatalogError}
    public = {
        getattr(model_catalog, name) for name in model_catalog.__all__ if name[-5:] == "Error"
    }

    assert {type(error) for error in EXAMPLES} == classes == public - {CatalogError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_exception_is_a_catalog_error_with_its_facts_in_the_message(error):
    """A caller that logs only the message loses no text that is in an attribute."""
    assert isinstance(error, CatalogError)
    message = str(error)
    for name, value in public_attributes(error).items():
        if isinstance(value, str):
            assert value in message, name


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_exception_is_the_same_after_pickling(error):
    """A worker process can return it."""
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_message_is_short_and_has_no_trailing_period(error):
    """It is printed after `error: ` and in one log line."""
    assert str(error).isprintable()
    assert not str(error).endswith(".")
    assert len(str(error)) < 300


def test_the_old_name_of_a_count_is_still_there():
    """`held_count` was the name of `model_count` in release 0.1.0."""
    assert TooManyMissingError("/mnt", 12, 15).held_count == 15


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1bb", "'a\\x1bb'"),
        ("x" * 81, f"'{'x' * 80}'... (81 long)"),
        (10**5000, "<int>"),
        (list(range(1000)), f"{str(list(range(1000)))[:160]}..."),
    ],
    ids=["control character", "long text", "long number", "long list"],
)
def test_a_value_is_escaped_and_cut_in_a_message(value, text):
    """An error message is readable, whatever the value was."""
    assert shown(value) == text
