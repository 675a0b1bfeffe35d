"""The schema revisions that this package contains, read from the names of the migrations."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources


# Without Alembic, which takes a quarter of a second to import.
@cache
def known_revisions() -> list[str]:
    """Return the known revisions, oldest first."""
    names = (entry.name for entry in resources.files("model_catalog.migrations.versions").iterdir())
    return sorted(match[1] for name in names if (match := re.fullmatch(r"(\d{4})_\w+\.py", name)))


def head_revision() -> str:
    """Return the newest revision, which the mapping describes."""
    return known_revisions()[-1]
