"""The options of the commands about downloads."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_download_commands(
    add_command: Callable[..., argparse.ArgumentParser], formats: argparse.ArgumentParser
) -> None:
    """Add the commands about downloads."""
    _add_pull_command(add_command)
    ps = add_command("ps", "Show running downloads, and models in use.", formats)
    ps.add_argument("-a", "--all", action="store_true", help="show downloads that have ended too")
    _add_prune_command(add_command, formats)


def add_scope_option(command: argparse.ArgumentParser) -> None:
    """Add the option that says whose disk the files are on."""
    command.add_argument(
        "--scope",
        choices=("host", "fleet"),
        default="host",
        help="fleet: the files are on a disk that all hosts share (default: host)",
    )


def _add_pull_command(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    pull = add_command("pull", "Download a model, unless it is recorded, and register it.")
    pull.add_argument(
        "ref",
        metavar="REF",
        help="hf:organisation/name[@revision] of the Hugging Face hub, with the extra `hub`; or "
        "local:PATH, which only registers the path",
    )
    for name, what in (("include", "download only files"), ("exclude", "do not download files")):
        pull.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"{what} that match a pattern such as '*Q4_K_M*'; may be repeated",
        )
    add_scope_option(pull)


def _add_prune_command(
    add_command: Callable[..., argparse.ArgumentParser], formats: argparse.ArgumentParser
) -> None:
    prune = add_command(
        "prune", "Delete downloaded models to free disk space, least recently used first.", formats
    )
    prune.add_argument("--free", metavar="SIZE", help="free this much, for example 50GB")
    prune.add_argument(
        "--older-than",
        metavar="TIME",
        help="only models that were not used for this time, for example 30d; alone: all of them",
    )
    prune.add_argument(
        "--max-total",
        metavar="SIZE",
        help="delete models until all downloaded models take at most this much",
    )
    prune.add_argument(
        "--provider",
        action="append",
        metavar="NAME",
        help="delete only models of this provider; may be repeated",
    )
    prune.add_argument("-n", "--dry-run", action="store_true", help="print the plan only")
    prune.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")
    prune.add_argument(
        "--forget",
        action="store_true",
        help="delete only the records of these models; their files stay",
    )
    add_scope_option(prune)
