"""The declarative base of the catalog's classes, with the naming convention of constraints."""

from __future__ import annotations

from sqlalchemy import MetaData, event
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


event.listen(Base.metadata, "after_create", create_added_objects)
