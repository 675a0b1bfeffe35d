"""A module that is imported at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final


class LazyModule:
    """
    Stands for a module, and imports it when an attribute is read for the first time.

    Each name that was read is kept, so that later calls are as fast as those of a module.
    """

    def __init__(self, name: str) -> None:
        self._module_name: Final = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            # A copy and the like ask for special methods, also before `__init__` has run.
            raise AttributeError(name)
        value = getattr(import_module(self._module_name), name)
        vars(self)[name] = value
        return value
