"""Input that nobody would write, for everything that reads what others wrote."""

from typing import Final

TARGETS: Final = ("reference", "headers", "imports", "filters")
"""
The modules that are one each.

Each has `INPUTS`, a strategy of bytes; `SEEDS`, inputs to begin from; and `checking`, a context of
a function that says in a word what became of an input, and raises for what must not be.
`IS_RAW` is False where bytes that no strategy made are of no use.
"""
