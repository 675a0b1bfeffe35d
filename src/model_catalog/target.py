"""Which database a target names, and how it is called in a message."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
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
_SECRET: Final = ("pass", "secret", "token", "key")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a database is: its URL, and its name for people, without a password."""

    url: URL
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
    hidden = {
        key: "***" if any(word in key.lower() for word in _SECRET) else value
        for key, value in url.query.items()
    }
    return url.set(query=hidden).render_as_string(hide_password=True)


def name_of(url: URL) -> str:
    """What a database is called in a message."""
    if url.get_backend_name() == "sqlite":
        return shown(url.database or ":memory:")
    return masked(url)


def locate(target: str | os.PathLike[str] | URL | None) -> Place:
    """
    The place a target names; `None` is `MODEL_CATALOG_URL`, or `.rbee/models/catalog.db` here.

    A text with `://` in it is a URL, any other is a path; `~` is the home directory. Looks at
    no disk and opens nothing. Raises InvalidTargetError.
    """
    if target is None:
        target = os.environ.get(ENVIRONMENT) or None
        if target is None:
            return _file(os.fspath(DEFAULT_PATH), is_default=True)
    if isinstance(target, URL):
        return _database(target)
    if isinstance(target, str) and "://" in target:
        try:
            url = make_url(target)
        except (ArgumentError, ValueError) as error:
            # The text may hold a password anywhere, so none of it is shown.
            scheme = shown(target.partition("://")[0] + "://...")
            raise InvalidTargetError(
                scheme, "it is not a URL of the form driver://user@host/database"
            ) from error
        return _database(url)
    if not isinstance(target, str | os.PathLike):
        raise InvalidTargetError(shown(target), "give a path, a URL or an AsyncEngine")
    path = os.fspath(target)
    return _file(os.fsdecode(path) if isinstance(path, bytes) else path)


def _file(path: str, *, is_default: bool = False) -> Place:
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
    full = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - keeps what Path would fold
    return Place(URL.create("sqlite+aiosqlite", database=full), shown(full), is_default)


def _database(url: URL) -> Place:
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise InvalidTargetError(
            masked(url), f"its driver is none of {', '.join(sorted(set(_DRIVERS.values())))}"
        )
    if driver == "sqlite+aiosqlite":
        if url.query or url.host:
            # `sqlite://relative` makes the file's name the host's; parameters would be ignored or,
            # worse, obeyed (mode=memory).
            raise InvalidTargetError(
                masked(url), "give the file alone, as a path or as sqlite:////absolute/path"
            )
        return _file(url.database or "")
    module = driver.partition("+")[2]
    if importlib.util.find_spec(module) is None:
        raise InvalidTargetError(
            masked(url), f"{module} is not installed: pip install 'model-catalog[postgresql]'"
        )
    url = url.set(drivername=driver)
    return Place(url, masked(url))
