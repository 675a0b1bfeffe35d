"""Generates model_catalog/sync.pyi from ModelCatalog: `python tests/sync/sync_stub.py`."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "model_catalog"
STUB = PACKAGE / "sync.pyi"

HEAD = """
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload

from model_catalog.repository.model_catalog import ModelCatalog

__all__ = ["SyncCatalog", "SyncFleet", "SyncHostRegistry", "open_catalog"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
"""
CLASS = """
class SyncCatalog:
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def close(self) -> None: ...
    @overload
    def run(
        self,
        function: Callable[Concatenate[ModelCatalog, _P], Coroutine[Any, Any, _T]],
        /,
        *args: _P.args,
        **options: _P.kwargs,
    ) -> _T: ...
    @overload
    def run(
        self,
        function: Callable[Concatenate[ModelCatalog, _P], AsyncIterator[_T]],
        /,
        *args: _P.args,
        **options: _P.kwargs,
    ) -> Iterator[_T]: ...
    @overload
    def run(
        self,
        function: Callable[Concatenate[ModelCatalog, _P], AbstractAsyncContextManager[_T]],
        /,
        *args: _P.args,
        **options: _P.kwargs,
    ) -> AbstractContextManager[_T]: ...
"""


FLEET_CLASSES = """
class SyncFleet: ...

class SyncHostRegistry:
    def __init__(self, catalog: SyncCatalog, *, lost_after_s: float = ...) -> None: ...
"""
RENAMED = {
    "AsyncIterator": "Iterator",
    "AbstractAsyncContextManager": "AbstractContextManager",
    "Fleet": "SyncFleet",
}


class _Blocking(ast.NodeTransformer):
    """Turns async functions into stubs of blocking ones."""

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.FunctionDef:
        return self.visit_FunctionDef(ast.FunctionDef(**vars(node)))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        names = [ast.unparse(decorator) for decorator in node.decorator_list]
        if {"inner_contextmanager", "outer_contextmanager"} & set(names):
            item = node.returns.slice
            node.returns = ast.parse(f"AbstractContextManager[{ast.unparse(item)}]").body[0].value
            node.decorator_list = []
        node.body = [ast.Expr(ast.Constant(...))]
        self.generic_visit(node)
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        # A stub names only defaults that are constants.
        for defaults in (node.defaults, node.kw_defaults):
            defaults[:] = [
                each if each is None or isinstance(each, ast.Constant) else ast.Constant(...)
                for each in defaults
            ]
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(RENAMED.get(node.id, node.id), ast.Load())


def generate() -> ast.Module:
    """Return the stub as a syntax tree."""
    facade = ast.parse((PACKAGE / "repository" / "model_catalog.py").read_text())
    opening = ast.parse((PACKAGE / "opening.py").read_text())
    fleet = ast.parse((PACKAGE / "repository" / "fleet" / "fleet.py").read_text())
    registry = ast.parse((PACKAGE / "repository" / "fleet" / "host_registry.py").read_text())
    open_catalog = _Blocking().visit(_named(opening, "open_catalog"))
    open_catalog.returns = ast.Name("SyncCatalog", ast.Load())
    head, sync_catalog = ast.parse(HEAD), ast.parse(CLASS).body[0]
    sync_catalog.body += _blocking_methods(facade, "ModelCatalog")
    sync_fleet, sync_registry = ast.parse(FLEET_CLASSES).body
    sync_fleet.body = _blocking_methods(fleet, "Fleet")
    sync_registry.body += _blocking_methods(registry, "HostRegistry")
    defined = [sync_catalog, sync_fleet, sync_registry, open_catalog]

    used = {node.id for user in defined for node in ast.walk(user) if isinstance(node, ast.Name)}
    known = {name for _, name in imports(head)}
    missing = sorted(
        {
            (module, name)
            for source in (facade, opening, fleet, registry)
            for module, name in imports(source)
            if name in used - known
        }
    )
    imported = [ast.ImportFrom(module, [ast.alias(name)], 0) for module, name in missing]
    stub = ast.Module([*imported, *head.body, *defined], [])
    return ast.parse(ast.unparse(ast.fix_missing_locations(stub)))


def _blocking_methods(module: ast.Module, name: str) -> list[ast.stmt]:
    """Return the stubs of the public methods of a class."""
    methods = [
        _Blocking().visit(node)
        for node in _named(module, name).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_"
    ]
    overloaded = {method.name for method in methods if _is_overload(method)}
    # A stub has no implementation after the overloads.
    return [each for each in methods if _is_overload(each) or each.name not in overloaded]


def imports(module: ast.Module) -> set[tuple[str, str]]:
    """Return the modules and names that a module imports with `from`, also for type checkers."""
    conditional = [node for each in module.body if isinstance(each, ast.If) for node in each.body]
    return {
        (node.module, alias.name)
        for node in (*module.body, *conditional)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _is_overload(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in function.decorator_list)


def _named(module: ast.Module, name: str) -> ast.stmt:
    return next(node for node in module.body if getattr(node, "name", None) == name)


if __name__ == "__main__":
    STUB.write_text(ast.unparse(generate()))
    ruff = Path(sys.executable).with_name("ruff")
    subprocess.run([ruff, "check", "-q", "--fix", "--select", "I", STUB], check=True)
    subprocess.run([ruff, "format", "-q", STUB], check=True)
