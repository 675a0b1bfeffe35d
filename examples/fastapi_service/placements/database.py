"""The tables of the service, and its engine."""

from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from model_catalog import Model, prepare_engine


class Base(DeclarativeBase):
    """The base class of the service's own tables. The catalog's tables have another one."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )


class Placement(Base):
    """A model on a host that serves it."""

    __tablename__ = "placements"

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey(Model.id), index=True)
    host: Mapped[str]

    model: Mapped[Model] = relationship(Model, lazy="joined", innerjoin=True)


def create_engine(url: str) -> AsyncEngine:
    """Make the engine of the service and of the catalog."""
    engine = create_async_engine(url)
    # On SQLite: real transactions, foreign keys, and a write-ahead log. On PostgreSQL: nothing.
    prepare_engine(engine)
    return engine
