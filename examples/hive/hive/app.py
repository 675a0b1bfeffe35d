"""The HTTP service. Start it with `uvicorn --factory hive.app:create_app`."""

import asyncio
import json
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from model_catalog import ModelCatalog, errors, open_catalog
from model_catalog.downloads import (
    Download,
    ModelUser,
    download_from_hub,
    list_downloads,
    list_users,
    use_model,
)

STATUS_OF_ERRORS: dict[type[Exception], int] = {
    errors.ModelNotFoundError: 404,
    errors.ModelInUseError: 409,
    errors.InvalidModelError: 422,
    errors.DownloadFailedError: 502,
    errors.HubDownloadError: 502,
    errors.CatalogBusyError: 503,
    errors.NotEnoughSpaceError: 507,
}

router = APIRouter(prefix="/v1")


class ModelRequest(BaseModel):
    """A model by its name, such as `hf:TheBloke/TinyLlama`."""

    model_ref: str


def get_catalog(request: Request) -> ModelCatalog:
    """Return the catalog of the service."""
    catalog: ModelCatalog = request.state.catalog
    return catalog


def to_json(record: Download | ModelUser) -> dict[str, Any]:
    """Return the fields of a record, with its model as text."""
    return {**asdict(record), "ref": str(record.ref)}


Catalog = Annotated[ModelCatalog, Depends(get_catalog)]


@router.post("/models/download")
async def download_model(wanted: ModelRequest, catalog: Catalog) -> dict[str, Any]:
    """Return a model. Of all requests for it, in all processes, one downloads it."""
    model = await download_from_hub(catalog, wanted.model_ref)
    return model.to_dict()


@router.get("/models")
async def list_models(catalog: Catalog) -> list[dict[str, Any]]:
    """List the models, newest download first."""
    return [model.to_dict() for model in await catalog.list_models()]


@router.delete("/models/{model_ref:path}", status_code=204)
async def remove_model(model_ref: str, catalog: Catalog) -> None:
    """Remove the record of a model that no worker uses. The files stay."""
    if not await catalog.remove_model(model_ref):
        raise HTTPException(404, f"no model {model_ref!r} is recorded")


@router.get("/downloads")
async def watch_downloads(catalog: Catalog) -> StreamingResponse:
    """Send the downloads of all processes as server-sent events, at first and when they change."""

    async def events() -> AsyncIterator[str]:
        sent = None
        while True:
            downloads = [to_json(each) for each in await list_downloads(catalog)]
            if (text := json.dumps(downloads, default=str)) != sent:
                sent = text
                yield f"data: {text}\n\n"
            await asyncio.sleep(0.5)

    return StreamingResponse(events(), media_type="text/event-stream")


@router.post("/workers", status_code=201)
async def start_worker(wanted: ModelRequest, catalog: Catalog, request: Request) -> dict[str, Any]:
    """Start a worker with a recorded model, which is in use until the worker ends."""
    started = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run_worker(catalog, wanted.model_ref, started))
    request.state.workers.add(task)
    task.add_done_callback(request.state.workers.discard)
    await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
    if not started.done():
        await task  # it has ended with an error
    return {"model": wanted.model_ref, "process_id": started.result()}


async def run_worker(catalog: ModelCatalog, ref: str, started: asyncio.Future[int]) -> None:
    """Run the command in HIVE_WORKER with the path of a model, and hold the model in use."""
    async with use_model(catalog, ref) as model:
        command = [*shlex.split(os.environ["HIVE_WORKER"]), model.local_path]
        process = await asyncio.create_subprocess_exec(*command)
        started.set_result(process.pid)
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


@router.get("/workers")
async def list_workers(catalog: Catalog) -> list[dict[str, Any]]:
    """List the uses of models, on all hosts that share the catalog."""
    return [to_json(each) for each in await list_users(catalog)]


async def respond_to_error(_request: Request, error: Exception) -> Response:
    """Turn an error of the catalog into a response. Its message says what to do."""
    return JSONResponse({"detail": str(error)}, STATUS_OF_ERRORS[type(error)])


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Open the catalog, by default `.rbee/models/catalog.db`, and end the workers at the end."""
    async with open_catalog() as catalog:
        workers: set[asyncio.Task[Any]] = set()
        yield {"catalog": catalog, "workers": workers}
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def create_app() -> FastAPI:
    """Make the service."""
    app = FastAPI(title="Hive", lifespan=lifespan)
    app.include_router(router)
    for kind in STATUS_OF_ERRORS:
        app.add_exception_handler(kind, respond_to_error)
    return app
