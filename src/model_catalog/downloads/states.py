"""Values about downloads and uses: who does them, in which state they are."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias
from uuid import uuid4

from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import InvalidModelError

Scope: TypeAlias = Literal["host", "fleet"]
"""Whose disk the files are on: that of one host, or one that all hosts share."""


def is_shared_disk(scope: object) -> bool:
    """Return whether a scope means a disk that all hosts share. Raises InvalidModelError."""
    if scope not in ("host", "fleet"):
        raise InvalidModelError("scope", scope, "is neither 'host' nor 'fleet'")
    return scope == "fleet"


class Holder(NamedTuple):
    """Who holds a claim or uses a model. The token is random, and different for each claim."""

    token: str = ""
    host: str = ""
    process_id: int = 0

    @classmethod
    def new(cls) -> Holder:
        """Return this process, with a new token."""
        return cls(uuid4().hex, socket.gethostname(), os.getpid())

    @property
    def columns(self) -> dict[str, str | int]:
        """The columns of a claim, a download or a use that name its holder."""
        return {
            "token": self.token,
            "holder_host": self.host,
            "holder_process_id": self.process_id,
        }

    def __str__(self) -> str:
        return f"process {self.process_id} on {self.host}"


class DownloadState(StrEnum):
    """The state of a download."""

    QUEUED = "queued"
    """It has its claim, and waits for a slot."""
    RUNNING = "running"
    DONE = "done"
    """The model is registered."""
    FAILED = "failed"
    """It ended with an error, was cancelled, or its process has stopped."""

    @property
    def is_active(self) -> bool:
        """Whether the download has not ended."""
        return self in {DownloadState.QUEUED, DownloadState.RUNNING}


@dataclass(frozen=True, slots=True)
class Download:
    """
    A download, as the database knows it.

    `ref` is the name under which the model was asked for. Its model may have another version, for
    example a commit. All times are in UTC, by the database's clock.
    """

    id: int
    ref: ModelRef
    state: DownloadState
    done_bytes: int
    total_bytes: int | None
    """None if it is not known."""
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    host: str
    process_id: int
    error: str | None
    """Why it has failed."""


@dataclass(frozen=True, slots=True)
class ModelUser:
    """A process that uses a model. All times are in UTC, by the database's clock."""

    ref: ModelRef
    host: str
    process_id: int
    started_at: datetime
    renewed_at: datetime
    expires_at: datetime
    """The use ends then, unless the process renews it."""
