"""How a command comes to its catalog and its model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import TypeVar

from model_catalog.connection.target import resolve_target
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import ModelNotFoundError
from model_catalog.mapping.tables import Model
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog

T = TypeVar("T")

DONE, FAILED = 0, 1


async def existing_catalog(
    options: Namespace, read: Callable[[ModelCatalog], Awaitable[T]], nothing: T
) -> T:
    """
    What `read` makes of the catalog. Looking makes no file: a typo is to be an error.

    On a machine where the default catalog was never made there is nothing, and that is no error.
    """
    place = resolve_target(options.db)
    if place.is_default and place.path is not None and not place.path.exists():
        return nothing
    async with open_catalog(options.db, create=False) as catalog:
        return await read(catalog)


async def existing_model(
    options: Namespace, act: Callable[[ModelCatalog, ModelRef], Awaitable[T]]
) -> T:
    """What `act` makes of the model that was typed. Raises ModelNotFoundError."""
    ref = ModelRef.parse(options.ref)
    found = await existing_catalog(options, lambda catalog: _kept(act(catalog, ref)), None)
    if found is None:
        raise ModelNotFoundError(ref.reference, ref.provider, ref.version)
    return found[0]


async def _kept(result: Awaitable[T]) -> tuple[T] | None:
    return (await result,)


def short_ref(ref: ModelRef) -> str:
    """A name as people write it: without a version where there is none."""
    version = ref.version or ("" if "@" in ref.reference else None)
    return str(ModelRef(ref.provider, ref.reference, version))


def model_name(model: Model, *, exact: bool) -> str:
    """How a model is named as a REF: shortly where that is enough, else with its version."""
    version = model.version or None
    if version is None and (exact or "@" in model.reference):
        version = ""
    return str(ModelRef(model.provider, model.reference, version))
