"""The base class of all exceptions, and the helpers of their messages."""

from __future__ import annotations

import shlex
from ast import literal_eval
from typing import Any

MAX_SHOWN = 80


def shown(value: object) -> str:
    """Return the `repr` of a value for an error message, cut if it is long."""
    if isinstance(value, str | bytes) and len(value) > MAX_SHOWN:
        return f"{value[:MAX_SHOWN]!r}... ({len(value)} long)"
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Python refuses to print an int of more than 4300 digits, and deeply nested lists.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 2 * MAX_SHOWN else f"{text[: 2 * MAX_SHOWN]}..."


def command(*arguments: str, target: str = "") -> str:
    """
    Return a command of `model-catalog` in backticks, quoted for a shell.

    `target` is the name of a database in messages. The command names it with `--db` if it is a
    file; the URL of a server has no password in messages, so it could not be used.
    """
    named = ["--db", literal_eval(target)] if target[:1] in ("'", '"') else []
    return f"`{shlex.join(['model-catalog', *arguments, *named])}`"


def _build(kind: type[CatalogError], args: tuple[Any, ...], facts: dict[str, Any]) -> CatalogError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class CatalogError(Exception):
    """Base class of all exceptions of this package. Catch it to catch them all."""

    # By default an exception is unpickled by calling its class with its message. These classes
    # take other arguments, so a worker process would fail to return one.
    def __reduce__(self) -> tuple[Any, ...]:
        return _build, (type(self), self.args, dict(self.__dict__))


class StoppedError(CatalogError):
    """The operation was stopped at the caller's request and had no effect."""


class NotInstalledError(CatalogError):
    """The call needs a package that is not installed: `package` and its `extra`."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'model-catalog[{extra}]'")
        self.package = package
        self.extra = extra
