"""The kinds of models, and how the header of a GGUF file and the names of files tell them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    # The field table needs the kinds, but not this module.
    from model_catalog.files.formats.header import Header

Role: TypeAlias = Literal[
    "weights",
    "config",
    "tokenizer",
    "projector",
    "adapter",
    "draft",
    "imatrix",
    "template",
    "license",
    "other",
]
"""
The purpose of a file in a model.

`file_role` never returns "template" or "license". Only a store with manifests, such as Ollama's,
assigns those.
"""

Kind: TypeAlias = Literal[
    "model", "adapter", "projector", "imatrix", "draft", "tokenizer", "unknown"
]
"""
What a model is for.

A `model` can be loaded alone. An `adapter` (LoRA), a `projector` (the image or audio encoder of
another model) and a `draft` (for speculative decoding) need another model. An `imatrix` is the
input of a quantization, and a `tokenizer` has no weights.
"""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_KINDS_OF_ROLES: Final[Mapping[Role, Kind]] = {
    "adapter": "adapter",
    "projector": "projector",
    "imatrix": "imatrix",
    "draft": "draft",
}
# In this order: a folder with weights and an adapter is a model.
_ROLES: Final[tuple[tuple[Role, Kind], ...]] = (
    ("weights", "model"),
    *_KINDS_OF_ROLES.items(),
    ("tokenizer", "tokenizer"),
)
# `general.type` of a GGUF header: class GGUFType of gguf 0.19.0.
_KINDS_OF_GGUF_TYPES: Final[Mapping[str, Kind]] = {
    "model": "model",
    "adapter": "adapter",
    "mmproj": "projector",
    "imatrix": "imatrix",
}
# The architectures of files that were written before `general.type`, or that have none.
_KINDS_OF_ARCHITECTURES: Final[Mapping[str, Kind]] = {
    "clip": "projector",
    "eagle3": "draft",
    "dflash": "draft",
    "dflash-draft": "draft",
    "dspark": "draft",
    "gemma4-assistant": "draft",
}


def kind_of_files(roles: Collection[Role]) -> Kind:
    """Return the kind of a model from the roles of its files, which come from their names."""
    return next((kind for role, kind in _ROLES if role in roles), "unknown")


def kind_of_model(roles: Collection[Role], header: Header | None) -> Kind:
    """
    Return the kind of a model from the roles of its files and the combined header of its weights.

    The header decides. But drafts state the type `model`, if any: only their names, or an
    architecture that is made for drafts, tell them.
    """
    by_header = None if header is None else _kind_of_header(header)
    by_name = kind_of_files(roles)
    if by_header == "model" and by_name == "draft":
        return by_name
    return by_header or by_name


def _kind_of_header(header: Header) -> Kind | None:
    if header.format != "gguf":
        return None
    if (kind := _KINDS_OF_ARCHITECTURES.get(header.architecture or "")) is not None:
        return kind
    return _KINDS_OF_GGUF_TYPES.get((header.general_type or "").lower())
