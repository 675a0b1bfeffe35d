"""The HTTP service. Start it with `uvicorn --factory placements.app:create_app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from model_catalog import (
    CatalogBusyError,
    CatalogUnavailableError,
    InvalidModelError,
    Model,
    ModelCatalog,
    ModelInUseError,
    ModelNotFoundError,
    ModelPage,
)
from placements.database import Placement, create_engine
from placements.schemas import ModelOut, ModelPageOut, NewModel, NewPlacement, PlacementOut

STATUS_OF_ERRORS: dict[type[Exception], int] = {
    ModelNotFoundError: 404,
    ModelInUseError: 409,
    InvalidModelError: 422,
    CatalogBusyError: 503,
    CatalogUnavailableError: 503,
}

router = APIRouter()


class State(TypedDict):
    """What the requests share, as `request.state`."""

    sessions: async_sessionmaker[AsyncSession]
    catalog: ModelCatalog


def get_sessions(request: Request) -> async_sessionmaker[AsyncSession]:
    """Return the session factory of the service."""
    sessions: async_sessionmaker[AsyncSession] = request.state.sessions
    return sessions


def get_catalog(request: Request) -> ModelCatalog:
    """Return the catalog. Each of its calls is a transaction."""
    catalog: ModelCatalog = request.state.catalog
    return catalog


# Not a session: FastAPI sends the response before it ends a dependency, so the client would get its
# answer before the commit, also when the commit fails.
Sessions = Annotated[async_sessionmaker[AsyncSession], Depends(get_sessions)]
Catalog = Annotated[ModelCatalog, Depends(get_catalog)]


@router.put("/models", response_model=ModelOut)
async def register_model(new: NewModel, catalog: Catalog) -> Model:
    """Record a model, or update its record."""
    return await catalog.register_model(Model(**new.model_dump(exclude_unset=True)))


@router.get("/models", response_model=ModelPageOut)
async def list_models(
    catalog: Catalog,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: str | None = None,
    search: str | None = None,
) -> ModelPage:
    """List models, newest download first. `next_token` is the `page_token` of the next page."""
    return await catalog.list_page(limit=limit, page_token=page_token, search=search)


# A reference may contain slashes.
@router.get("/models/{name:path}", response_model=ModelOut)
async def get_model(name: str, catalog: Catalog) -> Model:
    """Return the model of a name such as `hf:org/name@version`."""
    return await catalog.get_model(name)


@router.delete("/models/{name:path}", status_code=204)
async def remove_model(name: str, catalog: Catalog) -> None:
    """Delete the record of a model that is not placed."""
    if not await catalog.remove_model(name):
        raise HTTPException(404, f"no model {name!r} is recorded")


@router.post("/placements", response_model=PlacementOut, status_code=201)
async def place_model(new: NewPlacement, sessions: Sessions) -> Placement:
    """Place a recorded model on a host, and count it as a use of the model."""
    async with sessions.begin() as session:
        # The calls of this catalog are part of the session's transaction.
        catalog = ModelCatalog(session)
        model = await catalog.get_model(new.model)
        await catalog.record_use(model)
        placement = Placement(model_id=model.id, host=new.host)
        session.add(placement)
        await session.flush()
        await session.refresh(placement)
    return placement


@router.get("/placements", response_model=list[PlacementOut])
async def list_placements(
    sessions: Sessions, host: str | None = None, architecture: str | None = None
) -> list[Placement]:
    """List placements, the oldest first."""
    query = select(Placement).join(Placement.model).order_by(Placement.id)
    if host is not None:
        query = query.where(Placement.host == host)
    if architecture is not None:
        query = query.where(Model.architecture == architecture)
    async with sessions() as session:
        return list(await session.scalars(query))


@router.delete("/placements/{placement_id}", status_code=204)
async def remove_placement(placement_id: int, sessions: Sessions) -> None:
    """Delete a placement. The model stays recorded."""
    async with sessions.begin() as session:
        placement = await session.get(Placement, placement_id)
        if placement is None:
            raise HTTPException(404, f"no placement {placement_id}")
        await session.delete(placement)


async def respond_to_error(_request: Request, error: Exception) -> Response:
    """Turn an error of the catalog into a response. Its message says what to do."""
    status = next(code for kind, code in STATUS_OF_ERRORS.items() if isinstance(error, kind))
    return JSONResponse({"detail": str(error)}, status)


def create_app(database_url: str | None = None) -> FastAPI:
    """Make the service over a database; the default is in the variable DATABASE_URL."""
    url = database_url or os.environ["DATABASE_URL"]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        engine = create_engine(url)
        # Without `expire_on_commit` a response can be made of objects after their commit.
        sessions = async_sessionmaker(engine, expire_on_commit=False)
        yield {"sessions": sessions, "catalog": ModelCatalog(sessions)}
        await engine.dispose()

    app = FastAPI(title="Placements", lifespan=lifespan)
    app.include_router(router)
    for kind in STATUS_OF_ERRORS:
        app.add_exception_handler(kind, respond_to_error)
    return app
