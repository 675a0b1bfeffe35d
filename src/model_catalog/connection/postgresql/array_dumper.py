"""Sends lists as arrays in the binary format of psycopg, which need not be installed."""

from __future__ import annotations

from typing import Any, Final

from psycopg.adapt import PyFormat
from psycopg.postgres import types
from psycopg.types.array import BaseListDumper, ListBinaryDumper

_TEXT_ARRAY_OID: Final = types["text"].array_oid


class ArrayDumper(ListBinaryDumper):
    """
    Dumps a list in the binary format, also one with no value but None.

    In the text format, NULL without quotes is the text 'NULL' to a server with `array_nulls` off.
    psycopg uses that format by default, and always for a list without values.
    """

    def upgrade(self, obj: list[Any], format: PyFormat) -> BaseListDumper:  # noqa: A002
        """Return the dumper for the type of the values; without values it is that of texts."""
        if not obj or any(value is not None for value in obj):
            return super().upgrade(obj, format)
        dumper = type(self)(self.cls, self._tx)
        # The cast in the statement converts it to the type of the column.
        dumper.oid = _TEXT_ARRAY_OID
        return dumper
