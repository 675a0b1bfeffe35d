"""Completes the commands that messages name, so that they work as typed."""

from __future__ import annotations

import os
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from typing import Final

# In quotes of the shell, a backtick is a part of an argument.
_COMMAND: Final = re.compile(r"""`model-catalog ((?:'[^']*'|"[^"]*"|[^`'"])*)`""")
_WITHOUT_HOST: Final = {"db", "hosts"}
"""The groups of commands that have no option `--host`."""


def complete_commands(message: str, options: Namespace) -> str:
    """
    Add the options with which the user named the catalog to each command in a message.

    These are `--db`, `--schema` and `--host`. A command with another database stays as it is. The
    password in a URL is not repeated.
    """
    return _COMMAND.sub(lambda found: _complete(found, options), message)


def completed_command(arguments: Sequence[str], options: Namespace) -> str:
    """Return a command in backticks with the options with which the user named the catalog."""
    return complete_commands(f"`{shlex.join(['model-catalog', *arguments])}`", options)


def _complete(found: re.Match[str], options: Namespace) -> str:
    try:
        arguments = shlex.split(found[1])
    except ValueError:
        # Not a command, but a text of the user.
        return found[0]
    # A text of the user may also be a part of a command.
    if not arguments or arguments[-1] == "--db":
        return found[0]
    # `demo` has no options.
    target = getattr(options, "db", None)
    if "--db" in arguments:
        position = arguments.index("--db")
        if not _is_database(arguments[position + 1], target):
            return found[0]
        del arguments[position : position + 2]
    given = {"--db": _without_password(target), "--schema": getattr(options, "schema", None)}
    if arguments[0] not in _WITHOUT_HOST:
        given["--host"] = getattr(options, "host", None)
    for name, value in given.items():
        if value is not None and name not in arguments:
            arguments += [name, value]
    return f"`{shlex.join(['model-catalog', *arguments])}`"


def _is_database(path: str, target: str | None) -> bool:
    """Return whether a path is the database that the user named with `--db`, or did not name."""
    # Not at the top: completing a command line and `--help` need no SQLAlchemy.
    from model_catalog.connection.target import resolve_target  # noqa: PLC0415

    location = resolve_target(target)
    return location.path is not None and os.path.realpath(location.path) == os.path.realpath(path)


def _without_password(target: str | None) -> str | None:
    """Return what the user named with `--db`; the password of a URL is masked."""
    from model_catalog.connection.target import resolve_target  # noqa: PLC0415 - see above

    if target is None:
        return None
    name = resolve_target(target).name
    return name if "***" in name and "***" not in target else target
