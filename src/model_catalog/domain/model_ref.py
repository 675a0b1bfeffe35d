"""How a model is named in one text: `provider:reference@version`."""

from __future__ import annotations

from dataclasses import dataclass

from model_catalog.domain import validation
from model_catalog.errors import InvalidModelError


@dataclass(frozen=True, slots=True)
class ModelRef:
    """
    A provider, a reference, and perhaps a version: the name of a model to look for.

    `version=None` means the one downloaded last; `""` means the one without a version.
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
        Read `provider:reference[@version]`.

        The provider ends at the first colon and the version begins after the last `@`, so
        `hf:org/repo:Q4_K_M@main` has the reference `org/repo:Q4_K_M`. With nothing after the `@`,
        `hf:org/repo@` names the model that was recorded without a version. Blanks are kept.

        Raises InvalidModelError.
        """
        provider, colon, rest = validation.lookup_text("ref", text).partition(":")
        if not colon:
            raise InvalidModelError(
                "ref", text, "names no provider: write provider:reference, as in hf:org/repo"
            )
        reference, at, version = rest.rpartition("@")
        return cls(provider, reference, version) if at else cls(provider, rest)

    def __str__(self) -> str:
        """
        The text that `parse` reads back.

        Not so for a provider with a colon, a version with an `@`, or a reference with an `@` and
        no version: such names need the three arguments.
        """
        version = "" if self.version is None else f"@{self.version}"
        return f"{self.provider}:{self.reference}{version}"
