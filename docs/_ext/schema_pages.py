"""The schema on a page: a diagram, the columns of each table, and the migrations."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Final

from sphinx.pycode import ModuleAnalyzer
from sqlalchemy import CheckConstraint, Column, Index, Table, UniqueConstraint, inspect
from sqlalchemy.dialects import postgresql, sqlite

from model_catalog.domain.fields import HEADER_FIELDS
from model_catalog.mapping import child_tables, tables
from model_catalog.mapping.base import Base
from model_catalog.mapping.tables import Model

MIGRATIONS: Final = Path(__file__).parents[2] / "migrations" / "versions"

_ROW_HEIGHT: Final = 18
_BOX_WIDTH: Final = 218
_GAP: Final = 46
# The columns of the diagram, from left to right. `models` is between the tables that refer to it
# and the tables that name a model without a foreign key.
_COLUMNS: Final = (
    ("model_tags", "model_aliases", "model_uses", "model_files"),
    ("models",),
    ("model_claims", "model_downloads", "model_hosts", "model_catalog_leases"),
)
_SHOWN_OF_MODELS: Final = (
    "id",
    "host",
    "provider",
    "reference",
    "version",
    "local_path",
    "size_bytes",
    "format",
    "architecture",
    "quantization",
    "downloaded_at",
    "last_used_at",
    "use_count",
    "state",
    "digest",
    "verified_at",
    "store",
    "managed_root",
    "pinned_at",
)


def draw_schema() -> str:
    """Draw all tables and their foreign keys as an SVG image."""
    parts: list[str] = []
    positions: dict[str, tuple[int, int, int]] = {}
    height = 0
    for column, names in enumerate(_COLUMNS):
        x, y = 10 + column * (_BOX_WIDTH + _GAP), 10
        for name in names:
            box_height = _draw_table(parts, Base.metadata.tables[name], x, y)
            positions[name] = (x, y, box_height)
            y += box_height + 20
        height = max(height, y)
    missing = Base.metadata.tables.keys() - positions.keys()
    if missing:
        raise ValueError(f"the diagram of the schema has no place for {sorted(missing)}")
    models_x, models_y, _ = positions["models"]
    for table in Base.metadata.sorted_tables:
        for key in table.foreign_keys:
            x, y, _ = positions[table.name]
            row = list(table.columns.keys()).index(key.parent.name)
            start = (x + _BOX_WIDTH, y + 24 + row * _ROW_HEIGHT + _ROW_HEIGHT // 2)
            end = (models_x, models_y + 24 + _ROW_HEIGHT // 2)
            middle = (start[0] + end[0]) // 2
            parts.append(
                f'<path class="key" d="M{start[0]} {start[1]} H{middle} V{end[1]} H{end[0]}"/>'
            )
    width = 10 + len(_COLUMNS) * (_BOX_WIDTH + _GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'class="schema-diagram" aria-label="The tables of the catalog and their foreign keys">'
        f"{''.join(parts)}</svg>"
    )


def _draw_table(parts: list[str], table: Table, x: int, y: int) -> int:
    columns = [
        column
        for column in table.columns
        if table.name != "models" or column.name in _SHOWN_OF_MODELS
    ]
    if table.name == "models":
        columns.sort(key=lambda column: _SHOWN_OF_MODELS.index(column.name))
    left_out = len(table.columns) - len(columns)
    rows = len(columns) + bool(left_out)
    height = 24 + rows * _ROW_HEIGHT + 6
    parts.append(f'<rect class="table" x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{height}"/>')
    parts.append(f'<rect class="head" x="{x}" y="{y}" width="{_BOX_WIDTH}" height="22"/>')
    parts.append(f'<text class="name" x="{x + 8}" y="{y + 16}">{escape(table.name)}</text>')
    for row, column in enumerate(columns):
        text_y = y + 24 + row * _ROW_HEIGHT + 13
        mark = "PK " if column.primary_key else "FK " if column.foreign_keys else ""
        parts.append(f'<text x="{x + 8}" y="{text_y}">{mark}{escape(column.name)}</text>')
    if left_out:
        text_y = y + 24 + len(columns) * _ROW_HEIGHT + 13
        parts.append(f'<text class="more" x="{x + 8}" y="{text_y}">{left_out} more</text>')
    return height


def table_lines() -> Iterator[str]:
    """Describe each table, `models` first: its columns, its constraints and its indexes."""
    for table in sorted(Base.metadata.tables.values(), key=lambda each: each.name != "models"):
        yield from (f".. rubric:: ``{table.name}``", "   :heading-level: 3", "")
        if table.name != "models":
            yield from (_table_descriptions()[table.name], "")
        comments = _column_comments() if table.name == "models" else {}
        yield from (".. list-table::", "   :header-rows: 1", "   :class: schema-columns", "")
        yield from _row("column", "SQLite", "PostgreSQL", "description")
        for column in table.columns:
            attribute = _attribute_of(column)
            yield from _row(
                f"``{column.name}``{'' if column.nullable else ' *'}",
                f"``{column.type.compile(sqlite.dialect())}``",
                f"``{column.type.compile(postgresql.dialect())}``",
                _description(column, attribute, comments),
            )
        yield from ("", "\\* not null.", "")
        for constraint in sorted(table.constraints, key=lambda each: str(each.name)):
            if isinstance(constraint, UniqueConstraint):
                names = ", ".join(column.name for column in constraint.columns)
                yield f"- ``UNIQUE ({names})``"
            elif isinstance(constraint, CheckConstraint):
                yield f"- ``CHECK ({constraint.sqltext})``"
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            yield f"- ``{index.name}``: {_columns_of(index)}"
        yield ""


def _columns_of(index: Index) -> str:
    columns = ", ".join(
        str(each.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
        for each in index.expressions
    )
    where = index.dialect_options["sqlite"]["where"]
    return f"``{columns.replace(f'{index.table.name}.', '')}``" + (
        "" if where is None else f", where ``{where}``"
    )


def _row(*cells: str) -> Iterator[str]:
    for number, cell in enumerate(cells):
        yield f"   {'* -' if number == 0 else '  -'} {cell}"


def _description(column: Column[object], attribute: str, comments: dict[str, str]) -> str:
    if attribute in comments:
        return comments[attribute]
    field = attribute.partition("_")[2]
    if attribute.startswith("claimed_") and field in HEADER_FIELDS:
        return f"The value of `{field}` that the header of a file states."
    if attribute.startswith("user_") and field in HEADER_FIELDS:
        return f"The value of `{field}` that the user set."
    if attribute.endswith("_folded"):
        return f"`{attribute.removesuffix('_folded')}`, case-folded, for searches."
    if column.foreign_keys:
        return "The id of the model."
    return ""


def _attribute_of(column: Column[object]) -> str:
    """The name of the attribute of `Model`, or of the column of another table."""
    if column.table is not Model.__table__:
        return column.name
    return str(inspect(Model).get_property_by_column(column).key)


def _column_comments() -> dict[str, str]:
    """The first paragraph of the docstring of each attribute of `Model`."""
    return {
        name: " ".join(lines).split("  ")[0].strip()
        for (class_, name), lines in _attribute_docs(tables).items()
        if class_ == Model.__name__
    }


def _table_descriptions() -> dict[str, str]:
    """The first line of the docstring of each table beside `models`."""
    return {
        getattr(child_tables, name).name: lines[0]
        for (_, name), lines in _attribute_docs(child_tables).items()
    }


def _attribute_docs(module: ModuleType) -> dict[tuple[str, str], list[str]]:
    analyzer = ModuleAnalyzer.for_file(module.__file__ or "", module.__name__)
    return analyzer.find_attr_docs()


def migration_lines() -> Iterator[str]:
    """List each revision with the first sentence of its docstring."""
    yield from (".. list-table::", "   :header-rows: 1", "")
    yield from _row("revision", "change")
    for path in sorted(MIGRATIONS.glob("[0-9]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        title = re.split(r"\n\s*\n", text)[0].replace("\n", " ")
        yield from _row(f"``model_catalog_{path.name[:4]}``", title)
    yield ""
