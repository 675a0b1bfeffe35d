"""The options of the commands about hosts and about the models of all hosts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def lost_after_options() -> argparse.ArgumentParser:
    """Return the option of commands that show the state of hosts."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--lost-after",
        metavar="TIME",
        help="a host is lost without a heartbeat for this time, for example 90s (default: 180s)",
    )
    return parent


def add_fleet_commands(
    add_command: Callable[..., argparse.ArgumentParser],
    commands: Any,
    formats: argparse.ArgumentParser,
) -> None:
    """Add the commands about hosts, and `who-has`."""
    lost_after = lost_after_options()
    who_has = add_command("who-has", "List the hosts that have a model.", formats, lost_after)
    who_has.add_argument("ref", metavar="REF", help="without a version: all versions")

    hosts = commands.add_parser("hosts", help="Manage the hosts that share the catalog.")
    group = hosts.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add_host_command(
        name: str, summary: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        command = add_command(f"hosts {name}", summary, *parents, group=group)
        # They work on all hosts, so they have no `--host`.
        command.set_defaults(host=None)
        return command

    ls = add_host_command("ls", "List the hosts.", formats, lost_after)
    _add_labels(ls, "list only hosts with this label; may be repeated")
    show = add_host_command("show", "Show one host.", formats, lost_after)
    show.add_argument("name", metavar="NAME")
    _add_register(add_host_command("register", "Register a host, or change it."))
    beat = add_host_command("beat", "Record that a host is alive.")
    beat.add_argument("name", metavar="NAME")
    beat.add_argument("--path", metavar="DIR", help="record the free space of this folder's disk")
    beat.add_argument(
        "--every",
        metavar="TIME",
        help="go on until the command is stopped, for example every 60s (default: once)",
    )
    rm = add_host_command("rm", "Remove a host. It may still have models.")
    rm.add_argument("name", metavar="NAME")
    rm.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")
    models = rm.add_mutually_exclusive_group()
    models.add_argument(
        "--keep-models", action="store_true", help="keep the records of the models of the host"
    )
    models.add_argument(
        "--delete-models",
        action="store_true",
        help="delete the records of the models of the host; no file is deleted",
    )


def _add_register(register: argparse.ArgumentParser) -> None:
    register.add_argument("name", metavar="NAME")
    register.add_argument("--address", metavar="TEXT", help="a name, an IP address or a URL")
    _add_labels(register, "a label; may be repeated, and replaces all recorded labels")
    register.add_argument("--ssh-user", metavar="NAME")
    register.add_argument("--ssh-host", metavar="NAME")
    register.add_argument("--ssh-port", metavar="PORT", type=int)
    register.add_argument("--ssh-key-path", metavar="FILE", help="the path of a key, never the key")
    register.add_argument(
        "--path", metavar="DIR", help="record the size and the free space of this folder's disk"
    )
    register.add_argument("--capacity", metavar="SIZE", help="the size of the disk, such as 4TB")


def _add_labels(command: argparse.ArgumentParser, summary: str) -> None:
    command.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help=summary)
