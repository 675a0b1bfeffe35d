"""The case-folded forms of texts, which searches and tags are compared by."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

SEARCHED_FIELDS: Final = ("reference", "description")
"""The fields that the filter `search` looks in. Each has a case-folded copy in a second column."""


def fold_case(text: str) -> str:
    """
    Return a text in a form that ignores case, for any script.

    It is computed in Python, because SQLite and PostgreSQL fold case differently.
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def search_columns(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the case-folded columns of the searched fields that a row has."""
    texts = {name: row[name] for name in SEARCHED_FIELDS if name in row}
    return {f"{name}_folded": text and fold_case(text) for name, text in texts.items()}
