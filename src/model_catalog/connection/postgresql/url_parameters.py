"""Converts the parameters of a PostgreSQL URL to the types that its driver expects."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlencode

from model_catalog.connection.postgresql.encryption import require_encryption_parameters
from model_catalog.connection.postgresql.poolers import POOL_MODES, POOLER
from model_catalog.connection.target import DatabaseLocation
from model_catalog.errors import InvalidTargetError, shown

# The arguments that each driver gets unless the URL has them.
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "asyncpg": {"timeout": 10},
    "psycopg": {
        "connect_timeout": 10,
        # psycopg follows the encoding of the database. From SQL_ASCII it would return bytes, which
        # SQLAlchemy cannot read. asyncpg always asks for UTF-8.
        "client_encoding": "utf8",
        # Many firewalls forget a connection that was idle for five minutes.
        "keepalives_idle": 60,
    },
}


def _to_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _to_threshold(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _to_pool_mode(text: str) -> str:
    return {mode: mode for mode in POOL_MODES}[text]  # type: ignore[index]


# The parameters that a driver does not take as text, and what their values are. All others of
# psycopg are those of libpq, which are text.
_NUMBER: Final = (float, "a number")
_WHOLE_NUMBER: Final = (int, "a whole number")
_POOL_MODE: Final = (_to_pool_mode, " or ".join(POOL_MODES))
_CONVERTERS: Final[dict[str, dict[str, tuple[Callable[[str], Any], str]]]] = {
    "asyncpg": {
        POOLER: _POOL_MODE,
        "command_timeout": _NUMBER,
        "connect_timeout": _NUMBER,
        "direct_tls": (_to_bool, "true or false"),
        "max_cacheable_statement_size": _WHOLE_NUMBER,
        "max_cached_statement_lifetime": _WHOLE_NUMBER,
        "prepared_statement_cache_size": _WHOLE_NUMBER,
        "statement_cache_size": _WHOLE_NUMBER,
        "timeout": _NUMBER,
    },
    "psycopg": {
        POOLER: _POOL_MODE,
        "prepare_threshold": (_to_threshold, "a whole number or none"),
    },
}

# The parameters whose values are objects of Python, and those that the catalog sets itself.
_NOT_IN_A_URL: Final = {
    "asyncpg": (
        "async_creator_fn",
        "connection_class",
        "dsn",
        "loop",
        "prepared_statement_name_func",
        "record_class",
        "server_settings",
    ),
    "psycopg": ("async_creator_fn", "autocommit", "context", "cursor_factory", "row_factory"),
}

# Parameters of libpq that asyncpg takes only in a URL of its own.
_ONLY_IN_A_DSN: Final = frozenset(
    (
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
    )
)


def connect_arguments(location: DatabaseLocation) -> dict[str, Any]:
    """
    Return the arguments with which the driver connects, beside those that SQLAlchemy derives.

    Raises InvalidTargetError for a value of another type than the driver expects, and for a
    parameter that text cannot express. The message contains no value, which may be a secret.
    """
    driver = location.url.get_driver_name()
    query = location.url.query
    arguments = {name: value for name, value in _DEFAULTS[driver].items() if name not in query}
    for name, value in query.items():
        if name in _NOT_IN_A_URL[driver]:
            raise _invalid(location, name, "a URL cannot set it")
        if name not in _CONVERTERS[driver]:
            continue
        convert, kind = _CONVERTERS[driver][name]
        try:
            # A parameter that is given twice is a tuple.
            arguments[name] = convert(value)  # type: ignore[arg-type]
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            # Not chained, because the message quotes the value.
            raise _invalid(location, name, f"it must be {kind}, given once") from None
    require_encryption_parameters(location)
    return arguments


def asyncpg_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """
    Return the arguments of asyncpg for parameters of libpq, which has other names for some.

    Those about encryption mean the same to asyncpg, but it takes them only in a DSN.
    """
    arguments = {name: each for name, each in options.items() if name not in _ONLY_IN_A_DSN}
    if (name := arguments.pop("application_name", None)) is not None:
        arguments["server_settings"] = {"application_name": name}
    if (timeout := arguments.pop("connect_timeout", None)) is not None:
        arguments["timeout"] = timeout
    encryption = {name: options[name] for name in _ONLY_IN_A_DSN if options.get(name)}
    if encryption.get("sslrootcert") == "system":
        # The certificates of the operating system; with this libpq always checks the host's name.
        arguments["ssl"] = ssl.create_default_context()
    elif encryption:
        arguments["dsn"] = f"postgresql://?{urlencode(encryption)}"
    return arguments


def _invalid(location: DatabaseLocation, name: str, reason: str) -> InvalidTargetError:
    return InvalidTargetError(
        location.name, f"the parameter {shown(name)} of its URL is invalid: {reason}"
    )
