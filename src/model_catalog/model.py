"""What is recorded of a model: the mapping. How a database gets there is in migrations/."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Dialect,
    Identity,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    make_transient_to_detached,
    mapped_column,
)
from sqlalchemy.types import TypeDecorator

from model_catalog.reference import ModelRef

REVISION: Final = "0002"
"""The revision of the schema that this mapping describes."""

# SQLite numbers rows by itself only in a column that is an INTEGER to the letter.
BigInt: Final = BigInteger().with_variant(Integer(), "sqlite")

# PostgreSQL would order by the server's locale: the same listing would come in another order on
# another machine. SQLite compares bytes; so does "C".
KeyText: Final = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


class UnixSeconds(TypeDecorator[datetime]):
    """A UTC datetime in Python; whole seconds since 1970 in the database, as the hive had it."""

    impl = BigInt
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else int(value.timestamp() // 1)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else datetime.fromtimestamp(value, UTC)


class PathText(TypeDecorator[str]):
    """
    A path as text, whatever its bytes.

    A path that is UTF-8 is stored as it is. One that is not (or that begins like one that is not)
    is stored as `bytes:` and its percent-encoded bytes: neither database takes the surrogates
    that `os.fsdecode` makes of such bytes.
    """

    impl = Text
    cache_ok = True
    _mark: Final = "bytes:"

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        raw = value.encode("utf-8", "surrogateescape")
        try:
            raw.decode()
        except UnicodeDecodeError:
            return self._mark + quote_from_bytes(raw)
        return self._mark + quote_from_bytes(raw) if value.startswith(self._mark) else value

    def process_result_value(self, value: str | bytes | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if isinstance(value, bytes):
            # A text to SQLite's mind: an old file may hold a path as the bytes it is.
            return value.decode("utf-8", "surrogateescape")
        if value is None or not value.startswith(self._mark):
            return value
        return unquote_to_bytes(value[len(self._mark) :]).decode("utf-8", "surrogateescape")


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
    """

    __tablename__ = "models"

    reference: Mapped[str] = mapped_column(KeyText)
    """What the provider calls it, as in `TheBloke/TinyLlama-1.1B`; at most 512 characters."""

    provider: Mapped[str] = mapped_column(KeyText)
    """Where it is from, as in `hf`; at most 128 characters."""

    local_path: Mapped[str] = mapped_column(PathText)
    """Where it lies, as it was given: a file or a folder. Decode bytes with `os.fsdecode`."""

    size_bytes: Mapped[int | None] = mapped_column(BigInt, default=None)
    """None where it is not known."""

    downloaded_at: Mapped[datetime | None] = mapped_column(UnixSeconds, default=None)
    """UTC, whole seconds. Registering sets it to now where it is None; old rows may have none."""

    id: Mapped[int] = mapped_column(BigInt, Identity(), primary_key=True, init=False)
    """The row's own number: it stays the same for as long as the model is recorded."""

    version: Mapped[str] = mapped_column(KeyText, default="", server_default=text("''"))
    """A commit, a tag, a quantization; `""` where there is only one. At most 128 characters."""

    __table_args__ = (
        UniqueConstraint("provider", "reference", "version"),
        # BETWEEN, because to SQLite any text is greater than any number: 'abc' >= 0 holds there.
        CheckConstraint("size_bytes BETWEEN 0 AND 9223372036854775807", name="size_bytes"),
        CheckConstraint(
            "downloaded_at BETWEEN -62135596800 AND 253402300799", name="downloaded_at"
        ),
    )

    @property
    def ref(self) -> ModelRef:
        """Its name, with its version."""
        return ModelRef(self.provider, self.reference, self.version)


def detached(values: dict[str, Any]) -> Model:
    """
    A Model as it was read, belonging to no session.

    Sessions expire what they hold when they commit; what the catalog hands out stays readable.
    """
    if not Model.__mapper__.configured:
        # The first Model(...) of a process would do it; a process that only reads has none.
        Base.registry.configure()
    model: Model = Model.__mapper__.class_manager.new_instance()
    model.__dict__.update(values)
    make_transient_to_detached(model)
    return model
