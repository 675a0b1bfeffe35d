"""The public class `HostRegistry`: which hosts belong to the fleet, and which of them are alive."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from os import PathLike
from typing import Final, Unpack

from model_catalog.domain import key_validation, validation
from model_catalog.domain.fleet import DEFAULT_INTERVAL_S, DEFAULT_LOST_AFTER_S, host_validation
from model_catalog.domain.fleet.host import Host, HostFields
from model_catalog.errors import InvalidModelError, TransactionError
from model_catalog.execution.observation.observed_executor import observe_calls
from model_catalog.repository.fleet.heartbeats import HeartbeatSender, send_heartbeats
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.operations.fleet import hosts
from model_catalog.repository.operations.fleet.hosts import HostQuery, ModelsOfHost

MIN_INTERVAL_S: Final = 0.1


class HostRegistry:
    """
    The hosts that share a catalog: how to reach them, their space, and their heartbeats.

    It works on the hosts of the whole database, whatever host the catalog was opened for. It stores
    the path of an SSH key, and refuses keys and passwords. A host need not be registered to record
    models, but only a registered host with heartbeats is offered by `plan_placement`.

    All times are those of the database's clock. A host whose last heartbeat is older than
    `lost_after_s` is `lost`: its row and its models stay.
    """

    def __init__(
        self, catalog: ModelCatalog, *, lost_after_s: float = DEFAULT_LOST_AFTER_S
    ) -> None:
        """
        Make a registry over a catalog.

        `lost_after_s` should be at least three times the interval of the heartbeats. Raises
        InvalidModelError.
        """
        self._executor = executor_of(catalog)
        observe_calls(self, self._executor, "HostRegistry.")
        self._lost_after_s = host_validation.lost_after("lost_after_s", lost_after_s)

    async def register_host(self, name: str, **fields: Unpack[HostFields]) -> Host:
        """
        Record a host, or change its record, and return it.

        Writes the given fields: None clears one, and a field that is not given keeps its value. It
        is not a heartbeat. Raises InvalidModelError, also for a key or a password, and then writes
        nothing.
        """
        values = host_validation.host_fields(fields)
        name = key_validation.host("name", name)
        return await self._executor.run(hosts.register(name, values, self._lost_after_s))

    async def find_host(self, name: str) -> Host | None:
        """Return a host, or None if it is not registered. Raises InvalidModelError."""
        query = HostQuery(self._lost_after_s, key_validation.host("name", name))
        found = await self._executor.run(hosts.find(query))
        return found[0] if found else None

    async def list_hosts(self, *, labels: Mapping[str, str] | None = None) -> list[Host]:
        """Return all hosts, or those with all of these labels, sorted by the bytes of the name."""
        wanted = host_validation.label_filter("labels", labels)
        found = await self._executor.run(hosts.find(HostQuery(self._lost_after_s)))
        return hosts.with_labels(found, wanted)

    async def remove_host(self, name: str, *, models: ModelsOfHost = "refuse") -> bool:
        """
        Remove a host from the registry; return whether there was something to remove.

        `models` says what happens to the models that are recorded for it:

        - `refuse`: if there are any, raise HostHasModelsError and remove nothing.
        - `keep`: they stay, and their host is `unregistered`. Registering it again brings it back.
        - `delete`: their records are deleted with their tags, aliases and lists of files. No file
          is deleted. Raises ModelInUseError if one is in use, and then removes nothing.

        Its heartbeats, if it still sends some, then fail. Raises InvalidModelError.
        """
        if models not in hosts.MODELS_OF_HOST:
            problem = f"is not known: give one of {', '.join(hosts.MODELS_OF_HOST)}"
            raise InvalidModelError("models", models, problem)
        name = key_validation.host("name", name)
        cascades = self._executor.database.cascades
        return await self._executor.run(hosts.remove(name, models, cascades=cascades))

    async def heartbeat(
        self, name: str, *, free_bytes: int | None = None, timeout_s: float | None = None
    ) -> None:
        """
        Record that a host is alive now, and its free space if it is given.

        One small statement by key. `timeout_s` replaces the timeout of the catalog. Raises
        HostNotFoundError and InvalidModelError.
        """
        validation.non_negative_int("free_bytes", free_bytes)
        if timeout_s is not None:
            validation.seconds("timeout_s", timeout_s)
        name = key_validation.host("name", name)
        await self._executor.run(hosts.beat(name, free_bytes, timeout_s))

    def beat(
        self,
        name: str,
        *,
        interval_s: float = DEFAULT_INTERVAL_S,
        path: str | PathLike[str] | None = None,
    ) -> AbstractAsyncContextManager[None]:
        """
        Send heartbeats of a host until the end of a block: one now, and then every `interval_s`.

            async with registry.beat("gpu-07", path="/srv/models"):
                ...

        With `path` each one has the free space of its disk. A heartbeat that fails is logged, and
        ends neither the block nor the heartbeats. When the process is killed, the host is lost
        after `lost_after_s`.

        Raises HostNotFoundError at the start, TransactionError in a transaction, and
        InvalidModelError.
        """
        name = key_validation.host("name", name)
        if not validation.seconds("interval_s", interval_s) >= MIN_INTERVAL_S:
            problem = f"is too short: give {MIN_INTERVAL_S:g} seconds or more"
            raise InvalidModelError("interval_s", interval_s, problem)
        if path is not None:
            path = validation.path("path", path)
        if self._executor.is_in_transaction:
            raise TransactionError(
                "beat commits, so it cannot be part of a transaction: make the registry with the "
                "catalog itself, outside of transaction()"
            )
        return send_heartbeats(HeartbeatSender(self._executor, name, interval_s, path))
