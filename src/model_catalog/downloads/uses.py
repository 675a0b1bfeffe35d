"""Hold a model in use, so that it is neither removed nor evicted."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Final

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.context_managers import inner_contextmanager
from model_catalog.domain.model_ref import ModelName
from model_catalog.downloads.leases import (
    DEFAULT_LEASE_S,
    keeper_of,
    require_no_transaction,
    validate_lease,
)
from model_catalog.downloads.queries.use_queries import (
    HeldUse,
    NewUse,
    begin_use,
    end_use,
    select_users,
)
from model_catalog.downloads.states import Holder, ModelUser
from model_catalog.errors import CatalogError
from model_catalog.execution.executor import Executor, read, reads_from_primary, write
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.operations.lookup import LookupKey

log = logging.getLogger("model_catalog.downloads")


class _Use:
    """The lease of a model in use."""

    def __init__(self, model: Model, holder: Holder, lease_s: float) -> None:
        self.token: Final = holder.token
        self.lease_s: Final = lease_s
        self.renewed_at = time.monotonic()
        self.held: Final = HeldUse(holder, model.id, int(time.time() * 1000), int(lease_s * 1000))
        self._name: Final = str(model.ref)

    def lose(self) -> None:
        """Log that other processes may remove the model."""
        log.warning(
            "the use of %s could not be renewed, so other processes may remove it: its record is "
            "gone, or the database cannot be reached",
            self._name,
            extra={"model_catalog_ref": self._name},
        )


@inner_contextmanager
async def use_model(
    catalog: ModelCatalog, ref: ModelName, *, lease_s: float = DEFAULT_LEASE_S
) -> AsyncIterator[Model]:
    """
    Hold a model in use during a block, and yield it.

    The use is counted as `record_use` does. Meanwhile `remove_model` raises ModelInUseError, and no
    eviction touches the model, in all processes and hosts that share the database. The use is
    renewed in the background. When the process is killed, it ends after `lease_s` seconds. Several
    uses of a model are independent of each other.

    Raises ModelNotFoundError, also for a model that is being evicted; InvalidModelError; and
    TransactionError in a transaction, whose other users could not see the use.
    """
    executor = executor_of(catalog)
    require_no_transaction(catalog, "use_model")
    holder = Holder.new()
    new_use = NewUse(LookupKey.validated(ref), holder, int(validate_lease(lease_s) * 1000))
    began = False
    keeper = keeper_of(catalog)
    try:
        model = await executor.run(write(begin_use, new_use))
        began = True
        keeper.add_use(_Use(model, holder, lease_s))
        yield model
    finally:
        keeper.remove(holder.token)
        # A call that was cancelled may have been committed.
        await run_to_completion(_end(executor, holder.token, is_certain=began))


async def _end(executor: Executor, token: str, *, is_certain: bool) -> None:
    try:
        await executor.run(write(end_use, token))
    except (CatalogError, OSError) as error:
        # It expires.
        log.log(
            logging.WARNING if is_certain else logging.DEBUG,
            "the use of a model could not be ended, and ends when its lease expires: %s",
            error,
        )


@reads_from_primary
async def list_users(catalog: ModelCatalog, ref: ModelName | None = None) -> list[ModelUser]:
    """
    Return the processes that use models, or one model; those that began first come first.

    A use whose lease has expired is left out. Raises ModelNotFoundError for a model that is not
    recorded.
    """
    filters: dict[str, str] = {}
    if ref is not None:
        model = await catalog.get_model(ref)
        filters = {
            "provider": model.provider,
            "reference": model.reference,
            "version": model.version,
        }
    return await executor_of(catalog).run(read(select_users, filters))
