"""What is recorded of a model: the mapping. How a database gets there is in migrations/."""

from __future__ import annotations

import unicodedata
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

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
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import NO_VALUE

from model_catalog.domain.fields import INPUT_FIELDS, KEY_FIELDS, REQUIRED_FIELDS
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

REVISION: Final = "0015"
"""The revision of the schema that this mapping describes."""


class Base(DeclarativeBase):
    """The tables of a catalog. Every constraint has a name: only what has one can be migrated."""

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
    One model: (provider, reference, version) is its key.

    A plain object with no session behind it. `register_model` writes the fields that were set, by
    the constructor or afterwards, and leaves the others as the catalog has them.

    What a header claims is in the `claimed_` fields. A field that nobody has set reads, from the
    catalog, as what is claimed of it.
    """

    __tablename__ = "models"
    # Up to 42 names a dict takes 832 bytes, and from the next one on 1,584: what is no column lies
    # beside it, and a long list in two thirds of the room.
    __slots__ = ("_sa_instance_state", "_tags")

    reference: Mapped[str] = mapped_column(KeyText)
    """What the provider calls it, as in `TheBloke/TinyLlama-1.1B`; at most 512 characters."""

    provider: Mapped[str] = mapped_column(KeyText)
    """Where it is from, as in `hf`; at most 128 characters and 256 bytes."""

    local_path: Mapped[str] = mapped_column(PathText)
    """Where it lies, as it was given: a file or a folder. Decode bytes with `os.fsdecode`."""

    size_bytes: Mapped[int | None] = mapped_column(BigInt, default=None)
    """None where it is not known."""

    downloaded_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, default=None)
    """UTC, whole seconds. Registering sets it to now where it is None; old rows may have none."""

    id: Mapped[int] = mapped_column(BigInt, Identity(), primary_key=True, init=False)
    """The row's own number: it stays the same for as long as the model is recorded."""

    version: Mapped[str] = mapped_column(KeyText, default="", server_default=text("''"))
    """A commit, a tag, a quantization; `""` where there is only one. As long as a provider."""

    format: Mapped[str | None] = mapped_column(KeyText, default=None)
    """The format of its files, as in `gguf` or `safetensors`."""

    architecture: Mapped[str | None] = mapped_column(KeyText, default=None)
    """As in `llama` or `qwen2moe`."""

    quantization: Mapped[str | None] = mapped_column(KeyText, default=None)
    """As in `Q4_K_M` or `fp8`."""

    license: Mapped[str | None] = mapped_column(KeyText, default=None)
    """As in `apache-2.0`."""

    context_length: Mapped[int | None] = mapped_column(BigInt, default=None)
    """In tokens."""

    parameter_count: Mapped[int | None] = mapped_column(BigInt, default=None)

    source_url: Mapped[str | None] = mapped_column(Text, default=None)
    """Where it was downloaded from; at most 2048 characters."""

    claimed_format: Mapped[str | None] = mapped_column(KeyText, default=None)
    claimed_architecture: Mapped[str | None] = mapped_column(KeyText, default=None)
    claimed_quantization: Mapped[str | None] = mapped_column(KeyText, default=None)
    claimed_license: Mapped[str | None] = mapped_column(KeyText, default=None)
    claimed_context_length: Mapped[int | None] = mapped_column(BigInt, default=None)
    claimed_parameter_count: Mapped[int | None] = mapped_column(BigInt, default=None)

    description: Mapped[str | None] = mapped_column(Text, default=None)
    """The user's own words; at most 64 KiB of UTF-8."""

    download_count: Mapped[int] = mapped_column(BigInt, server_default=text("1"), init=False)
    """How many times it was registered."""

    use_count: Mapped[int] = mapped_column(BigInt, server_default=text("0"), init=False)
    """How many uses were recorded."""

    last_used_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """UTC, whole seconds; None for a model of which no use was recorded."""

    pinned_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """Since when it is pinned, in UTC; None for one that is not."""

    pin_reason: Mapped[str | None] = mapped_column(Text, init=False)
    """Why it is pinned, where a reason was given."""

    reference_folded: Mapped[str | None] = mapped_column(
        Text,
        insert_default=lambda context: _fold_of(context, "reference"),
        deferred=True,
        init=False,
        repr=False,
    )
    description_folded: Mapped[str | None] = mapped_column(
        Text,
        insert_default=lambda context: _fold_of(context, "description"),
        deferred=True,
        init=False,
        repr=False,
    )

    state: Mapped[FileState] = mapped_column(
        StateText, server_default=text("'unchecked'"), init=False
    )
    """What the last look at the disk found of its files; no look, no state but `unchecked`."""

    state_detail: Mapped[str | None] = mapped_column(Text, init=False)
    """What is behind the state: which file is missing, what the system says; often None."""

    checked_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """When the disk was last looked at, in UTC."""

    missing_since: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """When it was first found missing, in UTC; None for one that is there."""

    mount_point: Mapped[str | None] = mapped_column(PathText, init=False)
    """Where the disk was mounted on which it was last seen."""

    digest: Mapped[str | None] = mapped_column(KeyText, index=True, default=None)
    """
    The SHA-256 its bytes should have, as `sha256:` and 64 hexadecimal digits.

    Of several files it is that of what `sha256sum` prints for them in the order of their names.
    """

    found_digest: Mapped[str | None] = mapped_column(KeyText, init=False)
    """What its bytes had instead when they were last verified; None where they were as expected."""

    verified_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """When all its bytes were last read and compared, in UTC."""

    inventoried_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """When its files were listed, in UTC; None where they are not known."""

    incomplete_reason: Mapped[str | None] = mapped_column(Text, init=False)
    """Why it is not whole: a shard is missing, a file is shorter than it says. None if it is."""

    signed_by: Mapped[str | None] = mapped_column(KeyText, init=False)
    """The fingerprint of the key that its signature was verified with, as `sha256:` and digits."""

    signature_verdict: Mapped[str | None] = mapped_column(KeyText, init=False)
    """`valid` or `refused`; None for a model of which no signature was looked at."""

    signature_detail: Mapped[str | None] = mapped_column(Text, init=False)
    """Why the signature was refused."""

    signature_checked_at: Mapped[datetime | None] = mapped_column(UnixTimestamp, init=False)
    """When the signature was looked at, in UTC."""

    store: Mapped[str | None] = mapped_column(KeyText, init=False)
    """In which kind of store it lies, as in `ollama`; None for one that is the user's own."""

    store_root: Mapped[str | None] = mapped_column(PathText, init=False)
    """Where that store lies: a scan of it may tell that the model has gone."""

    __table_args__ = (
        UniqueConstraint(*KEY_FIELDS),
        # BETWEEN, because to SQLite any text is greater than any number: 'abc' >= 0 holds there.
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

    # To type checkers it is the one that a dataclass makes, with a keyword for each field that has
    # init. That one sets each of them by itself, which takes longer than to store the model.
    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            if not (_NEEDED <= values.keys() <= INPUT_FIELDS):
                raise _wrong(values.keys())
            state = instance_state(self)
            # As each attribute would have noted it: it was set, and had no value before.
            state.committed_state.update(dict.fromkeys(values, NO_VALUE))
            state.modified = True
            self.__dict__ = values

    @property
    def ref(self) -> ModelRef:
        """Its name, with its version."""
        return ModelRef(self.provider, self.reference, self.version)

    @property
    def tags(self) -> tuple[str, ...]:
        """As the catalog had them when it was read, in the order of their folded forms."""
        tags: tuple[str, ...] = getattr(self, "_tags", ())
        return tags

    @property
    def unsafe(self) -> bool:
        """Whether loading it runs code that is in it: its weights are pickled."""
        return "pickle" in (self.format, self.claimed_format)

    @property
    def foreign(self) -> bool:
        """Whether it lies in a store that is not ours: nobody is ever offered to delete it."""
        return self.store is not None

    @property
    def pinned(self) -> bool:
        """Whether it is protected from eviction."""
        return self.pinned_at is not None


class ModelTag(Base):
    """A tag of a model. Its key is the folded form: tags that differ in case alone are one."""

    __tablename__ = "model_tags"

    model_id: Mapped[int] = mapped_column(
        BigInt, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    folded: Mapped[str] = mapped_column(KeyText, primary_key=True, index=True)
    tag: Mapped[str] = mapped_column(KeyText)


class ModelFile(Base):
    """A file of a model, by its path inside the model; `digest` is the expected one."""

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
    """A name of one reference that points at one of its versions; a store's, or the user's own."""

    __tablename__ = "model_aliases"

    provider: Mapped[str] = mapped_column(KeyText, primary_key=True)
    reference: Mapped[str] = mapped_column(KeyText, primary_key=True)
    alias: Mapped[str] = mapped_column(KeyText, primary_key=True)
    model_id: Mapped[int] = mapped_column(
        BigInt, ForeignKey("models.id", ondelete="CASCADE"), index=True
    )
    store: Mapped[str | None] = mapped_column(KeyText)


def fold_case(text: str) -> str:
    """A text without regard to case, in any script, as both databases are to compare it."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _fold_of(context: DefaultExecutionContext, name: str) -> str | None:
    text: str | None = context.get_current_parameters().get(name)  # type: ignore[no-untyped-call]
    return None if text is None else fold_case(text)


_NEEDED: Final = frozenset(REQUIRED_FIELDS)


def _wrong(given: AbstractSet[str]) -> TypeError:
    """What Python says of a call with other keywords than it takes."""
    unknown, missing = sorted(given - INPUT_FIELDS), sorted(_NEEDED - given)
    fault = "got an unexpected" if unknown else "is missing a required"
    return TypeError(f"Model() {fault} keyword argument: {', '.join(unknown or missing)}")


_identity_key: Final = Model.__mapper__.identity_key_from_primary_key
_new_instance: Final = Model.__mapper__.class_manager.new_instance


def new_detached_model(values: dict[str, Any], tags: tuple[str, ...]) -> Model:
    """
    A Model as it was read, belonging to no session; the values become its own.

    Sessions expire what they hold when they commit; what the catalog hands out stays readable.
    """
    if not Model.__mapper__.configured:
        # The first Model(...) of a process would do it; a process that only reads has none.
        Base.registry.configure()
    model: Model = _new_instance()
    # Not update(): a dictionary of that many names grows three times before it has them all.
    model.__dict__ = values
    if tags:
        object.__setattr__(model, "_tags", tags)
    # What make_transient_to_detached() would do as well takes four times as long: it looks for
    # attributes to expire, and a model that was made this moment has nothing to forget.
    instance_state(model).key = _identity_key((values["id"],))
    return model
