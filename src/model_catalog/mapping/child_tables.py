"""The tables beside `models`: tags, files, aliases, downloads, uses, leases, and hosts."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    PrimaryKeyConstraint,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from model_catalog.mapping.base import Base
from model_catalog.mapping.column_types import BigInt, FileNameText, KeyText, UnixTimestamp


class ModelTag(Base):
    """A tag of a model. The key contains its case-folded form, so that case does not matter."""

    __tablename__ = "model_tags"

    model_id: Mapped[int] = mapped_column(
        BigInt, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    folded: Mapped[str] = mapped_column(KeyText, primary_key=True, index=True)
    tag: Mapped[str] = mapped_column(KeyText)


class ModelFile(Base):
    """A file of a model. `path` is relative to the model, and `digest` is the expected digest."""

    __tablename__ = "model_files"

    model_id: Mapped[int] = mapped_column(
        BigInt, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    path: Mapped[str] = mapped_column(FileNameText, primary_key=True)
    role: Mapped[str] = mapped_column(KeyText)
    size_bytes: Mapped[int] = mapped_column(BigInt)
    digest: Mapped[str | None] = mapped_column(KeyText, index=True)
    found_digest: Mapped[str | None] = mapped_column(KeyText)
    fingerprint: Mapped[str | None] = mapped_column(KeyText)
    hashed_at: Mapped[datetime | None] = mapped_column(UnixTimestamp)
    file_id: Mapped[str | None] = mapped_column(KeyText)
    disk_bytes: Mapped[int | None] = mapped_column(BigInt)

    __table_args__ = (
        CheckConstraint("size_bytes BETWEEN 0 AND 9223372036854775807", name="size_bytes"),
    )


class ModelAlias(Base):
    """
    A name of a reference for one of its versions. `store` is None for an alias of the user.

    `host` is that of the model.
    """

    __tablename__ = "model_aliases"

    provider: Mapped[str] = mapped_column(KeyText)
    reference: Mapped[str] = mapped_column(KeyText)
    alias: Mapped[str] = mapped_column(KeyText)
    model_id: Mapped[int] = mapped_column(
        BigInt, ForeignKey("models.id", ondelete="CASCADE"), index=True
    )
    store: Mapped[str | None] = mapped_column(KeyText)
    host: Mapped[str] = mapped_column(KeyText, server_default=text("''"))

    __table_args__ = (PrimaryKeyConstraint("host", "provider", "reference", "alias"),)


class Lease(Base):
    """
    The right of one process to do a background task for a host, for a limited time.

    `host` is the catalog's host, `""` for a catalog without one. The times are milliseconds since
    1970 of the database's clock.
    """

    __tablename__ = "model_catalog_leases"

    name: Mapped[str] = mapped_column(KeyText)
    holder: Mapped[str] = mapped_column(KeyText)
    renewed_at_ms: Mapped[int] = mapped_column(BigInt)
    expires_at_ms: Mapped[int] = mapped_column(BigInt)
    host: Mapped[str] = mapped_column(KeyText, server_default=text("''"))

    __table_args__ = (PrimaryKeyConstraint("host", "name"),)


class ModelClaim(Base):
    """
    The right of one process to download or to evict a model, for a limited time.

    `host` is the catalog's host: `""` for a catalog without one, `*` for a disk that all hosts
    share. `holder_host` is the name of the holder's machine. `token` is random, and names the
    holder. The times are milliseconds since 1970 of the database's clock.
    """

    __tablename__ = "model_claims"

    host: Mapped[str] = mapped_column(KeyText, primary_key=True, server_default=text("''"))
    provider: Mapped[str] = mapped_column(KeyText, primary_key=True)
    reference: Mapped[str] = mapped_column(KeyText, primary_key=True)
    version: Mapped[str] = mapped_column(KeyText, primary_key=True)
    purpose: Mapped[str] = mapped_column(KeyText)
    token: Mapped[str] = mapped_column(KeyText, unique=True)
    holder_host: Mapped[str] = mapped_column(KeyText)
    holder_process_id: Mapped[int] = mapped_column(BigInt)
    renewed_at_ms: Mapped[int] = mapped_column(BigInt)
    expires_at_ms: Mapped[int] = mapped_column(BigInt)


class ModelDownload(Base):
    """
    A download, by the name under which the model was asked for.

    `host` and `token` are those of its claim. The times are milliseconds since 1970 of the
    database's clock.
    """

    __tablename__ = "model_downloads"

    id: Mapped[int] = mapped_column(BigInt, Identity(), primary_key=True)
    host: Mapped[str] = mapped_column(KeyText, server_default=text("''"))
    provider: Mapped[str] = mapped_column(KeyText)
    reference: Mapped[str] = mapped_column(KeyText)
    version: Mapped[str] = mapped_column(KeyText)
    token: Mapped[str] = mapped_column(KeyText, unique=True)
    state: Mapped[str] = mapped_column(KeyText)
    holder_host: Mapped[str] = mapped_column(KeyText)
    holder_process_id: Mapped[int] = mapped_column(BigInt)
    done_bytes: Mapped[int] = mapped_column(BigInt, server_default=text("0"))
    total_bytes: Mapped[int | None] = mapped_column(BigInt)
    queued_at_ms: Mapped[int] = mapped_column(BigInt)
    started_at_ms: Mapped[int | None] = mapped_column(BigInt)
    finished_at_ms: Mapped[int | None] = mapped_column(BigInt)
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'done', 'failed')", name="state"),
        Index(None, "host", "provider", "reference", "version"),
    )


class ModelUse(Base):
    """
    A process that uses a model, until `expires_at_ms`. A model with a use cannot be deleted.

    The times are milliseconds since 1970 of the database's clock.
    """

    __tablename__ = "model_uses"

    token: Mapped[str] = mapped_column(KeyText, primary_key=True)
    model_id: Mapped[int] = mapped_column(BigInt, ForeignKey("models.id"), index=True)
    holder_host: Mapped[str] = mapped_column(KeyText)
    holder_process_id: Mapped[int] = mapped_column(BigInt)
    started_at_ms: Mapped[int] = mapped_column(BigInt)
    renewed_at_ms: Mapped[int] = mapped_column(BigInt)
    expires_at_ms: Mapped[int] = mapped_column(BigInt)


class ModelHost(Base):
    """
    A host of a fleet: how to reach it, its space, and its last heartbeat.

    `labels` is a JSON object of texts. The times are milliseconds since 1970 of the database's
    clock. No column beside the key has an index, so that a heartbeat is a heap-only update.
    """

    __tablename__ = "model_hosts"

    name: Mapped[str] = mapped_column(KeyText, primary_key=True)
    address: Mapped[str | None] = mapped_column(Text)
    labels: Mapped[str | None] = mapped_column(Text)
    ssh_user: Mapped[str | None] = mapped_column(Text)
    ssh_host: Mapped[str | None] = mapped_column(Text)
    ssh_port: Mapped[int | None] = mapped_column(BigInt)
    ssh_key_path: Mapped[str | None] = mapped_column(Text)
    capacity_bytes: Mapped[int | None] = mapped_column(BigInt)
    free_bytes: Mapped[int | None] = mapped_column(BigInt)
    registered_at_ms: Mapped[int] = mapped_column(BigInt)
    heartbeat_at_ms: Mapped[int | None] = mapped_column(BigInt)
