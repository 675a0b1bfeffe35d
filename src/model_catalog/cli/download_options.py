"""The options of the commands about downloads."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_download_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands about downloads."""
    _add_pull_command(add_command)


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
