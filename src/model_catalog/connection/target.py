"""Resolves a target (path, URL or environment variable) to a database URL; masks secrets."""

from __future__ import annotations

import importlib.util
import os
import re
from ast import literal_eval
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from sqlalchemy import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from model_catalog.connection.postgresql.server_hosts import normalize_hosts, split_hosts
from model_catalog.errors import InvalidTargetError, shown

Target: TypeAlias = str | os.PathLike[str] | URL | AsyncEngine
"""A path, a URL as text, a URL object, or a host's AsyncEngine."""

TARGET_VARIABLE: Final = "MODEL_CATALOG_URL"
"""The environment variable with the default target."""
SCHEMA_VARIABLE: Final = "MODEL_CATALOG_SCHEMA"
"""The environment variable with the schema of the default target."""
HOST_VARIABLE: Final = "MODEL_CATALOG_HOST"
"""The environment variable with the host of the default target."""
DEFAULT_PATH: Final = Path(".rbee", "models", "catalog.db")

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    # psycopg, because it accepts libpq's parameters, such as sslmode and options.
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
# PostgreSQL cuts longer names off.
_MAX_SCHEMA_BYTES: Final = 63
# The parameters that messages show. All others are masked, because any of them may be a secret.
_SHOWN_PARAMETERS: Final = frozenset(
    (
        "application_name",
        "channel_binding",
        "client_encoding",
        "command_timeout",
        "connect_timeout",
        "dbname",
        "gssencmode",
        "host",
        "hostaddr",
        "load_balance_hosts",
        "pooler",
        "port",
        "prepare_threshold",
        "prepared_statement_cache_size",
        "ssl",
        "sslmode",
        "statement_cache_size",
        "target_session_attrs",
        "timeout",
        "user",
    )
)

# What to do with an object that is not what a function takes, by its type.
_SYNCHRONOUS: Final = "it is synchronous: make an engine with create_async_engine()"
_OPEN: Final = "use `async with open_catalog(...)` to open it"
_ADVICE: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (type, "it is a class: give an object of it"),
    (
        AsyncEngine,
        "use `async with open_catalog(engine)`, or ModelCatalog(async_sessionmaker(engine))",
    ),
    ((async_sessionmaker, AsyncSession), "use ModelCatalog(...) over a host's sessions"),
    (async_scoped_session, "call it, and give the AsyncSession that it returns to ModelCatalog()"),
    (AsyncConnection, "use ModelCatalog(AsyncSession(connection)); upgrade() takes its engine"),
    (Connection, "use upgrade_connection(connection) to upgrade; other calls need an AsyncEngine"),
    ((Engine, Session, sessionmaker, scoped_session), _SYNCHRONOUS),
    ((str, bytes, os.PathLike, URL, type(None)), _OPEN),
)


@dataclass(frozen=True, slots=True)
class DatabaseLocation:
    """The URL of a database, and its name in messages, without secrets."""

    # Not in the repr, because a URL's parameters may contain a password.
    url: URL = field(repr=False)
    name: str
    is_default: bool = False

    @property
    def path(self) -> Path | None:
        """The path of a SQLite file; None for PostgreSQL."""
        if self.url.get_backend_name() != "sqlite":
            return None
        return Path(self.url.database or "")


def mask_secrets(url: URL) -> str:
    """Return a URL as text, with its password and all parameters that may be secret masked."""
    shown_query = {
        key: value if key in _SHOWN_PARAMETERS else "***" for key, value in url.query.items()
    }
    text = url.set(query=shown_query).render_as_string(hide_password=True)
    before, mark, query = text.partition("?")
    # The mask and the colon in `host=a:5432` are percent-encoded.
    query = query.replace("%2A%2A%2A", "***").replace("%3A", ":").replace("%2C", ",")
    return before + mark + query


def display_name(url: URL, schema: str | None = None) -> str:
    """Return a database's name for messages: a quoted path, or a URL without secrets."""
    if url.get_backend_name() == "sqlite":
        return repr(os.fspath(sqlite_path(url) or ":memory:"))
    return name_with_schema(mask_secrets(url), schema)


def name_with_schema(name: str, schema: str | None) -> str:
    """Return the name of a database on a server, and of the schema if one was given."""
    return name if schema is None else f"{name} (schema {shown(schema)})"


def default_schema(target: object) -> str | None:
    """Return the schema in `MODEL_CATALOG_SCHEMA`, which belongs to the default target only."""
    return (os.environ.get(SCHEMA_VARIABLE) or None) if target is None else None


def default_host(target: object) -> str | None:
    """Return the host in `MODEL_CATALOG_HOST`, which belongs to the default target only."""
    return (os.environ.get(HOST_VARIABLE) or None) if target is None else None


def validate_schema(schema: str | None, dialect: str, name: str) -> None:
    """
    Raise InvalidTargetError for a schema that cannot contain a catalog; None is always valid.

    `name` is the name of the database in the message.
    """
    if schema is None:
        return
    if dialect == "sqlite":
        raise InvalidTargetError(
            name,
            f"SQLite has no schema {shown(schema)}, and a catalog cannot be in an attached "
            "database: omit the schema, and give the catalog a file of its own",
        )
    if problem := _schema_problem(schema):
        raise InvalidTargetError(name, f"the schema {shown(schema)} {problem}")


def _schema_problem(schema: object) -> str | None:
    if not isinstance(schema, str):
        return "is not a text"
    size_bytes = len(schema.encode(errors="surrogatepass"))
    if not 1 <= size_bytes <= _MAX_SCHEMA_BYTES:
        return f"has {size_bytes} bytes; a name has 1 to {_MAX_SCHEMA_BYTES}"
    if "\0" in schema or schema != schema.encode("utf-8", "ignore").decode():
        return "contains a NUL or a surrogate"
    if schema.startswith("pg_") or schema == "information_schema":
        return "is reserved for PostgreSQL: name another one"
    return None


def sqlite_path(url: URL) -> Path | None:
    """
    Return the path in the URL of a SQLite engine; None for a database in memory.

    The URL may contain a URI of SQLite, as `sqlite+aiosqlite:///file:/data/host.db?uri=true`.
    """
    name = url.database or ""
    if not name.startswith("file:"):
        return Path(name) if name not in ("", ":memory:") else None
    uri = urlsplit(name)
    mode = url.query.get("mode") or dict(parse_qsl(uri.query)).get("mode")
    path = os.fsdecode(unquote_to_bytes(uri.path))
    return None if mode == "memory" or path in ("", ":memory:") else Path(path)


def database_file_of(name: str) -> Path | None:
    """Return the path in a database's `display_name`; None if it is a URL."""
    return Path(literal_eval(name)) if name[:1] in ("'", '"') else None


def resolve_target(target: str | os.PathLike[str] | URL | None) -> DatabaseLocation:
    """
    Return the database that a target names. Does not access the disk or the network.

    `None` means `MODEL_CATALOG_URL`, or `.rbee/models/catalog.db` in the working directory. Text is
    a URL if it contains `://` or starts with a driver's name and a colon. Other text is a path, and
    `~` in a path is the user's home directory.

    Raises InvalidTargetError.
    """
    if target is None:
        target = os.environ.get(TARGET_VARIABLE) or None
        if target is None:
            return _from_path(os.fspath(DEFAULT_PATH), is_default=True)
    if isinstance(target, URL):
        return _from_url(target)
    if isinstance(target, str) and ("://" in target or target.partition(":")[0] in _DRIVERS):
        return _from_url(*_parse_url(target))
    try:
        path = os.fsdecode(target)
    except TypeError as error:
        raise wrong_object(target) from error
    return _from_path(path)


def wrong_object(value: object) -> InvalidTargetError:
    """
    Return the error for an object that a function does not take, with what to give instead.

    The message contains no URL, which may contain a password.
    """
    advice = next(
        (text for kind, text in _ADVICE if isinstance(value, kind)),
        "give a path, a URL or an AsyncEngine to open_catalog(), "
        "or an async_sessionmaker or an AsyncSession to ModelCatalog()",
    )
    if isinstance(value, type):
        name = f"the class {value.__name__}"
    else:
        name = "None" if value is None else f"an object of type {type(value).__name__}"
    return InvalidTargetError(name, advice)


def _parse_url(text: str) -> tuple[URL, tuple[str, ...]]:
    """Return a URL, and the hosts if it lists several before its database."""
    try:
        without_hosts, hosts = split_hosts(text)
        return make_url(without_hosts), hosts
    except (ArgumentError, ValueError):
        # Not chained, because the message of an invalid port may quote a password.
        pass
    raise _not_a_url(text)


def _not_a_url(text: str) -> InvalidTargetError:
    # The text may contain a password anywhere, so only the driver's name is shown.
    scheme = text.partition(":")[0]
    return InvalidTargetError(
        shown(f"{scheme}://..." if re.fullmatch(r"\w+(\+\w+)?", scheme) else "..."),
        "it is not a URL of the form driver://user:password@host/database; "
        "percent-encode special characters in the name and the password",
    )


def _from_path(path: str, *, is_default: bool = False) -> DatabaseLocation:
    if not path:
        raise InvalidTargetError(
            "''", "the path is empty; SQLite would use a temporary database and delete it on close"
        )
    if path == ":memory:":
        raise InvalidTargetError(
            "':memory:'",
            "every connection would have its own empty database; "
            "use a file in a temporary directory",
        )
    if "\0" in path:
        raise InvalidTargetError(shown(path), "the path contains a NUL character")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidTargetError(
            shown(path),
            "the path contains a surrogate that does not stand for a byte; decode it with "
            "os.fsdecode()",
        ) from error
    full = absolute_target(path)
    return DatabaseLocation(URL.create("sqlite+aiosqlite", database=full), repr(full), is_default)


def absolute_target(path: str) -> str:
    """
    Return the absolute form of a path, which may begin with `~`.

    Raises InvalidTargetError for a relative path if the working directory no longer exists.
    """
    try:
        # pathlib would drop "." and "//".
        return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
    except OSError as error:
        # Its patterns take 25 ms to compile, and only a scan of files needs them.
        from model_catalog.files.file_names import WORKING_DIRECTORY_GONE  # noqa: PLC0415

        raise InvalidTargetError(repr(path), WORKING_DIRECTORY_GONE) from error


def _from_url(url: URL, hosts: tuple[str, ...] = ()) -> DatabaseLocation:
    driver = _DRIVERS.get(url.drivername)
    if driver == "sqlite+aiosqlite" and url == URL.create(url.drivername, database=url.database):
        return _from_path(url.database or "")
    if any("@" in host for host in (url.host or "", *hosts)) or not _is_valid_text(url):
        # An unencoded "@" in the password moves the rest of the password into the host.
        raise _not_a_url(url.drivername)
    if driver is None:
        known = ", ".join(sorted(set(_DRIVERS.values())))
        raise InvalidTargetError(mask_secrets(url), f"its driver is not one of {known}")
    if driver == "sqlite+aiosqlite":
        # SQLAlchemy takes the name in `sqlite://relative` as a host. Parameters would be ignored,
        # or change the meaning (mode=memory).
        raise InvalidTargetError(
            mask_secrets(url), "give only a file, as a path or as sqlite:////absolute/path"
        )
    module = driver.partition("+")[2]
    if importlib.util.find_spec(module) is None:
        raise InvalidTargetError(
            mask_secrets(url), f"{module} is not installed: pip install 'model-catalog[postgresql]'"
        )
    try:
        url = normalize_hosts(url.set(drivername=driver), hosts)
    except ValueError as error:
        raise InvalidTargetError(mask_secrets(url), f"{error}") from error
    return DatabaseLocation(url, mask_secrets(url))


def _is_valid_text(url: URL) -> bool:
    """Return whether every part of a URL is UTF-8 without a NUL, at which libpq would stop."""
    parts = [url.username, url.password, url.host, url.database]
    parts += [value for values in url.normalized_query.values() for value in values]
    text = "".join(filter(None, parts))
    return "\0" not in text and text == text.encode("utf-8", "ignore").decode()
