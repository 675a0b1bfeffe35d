"""The mapping of the table `models` to the class `Model`. migrations/ creates the table."""

# Without `from __future__ import annotations`: Model.__module__ is changed below, and annotations
# that are strings would be looked up in the wrong module.

import os
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    Identity,
    Index,
    Text,
    UniqueConstraint,
    or_,
    text,
)
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, MappedAsDataclass, column_property, mapped_column

from model_catalog.domain.fields import HEADER_FIELDS, KEY_FIELDS, UNIQUE_COLUMNS
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.domain.search_text import fold_case
from model_catalog.mapping.base import Base, PartialIndex
from model_catalog.mapping.column_types import (
    BigInt,
    KeyText,
    NullsFirst,
    PathText,
    StateText,
    UnixTimestamp,
)
from model_catalog.mapping.computed_fields import (
    TagsComparator,
    effective_value,
    read_tags,
    select_tags_text,
)
from model_catalog.mapping.flush_events import listen_to_flushes
from model_catalog.mapping.model_construction import (
    STATE_SLOT,
    constructor_signature,
    dataclass_fields,
    describe,
    detached_constructor,
    duplicate,
    initialize,
    install_constructor,
)


class Model(MappedAsDataclass, Base, kw_only=True, eq=False, repr=False):
    """
    A model. Its key is (provider, reference, version) on its host.

    A Model that the catalog returns belongs to no session. `register_model` writes the fields that
    the caller set, in the constructor or later. The other fields keep their recorded values.

    The `claimed_` fields are the values that the header of a file states, and the `user_`
    attributes are the values that the user set. `architecture` and the like are read as the user's
    value, or as the claim without one.

    In a session of SQLAlchemy all fields and properties can be read and compared. A flush
    validates what changed, and raises InvalidModelError. Only the catalog sets tags.
    """

    __tablename__ = "models"
    __slots__ = (STATE_SLOT,)

    reference: Mapped[str] = mapped_column(KeyText)
    """The name at the provider, as in `TheBloke/TinyLlama-1.1B`; at most 512 characters."""

    provider: Mapped[str] = mapped_column(KeyText)
    """The origin, as in `hf`; at most 128 characters and 256 bytes in UTF-8."""

    local_path: Mapped[str] = mapped_column(PathText)
    """The path of the file or the folder, as the caller gave it. Use `os.fsdecode` for bytes."""

    size_bytes: Mapped[int | None] = mapped_column(BigInt, default=None)
    """The size in bytes; None if it is not known."""

    downloaded_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, default=None)
    """The time of the download in UTC, in whole seconds. Registration replaces None by now."""

    id: Mapped[int] = mapped_column(BigInt, Identity(), primary_key=True, init=False)
    """The row id, which stays the same while the model is recorded."""

    version: Mapped[str] = mapped_column(KeyText, default="", server_default=text("''"))
    """A commit, a tag, a quantization or a path; `""` if there is none. At most 512 characters."""

    if TYPE_CHECKING:
        # Made below the class: the user's value, or the header's claim without one.
        kind: Mapped[str | None] = mapped_column(default=None)
        """
        `model`, `adapter`, `projector`, `imatrix`, `draft`, `tokenizer` or `unknown`.

        None if nothing has looked for it: a host registered the model, or an older release.
        """

        format: Mapped[str | None] = mapped_column(default=None)
        """The format of the files, as in `gguf` or `safetensors`."""

        architecture: Mapped[str | None] = mapped_column(default=None)
        """The architecture, as in `llama` or `qwen2moe`."""

        quantization: Mapped[str | None] = mapped_column(default=None)
        """The quantization, as in `Q4_K_M` or `fp8`."""

        license: Mapped[str | None] = mapped_column(default=None)
        """The license, as in `apache-2.0`."""

        context_length: Mapped[int | None] = mapped_column(default=None)
        """The maximum context length, in tokens."""

        parameter_count: Mapped[int | None] = mapped_column(default=None)
        """The number of parameters."""

        _stored_tags: Mapped[tuple[str, ...]] = mapped_column(init=False)

    user_format: Mapped[str | None] = mapped_column("format", KeyText, init=False)
    user_architecture: Mapped[str | None] = mapped_column("architecture", KeyText, init=False)
    user_quantization: Mapped[str | None] = mapped_column("quantization", KeyText, init=False)
    user_license: Mapped[str | None] = mapped_column("license", KeyText, init=False)
    user_context_length: Mapped[int | None] = mapped_column("context_length", BigInt, init=False)
    user_parameter_count: Mapped[int | None] = mapped_column("parameter_count", BigInt, init=False)

    source_url: Mapped[str | None] = mapped_column(Text, default=None)
    """The URL of the download; at most 2048 characters."""

    claimed_format: Mapped[str | None] = mapped_column(KeyText, default=None)
    claimed_architecture: Mapped[str | None] = mapped_column(KeyText, default=None)
    claimed_quantization: Mapped[str | None] = mapped_column(KeyText, default=None)
    claimed_license: Mapped[str | None] = mapped_column(KeyText, default=None)
    claimed_context_length: Mapped[int | None] = mapped_column(BigInt, default=None)
    claimed_parameter_count: Mapped[int | None] = mapped_column(BigInt, default=None)

    description: Mapped[str | None] = mapped_column(Text, default=None)
    """The user's description; at most 64 KiB of UTF-8."""

    download_count: Mapped[int] = mapped_column(BigInt, server_default=text("1"), init=False)
    """The number of times the model was registered."""

    use_count: Mapped[int] = mapped_column(BigInt, server_default=text("0"), init=False)
    """The number of recorded uses."""

    last_used_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """The time of the last recorded use in UTC, in whole seconds; None without a use."""

    pinned_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """The time of the pin in UTC; None for a model that is not pinned."""

    pin_reason: Mapped[str | None] = mapped_column(Text, init=False)
    """The user's reason for the pin, or None."""

    reference_folded: Mapped[str | None] = mapped_column(
        Text,
        insert_default=lambda context: _folded_parameter(context, "reference"),
        deferred=True,
        init=False,
        repr=False,
    )
    description_folded: Mapped[str | None] = mapped_column(
        Text,
        insert_default=lambda context: _folded_parameter(context, "description"),
        deferred=True,
        init=False,
        repr=False,
    )

    state: Mapped[FileState] = mapped_column(
        StateText, server_default=text("'unchecked'"), init=False
    )
    """The state of the files at the last check; `unchecked` before the first check."""

    state_detail: Mapped[str | None] = mapped_column(Text, init=False)
    """The reason for the state, as a missing file or an error of the system; often None."""

    checked_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """The time of the last check in UTC."""

    missing_since: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """The time, in UTC, of the check that first found the model missing; otherwise None."""

    mount_point: Mapped[str | None] = mapped_column(PathText, init=False)
    """The mount point of the file system that contained the files at the last check."""

    digest: Mapped[str | None] = mapped_column(KeyText, default=None)
    """
    The expected SHA-256 of the bytes, as `sha256:` and 64 hexadecimal digits.

    The digest of several files is that of the output of `sha256sum` for them, sorted by name.
    """

    found_digest: Mapped[str | None] = mapped_column(KeyText, init=False)
    """The digest that the last verification found instead; None if the bytes were as expected."""

    verified_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """The time of the last verification of all bytes, in UTC."""

    inventoried_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """The time at which the files were listed, in UTC; None if no files are recorded."""

    incomplete_reason: Mapped[str | None] = mapped_column(Text, init=False)
    """The reason why the model is incomplete, as a missing shard; None for a complete model."""

    signed_by: Mapped[str | None] = mapped_column(KeyText, init=False)
    """The fingerprint of the public key that verified the signature, as `sha256:` and digits."""

    signature_verdict: Mapped[str | None] = mapped_column(KeyText, init=False)
    """`valid` or `refused`; None before the first check of a signature."""

    signature_detail: Mapped[str | None] = mapped_column(Text, init=False)
    """The reason why the signature was refused."""

    signature_checked_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """The time of the last signature check in UTC."""

    store: Mapped[str | None] = mapped_column(KeyText, init=False)
    """The kind of external store that contains the model, as in `ollama`; otherwise None."""

    store_root: Mapped[str | None] = mapped_column(PathText, init=False)
    """The path of that store. A scan of it may find that the model was removed."""

    headers_read_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """The time at which the headers of the present files were read, in UTC; None if never."""

    user_kind: Mapped[str | None] = mapped_column("kind", KeyText, init=False)
    claimed_kind: Mapped[str | None] = mapped_column(KeyText, default=None)

    unknown_reason: Mapped[str | None] = mapped_column(Text, init=False)
    """What could not be judged of the model's completeness, as a format that is not read."""

    listing_reason: Mapped[str | None] = mapped_column(Text, init=False)
    """The reasons of `incomplete_reason` that file names and lists of a store give, one a line."""

    content_reason: Mapped[str | None] = mapped_column(Text, init=False)
    """The reasons of `incomplete_reason` that the content of the files gives, one a line."""

    managed_root: Mapped[str | None] = mapped_column(PathText, init=False)
    """The folder in which the catalog may delete the files of the model; None: it may not."""

    host: Mapped[str] = mapped_column(KeyText, server_default=text("''"), init=False)
    """The host of the catalog that recorded the model; `""` for a catalog without a host."""

    __table_args__ = (
        UniqueConstraint(*UNIQUE_COLUMNS),
        # BETWEEN, because in SQLite any text is greater than any number: 'abc' >= 0 is true.
        CheckConstraint("size_bytes BETWEEN 0 AND 9223372036854775807", name="size_bytes"),
        CheckConstraint(
            "downloaded_at BETWEEN -62135596800 AND 253402300799", name="downloaded_at"
        ),
        *(
            CheckConstraint(f"{name} BETWEEN 0 AND 9223372036854775807", name=name)
            for number in ("context_length", "parameter_count")
            for name in (number, f"claimed_{number}")
        ),
        # The orders of the listings of one host. The default order is read backwards, because new
        # models are then inserted at its end: at its front they would leave its pages half empty.
        Index(
            "ix_models_newest_first",
            "host",
            NullsFirst.of(downloaded_at.asc()),
            *(each.desc() for each in (provider, reference, version)),
        ),
        Index("ix_models_host_sizes", "host", "size_bytes"),
        PartialIndex("ix_models_unsized", "host", *KEY_FIELDS, where=text("size_bytes IS NULL")),
        PartialIndex(
            "ix_models_last_used",
            "host",
            last_used_at,
            *(each.desc() for each in (provider, reference, version)),
            where=text("last_used_at IS NOT NULL"),
        ),
        PartialIndex(
            "ix_models_most_used",
            "host",
            use_count,
            *(each.desc() for each in (provider, reference, version)),
            where=text("use_count <> 0"),
        ),
        PartialIndex("ix_models_store", "host", "store", where=text("store IS NOT NULL")),
        PartialIndex("ix_models_digest", "digest", where=text("digest IS NOT NULL")),
        # For questions about the models of all hosts. A catalog of one machine has no rows in it.
        PartialIndex("ix_models_copies", *KEY_FIELDS, where=text("host <> ''")),
    )

    # Type checkers see the constructor of the dataclass, which has the same keywords.
    if not TYPE_CHECKING:
        __init__ = initialize

    @property
    def ref(self) -> ModelRef:
        """The name of the model, with its version."""
        return ModelRef(self.provider, self.reference, self.version)

    @hybrid_property
    def tags(self) -> tuple[str, ...]:
        """
        The tags at the time of reading, in the order of their case-folded forms.

        In a statement `Model.tags.contains("chat")` is true for a model with the tag, regardless of
        case.
        """
        return read_tags(self)

    @tags.inplace.comparator
    @classmethod
    def _compare_tags(cls) -> TagsComparator:
        return TagsComparator(cls._stored_tags, cls.id)

    @hybrid_property
    def unsafe(self) -> bool:
        """Whether the weights are a pickle, which can run code when it is loaded."""
        return "pickle" in (self.user_format, self.claimed_format)

    @unsafe.inplace.expression
    @classmethod
    def _select_unsafe(cls) -> ColumnElement[bool]:
        formats = (cls.user_format, cls.claimed_format)
        return or_(*(each.is_not_distinct_from("pickle") for each in formats))

    @hybrid_property
    def foreign(self) -> bool:
        """
        Whether an external store, such as Ollama's, contains the model.

        Another program owns its files, so a program that frees disk space should not delete them. A
        model that the catalog has downloaded into a store, with a `managed_root`, is not foreign.
        """
        return self.store is not None and self.managed_root is None

    @foreign.inplace.expression
    @classmethod
    def _select_foreign(cls) -> ColumnElement[bool]:
        return cls.store.is_not(None) & cls.managed_root.is_(None)

    @hybrid_property
    def pinned(self) -> bool:
        """Whether the model is marked as one to keep: it is never evicted."""
        return self.pinned_at is not None

    @pinned.inplace.expression
    @classmethod
    def _select_pinned(cls) -> ColumnElement[bool]:
        return cls.pinned_at.is_not(None)

    def to_dict(self) -> dict[str, Any]:
        """
        Return the fields that `model-catalog show --json` prints, as JSON values.

        Times are texts in UTC, as in `2026-11-23T14:05:09Z`, and tags are a list.
        """
        from model_catalog.domain.json_fields import to_json_fields  # noqa: PLC0415 - seldom used

        return to_json_fields(self)

    def __repr__(self) -> str:
        return describe(self)

    def __copy__(self) -> Self:
        return duplicate(self)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        return duplicate(self)  # no value of a field can be changed in place

    def __getstate__(self) -> object:
        # The default. A class with slots must name it for the pickle protocols 0 and 1.
        return object.__getstate__(self)


def _folded_parameter(context: DefaultExecutionContext, name: str) -> str | None:
    text: str | None = context.get_current_parameters().get(name)  # type: ignore[no-untyped-call]
    return None if text is None else fold_case(text)


for _name in HEADER_FIELDS:
    setattr(Model, _name, effective_value(_name))
Model.__dataclass_fields__ = dataclass_fields(Model.__dataclass_fields__)

Model._stored_tags = column_property(  # noqa: SLF001 - declared below the table that it reads
    select_tags_text(Model.id), expire_on_flush=False
)
listen_to_flushes(Model)

new_detached_model: Final = detached_constructor(Model)
install_constructor(Model)

# A pickle stores the module of the class: the public name stays valid when this module moves.
Model.__module__ = "model_catalog"
# help() and inspect.signature() read it.
vars(Model)["__init__"].__signature__ = constructor_signature()

if hasattr(os, "register_at_fork"):
    # At the first use of a class SQLAlchemy configures the mappers under a lock. A child that is
    # forked meanwhile would wait for ever for that lock, which a thread of its parent holds.
    os.register_at_fork(before=Base.registry.configure)
