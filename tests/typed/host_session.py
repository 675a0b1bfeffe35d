"""Checked and never run: the types of `Model` in a host's own session and statements."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from model_catalog import Model


class Base(DeclarativeBase):
    """The base of a host."""


class Placement(Base):
    """A row of a host that refers to a model."""

    __tablename__ = "placements"

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey(Model.id))
    model: Mapped[Model] = relationship()


async def use(session: AsyncSession) -> None:
    """Use the computed fields in statements and on objects."""
    conditions: list[ColumnElement[bool]] = [
        Model.tags.contains("chat"),
        Model.architecture == "llama",
        Model.user_license.is_(None),
        Model.context_length >= 4096,
    ]
    statement: Select[Model] = (
        select(Model)
        .where(*conditions, Model.pinned, ~Model.foreign, Model.unsafe)
        .order_by(Model.architecture.desc(), Model.tags, Model.pinned)
    )
    model = (await session.scalars(statement)).one()
    tags: tuple[str, ...] = model.tags
    architecture: str | None = model.architecture
    own: str | None = model.user_architecture
    length: int | None = model.context_length
    pinned: bool = model.pinned
    values: dict[str, Any] = model.to_dict()
    print(tags, architecture, own, length, pinned, values)

    rows = await session.execute(
        select(Model.architecture, Model.downloaded_at, func.count()).group_by(Model.architecture)
    )
    for name, moment, count in rows.tuples():
        first: str | None = name
        second: datetime | None = moment
        print(first, second, count)

    placement = (
        await session.scalars(select(Placement).options(selectinload(Placement.model)))
    ).one()
    text: str = placement.model.reference
    print(text)


def misuse(model: Model) -> None:
    """Set a value of another type, and an attribute that is no keyword."""
    model.architecture = 3  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
    Model(reference="m", provider="hf", local_path="/m", user_license="x")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
