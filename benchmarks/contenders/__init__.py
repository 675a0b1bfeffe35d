"""Who is measured: one class each, all with the same verbs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from benchmarks.harness.models_table import Registration


class Contender(Protocol):
    """
    A catalog as a program would have it that uses one library as its documentation shows.

    `open` is given a file at head, or the URL of such a database. A contender may have more verbs
    than these; one that lacks the verb of a work is left out of it.
    """

    async def open(self, target: str, durability: str) -> None: ...
    async def close(self) -> None: ...
    async def find(self, reference: str, provider: str) -> Any:
        """The model of this reference that has no version, with all its columns, or None."""

    async def register(self, entry: Registration) -> None: ...
    async def register_many(self, entries: list[Registration]) -> None:
        """All in one transaction."""

    async def list(self) -> Any:
        """Every model, the newest first."""

    async def page(self, architecture: str, limit: int) -> Any:
        """The largest models of an architecture."""

    async def total(self) -> int: ...
    async def remove(self, reference: str, provider: str) -> bool: ...


@dataclass(frozen=True)
class ContenderSpec:
    """A contender by name: where its class is, what has to be installed, and what kind it is."""

    name: str
    place: str
    needs: tuple[str, ...] = ()
    kind: str = "peer"
    """`limit`: a driver; `ours`; or `peer`."""
    blocks: bool = False
    """Whether a call holds up the event loop to its end."""
    database: str = "sqlite"
    only: tuple[str, ...] = ()
    """The beginnings of the names of the works that it is there for; none is all."""

    def takes(self, work: str) -> bool:
        """Whether it has anything of its own to say about a work."""
        return not self.only or work.startswith(self.only)

    def can(self, verb: str) -> bool:
        return hasattr(self._class(), verb)

    @property
    def missing(self) -> str | None:
        """What is not installed of what it needs."""
        for name in self.needs:
            if importlib.util.find_spec(name) is None:
                return name
        if self.kind != "ours":
            # Not imported before it is called: some libraries warn of what they import themselves.
            return None
        available = getattr(self._class(), "available", None)
        return None if available is None or available() else "such way in this version"

    def make(self) -> Contender:
        contender: Contender = self._class()()
        return contender

    def _class(self) -> Any:
        module, name = self.place.split(":")
        return getattr(importlib.import_module(f"benchmarks.contenders.{module}"), name)


SQLITE_BASELINE: Final = "aiosqlite"
"""What everything on SQLite is held against: one connection, as its documentation shows it."""
POSTGRES_BASELINE: Final = "asyncpg"

CONTENDERS: Final = (
    ContenderSpec(SQLITE_BASELINE, "sqlite_drivers:Aiosqlite", kind="limit"),
    ContenderSpec("sqlite3", "sqlite_drivers:Sqlite3", kind="limit", blocks=True),
    ContenderSpec(
        "aiosqlite, a connection a call", "sqlite_drivers:AiosqlitePerCall", kind="limit"
    ),
    ContenderSpec("ours", "model_catalog:Ours", kind="ours"),
    ContenderSpec(
        "ours, inline reads", "model_catalog:OursInline", kind="ours", only=("find", "mixed")
    ),
    ContenderSpec("ours, host's sessions", "model_catalog:OursInHost", kind="ours"),
    ContenderSpec(
        "ours, plain rows",
        "model_catalog:OursRows",
        kind="ours",
        only=("list", "stream", "memory", "10k in bulk"),
    ),
    ContenderSpec("SQLAlchemy Core", "sqlalchemy:Core"),
    ContenderSpec("SQLAlchemy ORM", "sqlalchemy:Orm"),
    ContenderSpec("SQLAlchemy ORM and Alembic", "alembic_upgrade:OrmAndAlembic", only=("open",)),
    ContenderSpec(
        "Advanced Alchemy", "advanced_alchemy:AdvancedAlchemy", needs=("advanced_alchemy",)
    ),
    ContenderSpec("SQLModel", "sqlmodel:SqlModel", needs=("sqlmodel",)),
    ContenderSpec("Tortoise", "tortoise:Tortoises", needs=("tortoise",)),
    ContenderSpec("Piccolo", "piccolo:Piccolos", needs=("piccolo",)),
    ContenderSpec("peewee", "peewee:Peewees", needs=("peewee",), blocks=True),
    ContenderSpec(
        POSTGRES_BASELINE,
        "asyncpg:Asyncpg",
        needs=("asyncpg",),
        kind="limit",
        database="postgresql",
    ),
    ContenderSpec(
        "psycopg", "psycopg:Psycopg", needs=("psycopg_pool",), kind="limit", database="postgresql"
    ),
    ContenderSpec(
        "ours, asyncpg",
        "model_catalog:Ours",
        needs=("asyncpg",),
        kind="ours",
        database="postgresql",
    ),
    ContenderSpec(
        "ours, psycopg",
        "model_catalog:OursPsycopg",
        needs=("psycopg",),
        kind="ours",
        database="postgresql",
    ),
    ContenderSpec(
        "SQLAlchemy ORM, asyncpg", "sqlalchemy:Orm", needs=("asyncpg",), database="postgresql"
    ),
    ContenderSpec(
        "Advanced Alchemy, asyncpg",
        "advanced_alchemy:AdvancedAlchemy",
        needs=("advanced_alchemy", "asyncpg"),
        database="postgresql",
    ),
)


def contender_spec(name: str) -> ContenderSpec:
    """The one of this name."""
    return next(each for each in CONTENDERS if each.name == name)


def available_contenders(database: str) -> tuple[list[ContenderSpec], list[str]]:
    """Who can run on a database, and why the others cannot, in words."""
    present: list[ContenderSpec] = []
    absent: list[str] = []
    for each in CONTENDERS:
        if each.database != database:
            continue
        missing = each.missing
        if missing is None:
            present.append(each)
        else:
            absent.append(f"{each.name} is left out: there is no {missing}")
    return present, absent


def names(entrants: Iterable[ContenderSpec]) -> list[str]:
    return [each.name for each in entrants]
