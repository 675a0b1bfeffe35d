"""Checks the parameters of a PostgreSQL URL about encryption, the same for both drivers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from model_catalog.connection.target import DatabaseLocation
from model_catalog.errors import InvalidTargetError, shown

_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_CHECK_CERTIFICATE: Final = ("verify-ca", "verify-full")
_FILES: Final = ("sslcert", "sslcrl", "sslkey", "sslrootcert")
_OF_SYSTEM: Final = "system"


def require_encryption_parameters(location: DatabaseLocation) -> None:
    """
    Raise InvalidTargetError for a parameter about encryption that would be ignored or refused.

    Without this, libpq ignores a certificate that does not exist if the mode is `require`.
    """
    query = location.url.query
    # asyncpg's own name for it.
    is_asyncpg = location.url.get_driver_name() == "asyncpg"
    name = "ssl" if is_asyncpg and "sslmode" not in query else "sslmode"
    mode = query.get(name)
    if mode is not None and mode not in _MODES:
        raise _invalid(location, name, f"it must be one of {', '.join(_MODES)}, given once")
    root = query.get("sslrootcert")
    if root == _OF_SYSTEM and mode not in (None, "verify-full"):
        raise _invalid(location, "sslrootcert", "with 'system', sslmode must be verify-full")
    for each in _FILES:
        value = query.get(each)
        if (
            value is not None
            and value != _OF_SYSTEM
            and not (isinstance(value, str) and Path(value).is_file())
        ):
            raise _invalid(location, each, "it must be the path of a file that exists, given once")
    if mode in _CHECK_CERTIFICATE and root is None and not _has_default_root():
        raise _invalid(
            location, name, "to check the certificate, add sslrootcert=PATH of the authority's"
        )


def _has_default_root() -> bool:
    """Return whether a certificate of an authority lies where both drivers look for it."""
    if "PGSSLROOTCERT" in os.environ:
        return True
    try:
        return (Path.home() / ".postgresql" / "root.crt").is_file()
    except RuntimeError:
        return False


def _invalid(location: DatabaseLocation, name: str, reason: str) -> InvalidTargetError:
    return InvalidTargetError(
        location.name, f"the parameter {shown(name)} of its URL is invalid: {reason}"
    )
