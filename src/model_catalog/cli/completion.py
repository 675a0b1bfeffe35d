"""
Completion of a command line by the shell: commands, options, and the names of recorded models.

argcomplete does it. The shell runs the program with `_ARGCOMPLETE` in its environment at each Tab.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from typing import Any, Final

from model_catalog.errors import CatalogError, NotInstalledError

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_ARGCOMPLETE"
"""The environment variable with which a shell asks for completions."""

_MAX_NAMES: Final = 500
_TIMEOUT_S: Final = 2.0
# A search for less is as slow as a list, and offers as much.
_MIN_SEARCH: Final = 3


def complete(parser: argparse.ArgumentParser) -> None:
    """Print the completions that the shell asks for, and end the process."""
    # Imported here, as the extra `cli` may not be installed. The shell must not print a traceback.
    try:
        import argcomplete  # noqa: PLC0415
    except ImportError:
        raise SystemExit(1) from None
    for action in _actions(parser):
        if action.dest in {"ref", "refs"}:
            action.completer = recorded_names  # type: ignore[attr-defined]
    # Colons are part of a name. Without a candidate the shell must not offer files.
    argcomplete.autocomplete(parser, always_complete_options="long")


def shell_code(shell: str) -> str:
    """Return the script that a shell executes to complete `model-catalog`."""
    try:
        from argcomplete.shell_integration import shellcode  # noqa: PLC0415 - the extra `cli`
    except ImportError as error:
        raise NotInstalledError("argcomplete", "cli") from error
    return shellcode(["model-catalog"], shell=shell)


def recorded_names(prefix: str, parsed_args: argparse.Namespace, **_others: object) -> list[str]:
    """
    Return the names of recorded models that begin with a text, newest first.

    Returns none if the catalog cannot be read within two seconds. Creates and upgrades nothing.
    """
    try:
        return asyncio.run(_find_names(prefix, parsed_args))
    except (CatalogError, OSError):
        return []


async def _find_names(prefix: str, options: argparse.Namespace) -> list[str]:
    # Imported here: completing a command or an option does not need SQLAlchemy.
    from model_catalog.cli.catalog_access import short_ref  # noqa: PLC0415
    from model_catalog.opening import open_catalog  # noqa: PLC0415

    provider, colon, rest = prefix.partition(":")
    filters: dict[str, Any] = {"provider": provider} if colon else {}
    if len(rest) >= _MIN_SEARCH:
        filters["search"] = rest.partition("@")[0]
    async with open_catalog(
        getattr(options, "db", None),
        create=False,
        upgrade=False,
        timeout_s=_TIMEOUT_S,
        schema=getattr(options, "schema", None),
        host=getattr(options, "host", None),
    ) as catalog:
        rows = await catalog.list_rows(limit=_MAX_NAMES, **filters)
    names = [short_ref(row.ref) for row in rows]
    return [name for name in names if name.startswith(prefix)]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of all its subcommands."""
    for action in parser._actions:  # noqa: SLF001 - argparse lists them nowhere else
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for subparser in action.choices.values():
                yield from _actions(subparser)
