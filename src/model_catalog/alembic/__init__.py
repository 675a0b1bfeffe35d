"""
Filters that keep a host's Alembic away from the catalog's tables, in a database that both share.

    context.configure(..., include_name=include_name, include_object=include_object)

Without them `alembic revision --autogenerate` drops the tables, which the host's models do not
contain. A host with a filter of its own calls these from it. `SchemaFilter` has both for a catalog
in a schema of its own. This package does not import Alembic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from model_catalog.mapping.added_objects import added_tables
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import VERSION_TABLE

__all__ = ["TABLE_NAMES", "VERSION_TABLE", "SchemaFilter", "include_name", "include_object"]

TABLE_NAMES: Final = added_tables().union(Base.metadata.tables, (VERSION_TABLE,))
"""The names of the tables of the catalog, which a service's autogenerate must leave alone."""
"""The names of the catalog's tables and of its version table."""


@dataclass(frozen=True)
class SchemaFilter:
    """
    The two filters for a catalog whose tables are in one PostgreSQL schema.

    Pass its methods to `context.configure`. They leave tables of the same names in other schemas to
    the host. None is the default schema, which Alembic does not name either.
    """

    schema: str | None

    def include_name(
        self, name: str | None, type_: str, parent_names: Mapping[Any, str | None]
    ) -> bool:
        """Return False for the name of a table of the catalog, like the function `include_name`."""
        return not self._is_ours(name, type_, parent_names.get("schema_name"))

    def include_object(
        self,
        item: Any,
        name: str | None,
        type_: str,
        reflected: bool,  # noqa: FBT001 - Alembic's signature
        compare_to: Any,
    ) -> bool:
        """Return False for a table of the catalog, like the function `include_object`."""
        del reflected, compare_to
        return not self._is_ours(name, type_, getattr(item, "schema", None))

    def _is_ours(self, name: str | None, type_: str, schema: str | None) -> bool:
        return type_ == "table" and schema == self.schema and name in TABLE_NAMES


_in_default_schema: Final = SchemaFilter(None)


def include_name(name: str | None, type_: str, parent_names: Mapping[Any, str | None]) -> bool:
    """
    Return False for the name of a table of the catalog in the default schema, otherwise True.

    It is for the option `include_name` of `context.configure`, which filters what Alembic reads
    from the database.
    """
    return _in_default_schema.include_name(name, type_, parent_names)


def include_object(
    item: Any,
    name: str | None,
    type_: str,
    reflected: bool,  # noqa: FBT001 - Alembic's signature
    compare_to: Any,
) -> bool:
    """
    Return False for a table of the catalog in the default schema, otherwise True.

    It is for the option `include_object` of `context.configure`. A host needs it if its own
    `target_metadata` contains tables of the catalog, for example by `Table.to_metadata`.
    """
    return _in_default_schema.include_object(item, name, type_, reflected, compare_to)
