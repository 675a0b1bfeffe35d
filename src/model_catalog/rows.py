"""The rows in which models are read, and what is made of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, ScalarSelect, Select, func, select

from model_catalog.inventory import FileState
from model_catalog.model import (
    Model,
    PathText,
    StateText,
    UnixSeconds,
    detached,
    folded,
    read_moment,
    read_path,
    read_state,
)
from model_catalog.prepared import Row, stored
from model_catalog.query import KNOWN, MODELS, TAGS, C

# A control character, which no tag and no alias has in it.
_BETWEEN: Final = "\x1f"


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


_READERS: Final[Mapping[type, Callable[[Any], Any]]] = {
    UnixSeconds: read_moment,
    PathText: read_path,
    StateText: read_state,
}
_READ: Final = tuple(
    (at, name, _READERS[type(C[name].type)])
    for at, name in enumerate(KNOWN)
    if type(C[name].type) in _READERS
)
_NAMES: Final = (*KNOWN, "_tags")


def known(dialect: str) -> Select[Any]:
    """Everything that is known of models as it is stored, with their tags."""
    fields = (stored(expression).label(name) for name, expression in KNOWN.items())
    return select(*fields, stored(joined(dialect, TAGS.c.tag)).label("_tags"))


def joined(
    dialect: str, text: ColumnElement[str], *which: ColumnElement[bool]
) -> ScalarSelect[str]:
    """The texts of a model's children in one, in any order; NULL where there are none."""
    join = func.group_concat if dialect == "sqlite" else func.string_agg
    children = select(join(text, _BETWEEN)).where(text.table.c.model_id == C.id, *which)
    return children.correlate(MODELS).scalar_subquery()


def split(joined: str | None) -> tuple[str, ...]:
    """The texts that were joined in one, in the order of their folded forms."""
    if joined is None:
        return ()
    return tuple(sorted(joined.split(_BETWEEN), key=lambda text: (folded(text), text)))


def model_of(row: Row) -> Model:
    """The model in a row of what is `known`."""
    values = dict(zip(_NAMES, row, strict=True))
    for _, name, read in _READ:
        if (value := values[name]) is not None:
            values[name] = read(value)
    values["_tags"] = split(values["_tags"])
    return detached(values)


def plain(rows: Iterable[Row]) -> list[ModelRow]:
    """What is `known` of models, without the models."""
    found = []
    for row in rows:
        values = list(row)
        for at, _, read in _READ:
            if (value := values[at]) is not None:
                values[at] = read(value)
        values[-1] = split(values[-1])
        found.append(ModelRow._make(values))
    return found
