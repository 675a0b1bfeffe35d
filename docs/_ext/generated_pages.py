"""Directives for the parts of the pages that are generated from the package's own classes."""

from __future__ import annotations

import inspect
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

from diagrams import DIAGRAMS
from docutils import nodes
from docutils.statemachine import StringList
from layer_diagram import draw_layers, read_layers
from schema_pages import draw_schema, migration_lines, table_lines
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import model_catalog
from model_catalog import CatalogError
from model_catalog.cli.parser import make_parser

SOURCE: Final = Path(model_catalog.__file__).parent


def public_names(module: ModuleType) -> list[str]:
    """The names of a module's `__all__`, classes and functions mixed, in alphabetical order."""
    return sorted(module.__all__, key=str.casefold)


def is_error(value: object) -> bool:
    """Whether a value is one of the package's exceptions."""
    return isinstance(value, type) and issubclass(value, CatalogError)


class _Generated(SphinxDirective):
    """A directive whose content is reStructuredText that Python code writes."""

    has_content = False

    def lines(self) -> Iterator[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        parent = nodes.Element()
        parent.document = self.state.document
        source = self.get_source_info()[0]
        self.state.nested_parse(StringList(list(self.lines()), source=source), 0, parent)
        return parent.children


class ErrorReference(_Generated):
    """Document every exception of the package."""

    def lines(self) -> Iterator[str]:
        module = import_module("model_catalog")
        for name in public_names(module):
            if is_error(getattr(module, name)):
                yield from (f".. autoexception:: model_catalog.{name}", "   :no-members:", "")


class PublicModule(_Generated):
    """Document every public name of a module, but not the exceptions, which have a page."""

    required_arguments = 1

    def lines(self) -> Iterator[str]:
        (name,) = self.arguments
        module = import_module(name)
        yield from (f".. py:currentmodule:: {name}", "")
        for each in public_names(module):
            value = getattr(module, each)
            if is_error(value):
                continue
            if inspect.isclass(value) or inspect.isroutine(value):
                kind = "class" if inspect.isclass(value) else "function"
                yield from (f".. auto{kind}:: {name}.{each}", "")
            else:
                yield f".. py:data:: {each}"
                yield from ("", *(f"   {line}" for line in data_docs()[each]), "")


class SchemaTables(_Generated):
    """Describe the columns, constraints and indexes of each table."""

    def lines(self) -> Iterator[str]:
        return table_lines()


class MigrationList(_Generated):
    """List the revisions of the schema."""

    def lines(self) -> Iterator[str]:
        return migration_lines()


class CommandReference(SphinxDirective):
    """Print the help of each command and subcommand, as a terminal shows it."""

    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for command, text in helps_of(make_parser(), ()):
            section = nodes.section(ids=[nodes.make_id(f"help {command}")])
            section += nodes.title("", "", nodes.literal(command, command))
            section += nodes.literal_block(text, text, language="text")
            found.append(section)
        return found


def helps_of(parser: ArgumentParser, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield each command below a parser, as in `db backup`, with the text of its help."""
    subparsers = [each for each in parser._actions if isinstance(each, _SubParsersAction)]  # noqa: SLF001
    for name, each in (subparsers[0].choices if subparsers else {}).items():
        yield from helps_of(each, (*path, name))
    if path and not subparsers:
        yield " ".join(path), parser.format_help()


class DrawnDiagram(SphinxDirective):
    """Draw one of the diagrams of `diagrams.py`, by its name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", DIAGRAMS[self.arguments[0]].draw(), format="html")]


class LayerDiagram(SphinxDirective):
    """Draw the layers of the package."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", draw_layers(read_layers()), format="html")]


class SchemaDiagram(SphinxDirective):
    """Draw the tables and their foreign keys."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", draw_schema(), format="html")]


@cache
def data_docs() -> dict[str, list[str]]:
    """The docstrings of the constants and type aliases of the package, by name."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for (scope, name), lines in ModuleAnalyzer.for_file(path, module).find_attr_docs().items():
            if not scope and not name.startswith("_"):
                found[name] = lines
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives; Sphinx calls it."""
    app.add_directive("command-reference", CommandReference)
    app.add_directive("drawn-diagram", DrawnDiagram)
    app.add_directive("error-reference", ErrorReference)
    app.add_directive("layer-diagram", LayerDiagram)
    app.add_directive("public-module", PublicModule)
    app.add_directive("schema-diagram", SchemaDiagram)
    app.add_directive("schema-tables", SchemaTables)
    app.add_directive("migration-list", MigrationList)
    return {"parallel_read_safe": True}
