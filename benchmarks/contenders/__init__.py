"""The contenders: one class for each library, all with the methods of `Contender`."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from benchmarks.harness.models_table import Registration


class Contender(Protocol):
    """
    A catalog written with one library, as the library's documentation recommends.

    `open` gets the path of a SQLite file or the URL of a PostgreSQL database; both are at head. A
    contender may have more methods. A contender without the method of a workload is left out of it.
    """

    async def open(self, target: str, durability: str) -> None: ...
    async def close(self) -> None: ...
    async def find(self, reference: str, provider: str) -> Any:
        """The model with this reference and no version, with all its columns, or None."""

    async def register(self, entry: Registration) -> None: ...
    async def register_many(self, entries: list[Registration]) -> None:
        """Register all of them in one transaction."""

    async def list(self) -> Any:
        """Every model, newest `downloaded_at` first."""

    async def page(self, architecture: str, limit: int) -> Any:
        """The largest models of an architecture."""

    async def total(self) -> int:
        """The sum of `size_bytes`."""
        ...

    async def remove(self, reference: str, provider: str) -> bool:
        """Delete a model. True if it existed."""
        ...


@dataclass(frozen=True)
class Installation:
    """A version of model-catalog that runs in processes of its own."""

    label: str
    python: str
    """The interpreter of these processes."""
    package_folder: str | None = None
    """The folder that contains `model_catalog`; None when the interpreter has it installed."""


@dataclass(frozen=True)
class ContenderSpec:
    """The name of a contender, the place of its class, and what it needs."""

    name: str
    class_path: str
    """`module:Class`, relative to `benchmarks.contenders`."""
    required_modules: tuple[str, ...] = ()
    kind: Literal["driver", "model-catalog", "library"] = "library"
    blocks_event_loop: bool = False
    """Whether its methods are synchronous inside."""
    database: Literal["sqlite", "postgresql"] = "sqlite"
    only_workloads: tuple[str, ...] = ()
    """Prefixes of the names of the benchmarks that it takes part in; empty means all."""
    installation: Installation | None = None
    """The installation that it runs in; None is this process."""

    @property
    def label(self) -> str:
        """Its name in results."""
        return self.name if self.installation is None else self.installation.label

    @property
    def missing(self) -> str | None:
        """What it needs and is not installed, in words."""
        for name in self.required_modules:
            if importlib.util.find_spec(name) is None:
                return f"the module {name} is not installed"
        if self.kind != "model-catalog":
            # Importing a library here would show warnings of its own imports in every run.
            return None
        is_available = getattr(self._class(), "is_available", None)
        if is_available is None or is_available():
            return None
        return "this version of model-catalog does not support it"

    def takes_part_in(self, benchmark: str) -> bool:
        return not self.only_workloads or benchmark.startswith(self.only_workloads)

    def has_method(self, name: str) -> bool:
        return hasattr(self._class(), name)

    def make(self) -> Contender:
        """A new contender, which is not open yet."""
        if self.installation is not None:
            from benchmarks.versions.remote_contender import RemoteContender

            return RemoteContender(self.name, self.installation)
        contender: Contender = self._class()()
        return contender

    def _class(self) -> Any:
        module, name = self.class_path.split(":")
        return getattr(importlib.import_module(f"benchmarks.contenders.{module}"), name)


SQLITE_BASELINE: Final = "aiosqlite"
"""Ratios on SQLite are to this contender: one connection, as its documentation shows."""
POSTGRES_BASELINE: Final = "asyncpg"
CATALOG: Final = "model-catalog"
INLINE_CATALOG: Final = f"{CATALOG}, inline reads"
ROWS_CATALOG: Final = f"{CATALOG}, plain rows"
ASYNCPG_CATALOG: Final = f"{CATALOG}, asyncpg"
HOST_CATALOG: Final = f"{CATALOG}, host's sessions"
"""Over a host's `async_sessionmaker`, on an engine as SQLAlchemy makes it."""
PREPARED_HOST_CATALOG: Final = f"{HOST_CATALOG}, prepared"
"""The same, after `prepare_engine`."""
ASYNCPG_HOST_CATALOG: Final = f"{HOST_CATALOG}, asyncpg"

CONTENDERS: Final = (
    ContenderSpec(SQLITE_BASELINE, "sqlite_drivers:Aiosqlite", kind="driver"),
    ContenderSpec("sqlite3", "sqlite_drivers:Sqlite3", kind="driver", blocks_event_loop=True),
    ContenderSpec(
        "aiosqlite, a connection per call", "sqlite_drivers:AiosqlitePerCall", kind="driver"
    ),
    ContenderSpec(CATALOG, "model_catalog:CatalogOfStores", kind="model-catalog"),
    ContenderSpec(
        INLINE_CATALOG,
        "model_catalog:InlineReads",
        kind="model-catalog",
        only_workloads=("find", "mixed"),
    ),
    ContenderSpec(HOST_CATALOG, "model_catalog:HostSessions", kind="model-catalog"),
    ContenderSpec(
        PREPARED_HOST_CATALOG, "model_catalog:PreparedHostSessions", kind="model-catalog"
    ),
    ContenderSpec(
        ROWS_CATALOG,
        "model_catalog:PlainRows",
        kind="model-catalog",
        only_workloads=("list", "stream", "memory", "10k in bulk"),
    ),
    ContenderSpec("SQLAlchemy Core", "sqlalchemy:Core"),
    ContenderSpec("SQLAlchemy ORM", "sqlalchemy:Orm"),
    ContenderSpec(
        "SQLAlchemy ORM and Alembic", "alembic_upgrade:OrmAndAlembic", only_workloads=("open",)
    ),
    ContenderSpec(
        "Advanced Alchemy",
        "advanced_alchemy:AdvancedAlchemy",
        required_modules=("advanced_alchemy",),
    ),
    ContenderSpec("SQLModel", "sqlmodel:SqlModelSessions", required_modules=("sqlmodel",)),
    ContenderSpec("Tortoise", "tortoise:TortoiseOrm", required_modules=("tortoise",)),
    ContenderSpec("Piccolo", "piccolo:PiccoloOrm", required_modules=("piccolo",)),
    ContenderSpec(
        "peewee", "peewee:PeeweeOrm", required_modules=("peewee",), blocks_event_loop=True
    ),
    ContenderSpec(
        POSTGRES_BASELINE,
        "asyncpg:Asyncpg",
        required_modules=("asyncpg",),
        kind="driver",
        database="postgresql",
    ),
    ContenderSpec(
        "psycopg",
        "psycopg:Psycopg",
        required_modules=("psycopg_pool",),
        kind="driver",
        database="postgresql",
    ),
    ContenderSpec(
        ASYNCPG_CATALOG,
        "model_catalog:Catalog",
        required_modules=("asyncpg",),
        kind="model-catalog",
        database="postgresql",
    ),
    ContenderSpec(
        f"{CATALOG}, psycopg",
        "model_catalog:PsycopgCatalog",
        required_modules=("psycopg",),
        kind="model-catalog",
        database="postgresql",
    ),
    ContenderSpec(
        ASYNCPG_HOST_CATALOG,
        "model_catalog:HostSessions",
        required_modules=("asyncpg",),
        kind="model-catalog",
        database="postgresql",
    ),
    ContenderSpec(
        "SQLAlchemy ORM, asyncpg",
        "sqlalchemy:Orm",
        required_modules=("asyncpg",),
        database="postgresql",
    ),
    ContenderSpec(
        "Advanced Alchemy, asyncpg",
        "advanced_alchemy:AdvancedAlchemy",
        required_modules=("advanced_alchemy", "asyncpg"),
        database="postgresql",
    ),
)


def contender_spec(name: str) -> ContenderSpec:
    """The contender with this name; raises StopIteration if there is none."""
    return next(spec for spec in CONTENDERS if spec.name == name)


def available_contenders(database: str) -> tuple[list[ContenderSpec], list[str]]:
    """The contenders that can run on a database, and the reasons why others cannot, in words."""
    available: list[ContenderSpec] = []
    reasons: list[str] = []
    for spec in CONTENDERS:
        if spec.database != database:
            continue
        missing = spec.missing
        if missing is None:
            available.append(spec)
        else:
            reasons.append(f"{spec.name} is left out: {missing}")
    return available, reasons
