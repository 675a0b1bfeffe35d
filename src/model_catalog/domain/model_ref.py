"""The name of a model as one text: `provider:reference@version`."""

from __future__ import annotations

from dataclasses import dataclass

from model_catalog.domain import validation
from model_catalog.errors import InvalidModelError


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
        without a version. Whitespace is part of the names.

        Raises InvalidModelError for a text without a provider or a reference.
        """
        provider, colon, name = validation.lookup_text("ref", text).partition(":")
        if not colon:
            raise InvalidModelError(
                "ref", text, "has no provider: write provider:reference, as in hf:org/repo"
            )
        reference, at, version = name.rpartition("@")
        return cls(provider, reference, version) if at else cls(provider, name)

    def __str__(self) -> str:
        """
        Return the text that `parse` parses.

        `parse` returns another name in three cases: the provider contains a colon, the version
        contains an `@`, or the version is None and the reference contains an `@`.
        """
        version = "" if self.version is None else f"@{self.version}"
        return f"{self.provider}:{self.reference}{version}"
