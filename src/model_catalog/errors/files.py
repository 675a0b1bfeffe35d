"""Exceptions about files on the disk: headers, layouts, signatures."""

from __future__ import annotations

from model_catalog.errors.base import CatalogError


class NotAFileError(CatalogError):
    """A path names a directory, a FIFO or a device, which was not read: `path` and `found`."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(f"{path!r} is {found}: name a regular file")
        self.path = path
        self.found = found


class ProtectedFileError(CatalogError):
    """A path names the catalog's own database, which was not opened: `path`."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path!r} is the catalog's own database and was not opened, because closing it would "
            f"release SQLite's locks on it: leave it out"
        )
        self.path = path


class FileChangedError(CatalogError):
    """The file changed while it was being read: `path` and `reason`. Try again."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path!r} changed while it was read: {reason}. Try again when no program writes to it"
        )
        self.path = path
        self.reason = reason


class BadHeaderError(CatalogError, ValueError):
    """The header of a file is damaged, truncated or malicious: `path` and `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the header of {path!r} cannot be read: {reason}")
        self.path = path
        self.reason = reason


class HeaderLimitError(BadHeaderError):
    """
    A header was not read, because it exceeds a limit of this package: `path` and `reason`.

    The file need not be damaged. Nothing is known about its completeness.
    """


class UnknownFormatError(BadHeaderError):
    """
    The file has another format than those that are read: `path` and `reason`.

    `format` is its name, as in `onnx` or `ctranslate2`, or None if it is not known.
    """

    def __init__(self, path: str, reason: str, format_: str | None = None) -> None:
        super().__init__(path, reason)
        self.format = format_


class PlaceholderError(BadHeaderError):
    """
    The file holds a pointer of Git LFS, or a web page, in place of its content.

    `path`, `reason`, and the `size_bytes` and `digest` of the content, which a pointer names; None
    for a web page.
    """

    def __init__(
        self, path: str, reason: str, size_bytes: int | None = None, digest: str | None = None
    ) -> None:
        super().__init__(path, reason)
        self.size_bytes = size_bytes
        self.digest = digest


class BadLayoutError(CatalogError, ValueError):
    """A folder has too many files to be one model: `path` and `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path!r} is not a single model: {reason}. Name one of its subfolders")
        self.path = path
        self.reason = reason


class InvalidKeyError(CatalogError, ValueError):
    """A value is not a public key that can verify a signature: `source` and `reason`."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(
            f"{source} cannot be used as a public key: {reason}. Give the signer's public key in "
            f"PEM format, on the curve P-256, P-384 or P-521"
        )
        self.source = source
        self.reason = reason


class BadSignatureError(CatalogError, ValueError):
    """A signature is altered, of another key, or over other files: `path` and `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the signature {path!r} is not valid: {reason}")
        self.path = path
        self.reason = reason
