"""The tables beside `models`: tags, files, aliases, downloads, uses, leases, and hosts."""

# Tables and not mapped classes, because no code reads or writes objects of them. A mapped class
# takes 1.8 ms at import, and a table 0.5 ms.

from __future__ import annotations

from functools import partial
from typing import Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from model_catalog.mapping.base import Base
from model_catalog.mapping.column_types import BigInt, FileNameText, KeyText, UnixTimestamp

_key: Final = partial(Column, primary_key=True, nullable=False)
_required: Final = partial(Column, nullable=False)
_optional: Final = partial(Column, nullable=True)
_EMPTY: Final = text("''")

TAGS: Final = Table(
    "model_tags",
    Base.metadata,
    _key("model_id", BigInt, ForeignKey("models.id", ondelete="CASCADE"), autoincrement=False),
    _key("folded", KeyText, index=True),
    _required("tag", KeyText),
)
"""A tag of a model. The key contains its case-folded form, so that case does not matter."""

FILES: Final = Table(
    "model_files",
    Base.metadata,
    _key("model_id", BigInt, ForeignKey("models.id", ondelete="CASCADE"), autoincrement=False),
    _key("path", FileNameText),
    _required("role", KeyText),
    _required("size_bytes", BigInt),
    _optional("digest", KeyText, index=True),
    _optional("found_digest", KeyText),
    _optional("fingerprint", KeyText),
    _optional("hashed_at", UnixTimestamp),
    _optional("file_id", KeyText),
    _optional("disk_bytes", BigInt),
    CheckConstraint("size_bytes BETWEEN 0 AND 9223372036854775807", name="size_bytes"),
)
"""A file of a model. `path` is relative to the model, and `digest` is the expected digest."""

ALIASES: Final = Table(
    "model_aliases",
    Base.metadata,
    _required("provider", KeyText),
    _required("reference", KeyText),
    _required("alias", KeyText),
    _required("model_id", BigInt, ForeignKey("models.id", ondelete="CASCADE"), index=True),
    _optional("store", KeyText),
    _required("host", KeyText, server_default=_EMPTY),
    PrimaryKeyConstraint("host", "provider", "reference", "alias"),
)
"""
A name of a reference for one of its versions. `store` is None for an alias of the user.

`host` is the host of the model.
"""

LEASES: Final = Table(
    "model_catalog_leases",
    Base.metadata,
    _required("name", KeyText),
    _required("holder", KeyText),
    _required("renewed_at_ms", BigInt),
    _required("expires_at_ms", BigInt),
    _required("host", KeyText, server_default=_EMPTY),
    PrimaryKeyConstraint("host", "name"),
)
"""
The right of one process to do a background task for a host, for a limited time.

`host` is the catalog's host, `""` for a catalog without one. The times are milliseconds since
1970 of the database's clock.
"""

CLAIMS: Final = Table(
    "model_claims",
    Base.metadata,
    _key("host", KeyText, server_default=_EMPTY),
    _key("provider", KeyText),
    _key("reference", KeyText),
    _key("version", KeyText),
    _required("purpose", KeyText),
    _required("token", KeyText, unique=True),
    _required("holder_host", KeyText),
    _required("holder_process_id", BigInt),
    _required("renewed_at_ms", BigInt),
    _required("expires_at_ms", BigInt),
)
"""
The right of one process to download or to evict a model, for a limited time.

`host` is the catalog's host: `""` for a catalog without one, `*` for a disk that all hosts
share. `holder_host` is the name of the holder's machine. `token` is random, and names the
holder. The times are milliseconds since 1970 of the database's clock.
"""

DOWNLOADS: Final = Table(
    "model_downloads",
    Base.metadata,
    _key("id", BigInt, Identity()),
    _required("host", KeyText, server_default=_EMPTY),
    _required("provider", KeyText),
    _required("reference", KeyText),
    _required("version", KeyText),
    _required("token", KeyText, unique=True),
    _required("state", KeyText),
    _required("holder_host", KeyText),
    _required("holder_process_id", BigInt),
    _required("done_bytes", BigInt, server_default=text("0")),
    _optional("total_bytes", BigInt),
    _required("queued_at_ms", BigInt),
    _optional("started_at_ms", BigInt),
    _optional("finished_at_ms", BigInt),
    _optional("error", Text),
    CheckConstraint("state IN ('queued', 'running', 'done', 'failed')", name="state"),
    Index(None, "host", "provider", "reference", "version"),
)
"""
A download, by the name under which the model was asked for.

`host` and `token` are those of its claim. The times are milliseconds since 1970 of the
database's clock.
"""

USES: Final = Table(
    "model_uses",
    Base.metadata,
    _key("token", KeyText),
    _required("model_id", BigInt, ForeignKey("models.id"), index=True),
    _required("holder_host", KeyText),
    _required("holder_process_id", BigInt),
    _required("started_at_ms", BigInt),
    _required("renewed_at_ms", BigInt),
    _required("expires_at_ms", BigInt),
)
"""
A process that uses a model, until `expires_at_ms`. A model with a use cannot be deleted.

The times are milliseconds since 1970 of the database's clock.
"""

HOSTS: Final = Table(
    "model_hosts",
    Base.metadata,
    _key("name", KeyText),
    _optional("address", Text),
    _optional("labels", Text),
    _optional("ssh_user", Text),
    _optional("ssh_host", Text),
    _optional("ssh_port", BigInt),
    _optional("ssh_key_path", Text),
    _optional("capacity_bytes", BigInt),
    _optional("free_bytes", BigInt),
    _required("registered_at_ms", BigInt),
    _optional("heartbeat_at_ms", BigInt),
)
"""
A host of a fleet: how to reach it, its space, and its last heartbeat.

`labels` is a JSON object of texts. The times are milliseconds since 1970 of the database's
clock. No column beside the key has an index, so that a heartbeat is a heap-only update.
"""
