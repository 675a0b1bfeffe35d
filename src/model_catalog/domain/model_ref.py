"""The name of a model: as one text, `provider:reference@version`, or as arguments of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from model_catalog.domain import key_validation, validation
from model_catalog.errors import CatalogError, InvalidModelError

_FORMS: Final = (
    "give a text such as 'hf:org/repo' or 'hf:org/repo@v1', a ModelRef, or a reference and a "
    "provider"
)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """
    The name of a model: its provider, its reference, and optionally its version or an alias.

    `version=None` means the version that was downloaded last. `""` means the model without a
    version. Raises InvalidModelError for a blank provider or reference.
    """

    provider: str
    reference: str
    version: str | None = None

    def __post_init__(self) -> None:
        for field, value in (("provider", self.provider), ("reference", self.reference)):
            text = validation.lookup_text(field, value)
            if not text.strip():
                raise InvalidModelError(
                    field, value, "must not be blank: write provider:reference, as in hf:org/repo"
                )
            object.__setattr__(self, field, text)
        if self.version is not None:
            object.__setattr__(self, "version", validation.lookup_text("version", self.version))

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """
        Parse `provider:reference[@version]`.

        The provider ends at the first colon, and the version begins after the last `@`: the
        reference of `hf:org/repo:Q4_K_M@main` is `org/repo:Q4_K_M`. `hf:org/repo@` names the model
        without a version. Whitespace is part of the names. In a version, `%40` stands for `@` if
        `__str__` writes the version in this way.

        Raises InvalidModelError for a text without a provider or a reference.
        """
        provider, colon, name = validation.lookup_text("ref", text).partition(":")
        if not colon:
            raise InvalidModelError(
                "ref", text, "has no provider: write provider:reference, as in hf:org/repo"
            )
        reference, at, version = name.rpartition("@")
        if not at:
            return cls(provider, name)
        return cls(provider, reference, _unescape(version) if _is_escaped(version) else version)

    def __str__(self) -> str:
        """
        Return the text that `parse` parses.

        An `@` in a version is written as `%40`, and a `%` beside it as `%25`. `parse` returns
        another name in two cases: the provider contains a colon, or the version is None and the
        reference contains an `@`.
        """
        if self.version is None:
            return f"{self.provider}:{self.reference}"
        version = self.version
        if "@" in version or _is_escaped(version):
            version = version.replace("%", "%25").replace("@", "%40")
        return f"{self.provider}:{self.reference}@{version}"


def _unescape(text: str) -> str:
    return text.replace("%40", "@").replace("%25", "%")


def _is_escaped(text: str) -> bool:
    """
    Return whether a text is the escaped form of a version.

    That is one with an `@`, or one that would be taken for an escaped form itself.
    """
    # The work grows with the square of the length. No version is longer.
    if len(text) > 3 * key_validation.MAX_VERSION:
        return False
    while "%" in text and "@" not in text:
        plain = _unescape(text)
        if plain == text or plain.replace("%", "%25").replace("@", "%40") != text:
            return False
        if "@" in plain:
            return True
        text = plain
    return False


class NamedModel(Protocol):
    """An object that names a model: a `Model`, a `ModelRow`, an `Alias` or a finding of a check."""

    @property
    def ref(self) -> ModelRef:
        """The name of the model, with its version."""


ModelName: TypeAlias = str | ModelRef | NamedModel
"""The name of a model as one argument; a text is what `ModelRef.parse` parses."""


def resolve_name(
    reference: object, provider: object = None, version: object = None
) -> tuple[str, str, str | None]:
    """
    Return the reference, the provider and the version that the arguments of a call name.

    A model is named by one argument, a `ModelName`, or by a reference and a provider, with or
    without a version. Raises InvalidModelError for half a name, for a name that is given twice, and
    for a provider and a reference that were swapped.
    """
    if provider is None or not isinstance(reference, str):
        return _resolve_one_argument(reference, provider, version)
    reference = validation.lookup_text("reference", reference)
    provider = validation.lookup_text("provider", provider)
    # References often contain a slash or a colon. Providers never contain a colon, and a slash only
    # if they are unusual.
    if ("/" in provider and "/" not in reference) or (":" in provider and ":" not in reference):
        raise InvalidModelError(
            "provider",
            provider,
            "looks like a reference: give the reference first, then the provider. If this is the "
            "provider, pass ModelRef(provider, reference)",
        )
    if version is not None:
        version = validation.lookup_text("version", version)
    return reference, provider, version


def _resolve_one_argument(
    model: object, provider: object, version: object
) -> tuple[str, str, str | None]:
    ref = _ref_of(model)
    for field, value in (("provider", provider), ("version", version)):
        if value is not None:
            raise InvalidModelError(
                field,
                value,
                f"follows {str(ref)!r}, which names a model already: give the version in the name, "
                "as in hf:org/repo@v1, and other arguments by keyword",
            )
    return ref.reference, ref.provider, ref.version


def _ref_of(model: Any) -> ModelRef:
    if isinstance(model, ModelRef):
        return model
    if isinstance(model, str):
        if ":" not in model:
            problem = f"is missing, because {model!r} is only a reference: {_FORMS}"
            raise InvalidModelError("provider", None, problem)
        return ModelRef.parse(model)
    kind = type(model).__name__
    try:
        ref: object = model.ref
    except CatalogError:
        raise
    except AttributeError as error:
        raise InvalidModelError("reference", model, f"is a {kind}: {_FORMS}") from error
    except Exception as error:
        # The object is the caller's: an expired Model of a session raises errors of SQLAlchemy,
        # and its repr would raise them again.
        problem = f"cannot be read from this {kind}: refresh it, or {_FORMS}"
        raise InvalidModelError("reference", None, problem) from error
    if not isinstance(ref, ModelRef):
        # For example the class Model in place of a model.
        raise InvalidModelError("reference", model, f"is a {kind}: {_FORMS}")
    return ref


def split_arguments(
    model: object, provider: str | None, others: Sequence[str]
) -> tuple[str | None, Sequence[str]]:
    """
    Return the provider and the other texts of a call whose arguments are a name and other texts.

    An object is a whole name, so all texts after it are other arguments.
    """
    if provider is None or isinstance(model, str):
        return provider, others
    return None, (provider, *others)
