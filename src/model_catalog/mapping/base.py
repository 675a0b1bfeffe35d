"""The declarative base of the catalog's classes, with the naming convention of constraints."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Index, MetaData, TextClause, event
from sqlalchemy.orm import DeclarativeBase

from model_catalog.mapping.added_objects import create_added_objects


class Base(DeclarativeBase):
    """The tables of a catalog. Each constraint has a name, because a migration needs one."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class PartialIndex(Index):
    """
    An index of the rows that fulfil a condition, on both databases.

    It is `Index(..., sqlite_where=where, postgresql_where=where)`. But these arguments import the
    dialects of both databases with their drivers, which takes 35 ms. Here the first use does so.
    """

    inherit_cache = True

    def __init__(self, name: str, *columns: Any, where: TextClause | ColumnElement[bool]) -> None:
        super().__init__(name, *columns)
        self._where: Final = where
        self._options: Any = None

    @property
    def dialect_options(self) -> Any:
        """The options of the index for each dialect, in which SQLAlchemy looks for `where`."""
        if self._options is None:
            self._options = super().dialect_options
            for dialect in ("sqlite", "postgresql"):
                self._options[dialect]["where"] = self._where
        return self._options


event.listen(Base.metadata, "after_create", create_added_objects)
