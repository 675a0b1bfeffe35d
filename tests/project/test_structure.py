"""The package keeps the structure that docs/architecture.md describes."""

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "model_catalog"
MODULES = sorted(PACKAGE.rglob("*.py"))
FACADE = PACKAGE / "repository" / "model_catalog.py"
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MODULES_IN_A_FOLDER = 10
OLD_VOCABULARY = {
    *("rests", "lane", "lanes", "together", "several", "home", "holdings", "garbage"),
    *("left_lying", "to_its_end", "joint", "patience"),
}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def defined_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that a module gives to something, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_only_the_entry_points_lie_at_the_root_of_the_package():
    """Everything else belongs to the package of its layer."""
    modules = {path.name for path in PACKAGE.glob("*.py")}

    assert modules == {"__init__.py", "__main__.py", "opening.py", "sync.py"}


def test_no_folder_has_more_modules_than_a_reader_can_survey():
    """A folder that grows beyond this limit is split by topic."""
    folders = {path.parent for path in MODULES}
    sizes = {
        ids(folder): len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        for folder in folders
    }

    assert {name: size for name, size in sizes.items() if size > MAX_MODULES_IN_A_FOLDER} == {}


def test_no_module_is_longer_than_the_limit():
    """The facade is exempt: the whole public contract in one file is what a reader wants."""
    lengths = {ids(path): len(path.read_text().splitlines()) for path in MODULES if path != FACADE}

    assert {name: lines for name, lines in lengths.items() if lines > MAX_MODULE_LINES} == {}


def test_no_function_is_longer_than_the_limit():
    """A docstring counts, so that a function fits on a screen or two."""
    lengths = {
        f"{ids(path)}:{function.name}": function.end_lineno - function.lineno + 1
        for path in MODULES
        for function in functions(ast.parse(path.read_text()))
    }

    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "fuzz", "soak"])
def test_no_name_of_the_old_vocabulary_is_left(folder):
    """Release 0.1.0 named mechanisms by metaphors; each has a standard term now."""
    found = [
        f"{ids(path)}:{line}: {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, line in [(path.stem, 0), *defined_names(ast.parse(path.read_text()))]
        if name.strip("_").lower() in OLD_VOCABULARY
    ]

    assert found == []


def test_the_diagram_of_the_layers_shows_every_package(monkeypatch):
    """Each package of a layer has a box, below the boxes of the layers above it."""
    monkeypatch.syspath_prepend(ROOT / "docs/_ext")
    from layer_diagram import draw_layers, read_layers

    boxes = re.findall(r'class="name" x="[\d.]+" y="([\d.]+)">(\w+)<', draw_layers(read_layers()))
    rows = [
        [name for _, name in group] for _, group in groupby(boxes, key=lambda box: float(box[0]))
    ]

    packages = {path.stem for path in PACKAGE.glob("[!_]*") if path.name != "py.typed"}
    assert {name for row in rows for name in row} == packages - {"migrations"}
    assert rows == read_layers()
    assert (rows[0], rows[-1]) == (["cli"], ["errors"])
