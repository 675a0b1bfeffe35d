"""A host of a fleet: how to reach it, its space, and whether it still sends heartbeats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, TypedDict

from model_catalog.domain.ndjson import iso_time


class HostState(StrEnum):
    """Whether a host sends heartbeats, by the clock of the database."""

    ALIVE = "alive"
    """Its last heartbeat is recent."""
    LOST = "lost"
    """Its last heartbeat is older than the limit. Its models stay recorded."""
    NEVER = "never"
    """It is registered, and has sent no heartbeat yet."""
    UNREGISTERED = "unregistered"
    """Models are recorded for it, but it was never registered, or was removed."""


class HostFields(TypedDict, total=False):
    """What `register_host` can record about a host. None clears a field."""

    address: str | None
    """A name, an IP address or a URL of the host, without a password."""
    labels: Mapping[str, str] | None
    """Names and values of your own, as in `{"gpu": "h100", "rack": "7"}`."""
    ssh_user: str | None
    ssh_host: str | None
    ssh_port: int | None
    ssh_key_path: str | os.PathLike[str] | None
    """The path of a private key on the machine that connects; never the key itself."""
    capacity_bytes: int | None
    """The size of the disk for models."""
    free_bytes: int | None
    """The free space on that disk."""


@dataclass(frozen=True, slots=True)
class Host:
    """
    A host as it is recorded. It has no key and no password, only the path of a key.

    `state` and `heartbeat_age_s` are those at the time of the query, by the database's clock.
    """

    name: str
    state: HostState
    registered_at: datetime
    heartbeat_at: datetime | None = None
    heartbeat_age_s: float | None = None
    """The seconds since the last heartbeat; negative if the database's clock was set back."""
    address: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    ssh_user: str | None = None
    ssh_host: str | None = None
    ssh_port: int | None = None
    ssh_key_path: str | None = None
    capacity_bytes: int | None = None
    free_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that `model-catalog hosts show --json` prints, as JSON values."""
        heartbeat_at = self.heartbeat_at
        return {
            "name": self.name,
            "state": str(self.state),
            "address": self.address,
            "labels": dict(self.labels),
            "ssh_user": self.ssh_user,
            "ssh_host": self.ssh_host,
            "ssh_port": self.ssh_port,
            "ssh_key_path": self.ssh_key_path,
            "capacity_bytes": self.capacity_bytes,
            "free_bytes": self.free_bytes,
            "registered_at": _iso_seconds(self.registered_at),
            "heartbeat_at": None if heartbeat_at is None else _iso_seconds(heartbeat_at),
            "heartbeat_age_s": self.heartbeat_age_s,
        }


def host_state(age_s: float | None, lost_after_s: float) -> HostState:
    """
    Return the state of a registered host whose last heartbeat was `age_s` seconds ago.

    A heartbeat that seems to come from the future counts by its distance, so that a clock that was
    set back neither keeps a host alive for ever nor makes all hosts lost for a small step.
    """
    if age_s is None:
        return HostState.NEVER
    return HostState.ALIVE if abs(age_s) <= lost_after_s else HostState.LOST


def _iso_seconds(moment: datetime) -> str:
    return iso_time(moment.replace(microsecond=0))
