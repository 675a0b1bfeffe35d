"""The schema revisions that this package contains, read from the names of the migrations."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Final

VERSION_TABLE: Final = "model_catalog_version"
"""The table with the revision. It is not `alembic_version`, which a host may use itself."""

# The ids of the revisions begin with it, so that they never equal those of a host.
_PREFIX: Final = "model_catalog_"


# Without Alembic, which takes a quarter of a second to import.
@cache
def known_revisions() -> list[str]:
    """Return the ids of the known revisions, such as `model_catalog_0001`, oldest first."""
    names = (entry.name for entry in resources.files("model_catalog.migrations.versions").iterdir())
    numbers = sorted(
        match[1] for name in names if (match := re.fullmatch(r"(\d{4})_\w+\.py", name))
    )
    return [_PREFIX + number for number in numbers]


def head_revision() -> str:
    """Return the newest revision, which the mapping describes."""
    return known_revisions()[-1]


def canonical_revision(revision: str) -> str:
    """
    Return the id of a known revision that is given by its number, for example `0001`.

    Release 0.1.0 stored the numbers as ids. Any other text is returned unchanged.
    """
    return _PREFIX + revision if _PREFIX + revision in known_revisions() else revision


def revision_number(revision: str) -> str:
    """Return the number in a revision's id, for the name of a file; other text unchanged."""
    return revision.removeprefix(_PREFIX)
