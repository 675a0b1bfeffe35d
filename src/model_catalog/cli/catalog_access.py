"""Open the catalog or find the model that a command names."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from model_catalog.connection.target import resolve_target
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import ModelNotFoundError
from model_catalog.mapping.tables import Model
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog

T = TypeVar("T")


def open_named(
    options: Namespace, *, create: bool = True
) -> AbstractAsyncContextManager[ModelCatalog]:
    """Open the catalog that the options of a command name, on the host that they name."""
    return open_catalog(options.db, create=create, schema=options.schema, host=options.host)


async def use_existing_catalog(
    options: Namespace, use: Callable[[ModelCatalog], Awaitable[T]], default: T
) -> T:
    """
    Open the catalog without creating it, and return the result of `use`.

    Returns `default` if the default catalog was never created. Raises CatalogUnavailableError if
    the catalog that the user named does not exist, because that may be a typing error.
    """
    location = resolve_target(options.db)
    if location.is_default and location.path is not None and not location.path.exists():
        return default
    async with open_named(options, create=False) as catalog:
        return await use(catalog)


async def use_existing_model(
    options: Namespace, use: Callable[[ModelCatalog, ModelRef], Awaitable[T]]
) -> T:
    """
    Return the result of `use` for the model that `options.ref` names.

    Raises ModelNotFoundError if there is no catalog. Errors of `use` are passed on.
    """
    ref = ModelRef.parse(options.ref)
    result = await use_existing_catalog(options, lambda catalog: _in_tuple(use(catalog, ref)), None)
    if result is None:
        raise ModelNotFoundError(ref.reference, ref.provider, ref.version)
    return result[0]


async def _in_tuple(result: Awaitable[T]) -> tuple[T] | None:
    return (await result,)


def short_ref(ref: ModelRef) -> str:
    """Return a ref as the user would type it: without `@` if it has no version."""
    version = ref.version or ("" if "@" in ref.reference else None)
    return str(ModelRef(ref.provider, ref.reference, version))


def model_name(model: Model, *, exact: bool) -> str:
    """
    Return the ref of a model.

    Without a version, it ends with `@` only if `exact` is set or the reference contains an `@`.
    """
    version = model.version or None
    if version is None and (exact or "@" in model.reference):
        version = ""
    return str(ModelRef(model.provider, model.reference, version))
