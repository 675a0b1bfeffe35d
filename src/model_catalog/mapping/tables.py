"""The mapping: the four tables of a catalog as SQLAlchemy classes. migrations/ creates them."""

# Without `from __future__ import annotations`: Model.__module__ is changed below, and annotations
# that are strings would be looked up in the wrong module.

import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
)

from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.mapping.column_types import (
    BigInt,
    FileNameText,
    KeyText,
    NullsLast,
    PathText,
    StateText,
    UnixTimestamp,
)
from model_catalog.mapping.model_construction import (
    STATE_SLOTS,
    constructor_signature,
    detached_constructor,
    initialize,
)


class Base(DeclarativeBase):
    """The tables of a catalog. Each constraint has a name, because a migration needs one."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Model(MappedAsDataclass, Base, kw_only=True, eq=False):
    """
    A model. Its key is (provider, reference, version).

    A Model that the catalog returns belongs to no session. `register_model` writes the fields that
    the caller set, in the constructor or later. The other fields keep their recorded values.

    The `claimed_` fields are the values that the header of a file states. A field that no user set
    is read as its claim.
    """

    __tablename__ = "models"
    __slots__ = STATE_SLOTS

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
    """A commit, a tag or a quantization; `""` if there is none. Limited like `provider`."""

    format: Mapped[str | None] = mapped_column(KeyText, default=None)
    """The format of the files, as in `gguf` or `safetensors`."""

    architecture: Mapped[str | None] = mapped_column(KeyText, default=None)
    """The architecture, as in `llama` or `qwen2moe`."""

    quantization: Mapped[str | None] = mapped_column(KeyText, default=None)
    """The quantization, as in `Q4_K_M` or `fp8`."""

    license: Mapped[str | None] = mapped_column(KeyText, default=None)
    """The license, as in `apache-2.0`."""

    context_length: Mapped[int | None] = mapped_column(BigInt, default=None)
    """The maximum context length, in tokens."""

    parameter_count: Mapped[int | None] = mapped_column(BigInt, default=None)
    """The number of parameters."""

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

    digest: Mapped[str | None] = mapped_column(KeyText, index=True, default=None)
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

    __table_args__ = (
        UniqueConstraint(*KEY_FIELDS),
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
        # The default order of a listing.
        Index("ix_models_newest_first", NullsLast.of(downloaded_at.desc()), *KEY_FIELDS),
    )

    # Type checkers see the constructor of the dataclass, which has the same keywords.
    if not TYPE_CHECKING:
        __init__ = initialize

    @property
    def ref(self) -> ModelRef:
        """The name of the model, with its version."""
        return ModelRef(self.provider, self.reference, self.version)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags at the time of reading, in the order of their case-folded forms."""
        tags: tuple[str, ...] = getattr(self, "_tags", ())
        return tags

    @property
    def unsafe(self) -> bool:
        """Whether the weights are a pickle, which can run code when it is loaded."""
        return "pickle" in (self.format, self.claimed_format)

    @property
    def foreign(self) -> bool:
        """
        Whether an external store, such as Ollama's, contains the model.

        Another program owns its files, so a program that frees disk space should not delete them.
        """
        return self.store is not None

    @property
    def pinned(self) -> bool:
        """Whether the model is marked as one to keep. The catalog itself deletes no files."""
        return self.pinned_at is not None


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

    __table_args__ = (
        CheckConstraint("size_bytes BETWEEN 0 AND 9223372036854775807", name="size_bytes"),
    )


class ModelAlias(Base):
    """A name of a reference for one of its versions. `store` is None for an alias of the user."""

    __tablename__ = "model_aliases"

    provider: Mapped[str] = mapped_column(KeyText, primary_key=True)
    reference: Mapped[str] = mapped_column(KeyText, primary_key=True)
    alias: Mapped[str] = mapped_column(KeyText, primary_key=True)
    model_id: Mapped[int] = mapped_column(
        BigInt, ForeignKey("models.id", ondelete="CASCADE"), index=True
    )
    store: Mapped[str | None] = mapped_column(KeyText)


def fold_case(text: str) -> str:
    """
    Return a text in a form that ignores case, for any script.

    It is computed in Python, because SQLite and PostgreSQL fold case differently.
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _folded_parameter(context: DefaultExecutionContext, name: str) -> str | None:
    text: str | None = context.get_current_parameters().get(name)  # type: ignore[no-untyped-call]
    return None if text is None else fold_case(text)


new_detached_model: Final = detached_constructor(Model)

# A pickle stores the module of the class: the public name stays valid when this module moves.
Model.__module__ = "model_catalog"
# help() and inspect.signature() read it.
vars(Model)["__init__"].__signature__ = constructor_signature()
