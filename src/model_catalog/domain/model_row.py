"""A model as a plain tuple."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from model_catalog.domain.file_record import FileState


class ModelRow(NamedTuple):
    """
    What is known of a model, as a plain tuple: the fields of `Model`, and its tags.

    It takes a fraction of a Model's time and memory to make, and cannot be registered again.
    """

    reference: str
    provider: str
    local_path: str
    size_bytes: int | None
    downloaded_at: datetime | None
    id: int
    version: str
    format: str | None
    architecture: str | None
    quantization: str | None
    license: str | None
    context_length: int | None
    parameter_count: int | None
    source_url: str | None
    claimed_format: str | None
    claimed_architecture: str | None
    claimed_quantization: str | None
    claimed_license: str | None
    claimed_context_length: int | None
    claimed_parameter_count: int | None
    description: str | None
    download_count: int
    use_count: int
    last_used_at: datetime | None
    pinned_at: datetime | None
    pin_reason: str | None
    state: FileState
    state_detail: str | None
    checked_at: datetime | None
    missing_since: datetime | None
    mount_point: str | None
    digest: str | None
    found_digest: str | None
    verified_at: datetime | None
    inventoried_at: datetime | None
    incomplete_reason: str | None
    signed_by: str | None
    signature_verdict: str | None
    signature_detail: str | None
    signature_checked_at: datetime | None
    store: str | None
    store_root: str | None
    tags: tuple[str, ...]
