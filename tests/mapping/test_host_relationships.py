"""A host's own classes refer to `Model`, as docs/embedding.md shows."""

from conftest import a_model
from sqlalchemy import ForeignKey, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
)

from model_catalog import Model, ModelCatalog, prepare_engine


class Base(DeclarativeBase):
    """The host's base, with a registry and a MetaData of its own."""


class Placement(Base):
    """A model on a machine."""

    __tablename__ = "test_placements"

    id: Mapped[int] = mapped_column(primary_key=True)
    machine: Mapped[str]
    model_id: Mapped[int] = mapped_column(ForeignKey(Model.id, ondelete="CASCADE"))
    model: Mapped[Model] = relationship()


async def test_a_host_loads_the_models_of_its_rows(database):
    """Eager loading gives whole models, and a model can be used in a condition."""
    engine = create_async_engine(database.target_url)
    prepare_engine(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine)
    async with sessions() as session, session.begin():
        catalog = ModelCatalog(session)
        for name in "ab":
            model = await catalog.register_model(a_model(name, claimed_architecture="llama"))
            session.add(Placement(machine=f"on {name}", model_id=model.id))
        await catalog.tag_model("a", "hf", "chat")
    async with sessions() as session, session.begin():
        session.add(Placement(machine="new", model=a_model("c", description="Größe")))

    async with sessions() as session:
        for eager in (selectinload, joinedload):
            statement = select(Placement).options(eager(Placement.model)).order_by(Placement.id)
            placements = (await session.scalars(statement)).all()
            read = [(each.machine, each.model.tags, each.model.architecture) for each in placements]
            assert read == [("on a", ("chat",), "llama"), ("on b", (), "llama"), ("new", (), None)]
        tagged = select(Placement.machine).join(Placement.model).where(Model.tags.contains("CHAT"))
        assert (await session.scalars(tagged)).all() == ["on a"]
    found = await ModelCatalog(sessions).list_models(search="GRÖSSE")
    assert [model.reference for model in found] == ["c"]

    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    await engine.dispose()
