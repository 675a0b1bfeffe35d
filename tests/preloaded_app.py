"""A WSGI application that opens a catalog when it is imported, for `gunicorn --preload`."""

import os
from urllib.parse import unquote

from model_catalog import Model, WrongLoopError, sync

TARGET = os.environ["CATALOG_TARGET"]


def a_model(reference: str) -> Model:
    return Model(reference=reference, provider="hf", local_path="/m")


inherited = sync.open_catalog(TARGET)
inherited.register_model(a_model("preloaded"))
opened: dict[int, sync.SyncCatalog] = {}


def catalog_of_process() -> sync.SyncCatalog:
    """Return the catalog of this process; a worker has to open its own."""
    if os.getpid() not in opened:
        opened[os.getpid()] = sync.open_catalog(TARGET)
    return opened[os.getpid()]


def app(environ, start_response):
    """Register the model that the path names, and say by what the worker knows it."""
    reference = unquote(environ["PATH_INFO"].lstrip("/"))
    try:
        inherited.count_models()
        outcome = "works"
    except WrongLoopError as error:
        outcome = type(error).__name__
    catalog = catalog_of_process()
    catalog.register_model(a_model(reference))
    body = f"{os.getpid()} {outcome} {catalog.get_model('preloaded', 'hf').reference}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
