"""Map the names of commands to the functions that run them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Final

from model_catalog.concurrency.gc_pauses import gc_paused

# Only the module of the command is imported: the readers of all stores take 1 MiB of memory.
_COMMANDS: Final = {
    "accept": "upkeep:accept",
    "add": "models:add",
    "alias": "labels:alias",
    "check": "upkeep:check",
    "completion": "report.command:completion",
    "db backup": "database:db_backup",
    "db check": "database:db_check",
    "db current": "database:db_current",
    "db repair": "database:db_repair",
    "db restore": "database:db_restore",
    "db upgrade": "database:db_upgrade",
    "demo": "demo:demo",
    "du": "totals:du",
    "dupes": "stores:dupes",
    "export": "export_import:export",
    "hosts beat": "fleet.hosts:hosts_beat",
    "hosts ls": "fleet.hosts:hosts_ls",
    "hosts register": "fleet.hosts:hosts_register",
    "hosts rm": "fleet.hosts:hosts_rm",
    "hosts show": "fleet.hosts:hosts_show",
    "import": "export_import:import_",
    "ls": "models:ls",
    "note": "labels:note",
    "pin": "labels:pin",
    "ps": "downloads.processes:ps",
    "prune": "downloads.eviction:prune",
    "pull": "downloads.pulling:pull",
    "relink": "relinking:relink",
    "relocate": "relinking:relocate",
    "rename": "models:rename",
    "report": "report.command:report",
    "rm": "models:rm",
    "scan": "stores:scan",
    "show": "models:show",
    "sign-verify": "upkeep:sign_verify",
    "stats": "totals:stats",
    "tag": "labels:tag",
    "unpin": "labels:unpin",
    "untag": "labels:untag",
    "verify": "upkeep:verify",
    "who-has": "fleet.models:who_has",
}


async def run_command(options: Namespace) -> int:
    """Run the command `options.command`, and return its exit code."""
    module_name, _, function_name = _COMMANDS[options.command].partition(":")
    with gc_paused():
        module = import_module(f"model_catalog.cli.commands.{module_name}")
    function: Callable[[Namespace], Awaitable[int]] = getattr(module, function_name)
    return await function(options)
