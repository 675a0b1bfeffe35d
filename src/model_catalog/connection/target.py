"""Which database a target names, and how it is called in a message."""

from __future__ import annotations

import importlib.util
import os
import re
from ast import literal_eval
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from model_catalog.errors import InvalidTargetError, shown

Target: TypeAlias = str | os.PathLike[str] | URL | AsyncEngine
"""A path, a URL as text, a URL object, or a host's own engine."""

ENVIRONMENT: Final = "MODEL_CATALOG_URL"
DEFAULT_PATH: Final = Path(".rbee", "models", "catalog.db")

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    # libpq's own parameters (sslmode, options) may stand in such a URL: psycopg takes them.
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
# What a driver calls a secret nobody can know beforehand; what is harmless can be listed.
_HARMLESS: Final = frozenset(
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
        "port",
        "ssl",
        "sslmode",
        "target_session_attrs",
        "timeout",
        "user",
    )
)


@dataclass(frozen=True, slots=True)
class DatabaseLocation:
    """Where a database is: its URL, and its name for people, without a password."""

    # A URL shows its parameters, of which one may be a password.
    url: URL = field(repr=False)
    name: str
    is_default: bool = False

    @property
    def path(self) -> Path | None:
        """The file, where it is one."""
        if self.url.get_backend_name() != "sqlite":
            return None
        return Path(self.url.database or "")


def masked(url: URL) -> str:
    """A URL as a message may show it: no password before the host, none among the parameters."""
    hidden = {key: value if key in _HARMLESS else "***" for key, value in url.query.items()}
    shown_url = url.set(query=hidden).render_as_string(hide_password=True)
    # A URL percent-encodes what stands for a secret, too.
    return shown_url.replace("%2A%2A%2A", "***")


def display_name(url: URL) -> str:
    """What a database is called in a message."""
    if url.get_backend_name() == "sqlite":
        return repr(url.database or ":memory:")
    return masked(url)


def database_file_of(name: str) -> Path | None:
    """The file that a database's name in a message stands for; None for a server's database."""
    return Path(literal_eval(name)) if name[:1] in ("'", '"') else None


def resolve_target(target: str | os.PathLike[str] | URL | None) -> DatabaseLocation:
    """
    The place a target names; `None` is `MODEL_CATALOG_URL`, or `.rbee/models/catalog.db` here.

    A text with `://` in it, or that begins with a driver's name and a colon, is a URL; any other is
    a path; `~` is the home directory. Looks at no disk and opens nothing.

    Raises InvalidTargetError.
    """
    if target is None:
        target = os.environ.get(ENVIRONMENT) or None
        if target is None:
            return _file(os.fspath(DEFAULT_PATH), is_default=True)
    if isinstance(target, URL):
        return _database(target)
    if isinstance(target, str) and ("://" in target or target.partition(":")[0] in _DRIVERS):
        return _database(_parsed(target))
    try:
        return _file(os.fsdecode(target))
    except TypeError as error:
        raise InvalidTargetError(shown(target), "give a path, a URL or an AsyncEngine") from error


def _parsed(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        # Not chained: of what stands where a port should, the error says what it is.
        pass
    raise _no_url(text)


def _no_url(text: str) -> InvalidTargetError:
    # The text may hold a password anywhere, so no more of it is shown than a driver's name.
    scheme = text.partition(":")[0]
    return InvalidTargetError(
        shown(f"{scheme}://..." if re.fullmatch(r"\w+(\+\w+)?", scheme) else "..."),
        "it is not a URL of the form driver://user:password@host/database, "
        "with what is special in a name or a password percent-encoded",
    )


def _file(path: str, *, is_default: bool = False) -> DatabaseLocation:
    if not path:
        raise InvalidTargetError("''", "it names no file: SQLite would forget it at once")
    if path == ":memory:":
        raise InvalidTargetError(
            "':memory:'",
            "every connection would have an empty one of its own: "
            "name a file in a temporary directory",
        )
    if "\0" in path:
        raise InvalidTargetError(shown(path), "it has a NUL in it")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidTargetError(
            shown(path), "it has a surrogate in it that stands for no byte: use os.fsdecode"
        ) from error
    full = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - keeps what Path would fold
    return DatabaseLocation(URL.create("sqlite+aiosqlite", database=full), repr(full), is_default)


def _database(url: URL) -> DatabaseLocation:
    driver = _DRIVERS.get(url.drivername)
    if driver == "sqlite+aiosqlite" and url == URL.create(url.drivername, database=url.database):
        return _file(url.database or "")
    if "@" in (url.host or "") or not _is_text(url):
        # A password with an @ in it reaches into the host.
        raise _no_url(url.drivername)
    if driver is None:
        raise InvalidTargetError(
            masked(url), f"its driver is none of {', '.join(sorted(set(_DRIVERS.values())))}"
        )
    if driver == "sqlite+aiosqlite":
        # `sqlite://relative` makes the file's name the host's; parameters would be ignored or,
        # worse, obeyed (mode=memory).
        raise InvalidTargetError(
            masked(url), "give the file alone, as a path or as sqlite:////absolute/path"
        )
    module = driver.partition("+")[2]
    if importlib.util.find_spec(module) is None:
        raise InvalidTargetError(
            masked(url), f"{module} is not installed: pip install 'model-catalog[postgresql]'"
        )
    url = url.set(drivername=driver)
    return DatabaseLocation(url, masked(url))


def _is_text(url: URL) -> bool:
    """Whether a driver can send every part of a URL: libpq ends one at a NUL, and goes on."""
    values = [url.username, url.password, url.host, url.database]
    values += [value for listed in url.normalized_query.values() for value in listed]
    text = "".join(filter(None, values))
    return "\0" not in text and text == text.encode("utf-8", "ignore").decode()
