"""Commands for the hosts of a fleet: `hosts ls`, `show`, `register`, `beat` and `rm`."""

from __future__ import annotations

import asyncio
import json
import shutil
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Final

from model_catalog.cli.catalog_access import open_named, use_existing_catalog
from model_catalog.cli.exit_codes import DONE, FAILED
from model_catalog.cli.filter_expressions import parse_age, parse_size
from model_catalog.cli.output import (
    human_size,
    is_confirmed,
    pluralize,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.domain.fleet import DEFAULT_LOST_AFTER_S
from model_catalog.domain.fleet.host import Host, HostFields, HostState
from model_catalog.errors import HostNotFoundError, InvalidModelError
from model_catalog.repository.fleet.host_registry import HostRegistry
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.operations.fleet.hosts import ModelsOfHost

FIELDS: Final = (
    *("name", "state", "address", "labels", "ssh_user", "ssh_host", "ssh_port", "ssh_key_path"),
    *("capacity_bytes", "free_bytes", "registered_at", "heartbeat_at", "heartbeat_age_s"),
)
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400


async def hosts_ls(options: Namespace) -> int:
    """List the hosts."""
    labels = parse_labels(options.label)

    async def read(catalog: ModelCatalog) -> list[Host]:
        return await _registry(catalog, options).list_hosts(labels=labels)

    no_hosts: list[Host] = []
    hosts = await use_existing_catalog(options, read, no_hosts)
    if options.format == "json":
        print_json([host.to_dict() for host in hosts])
    elif options.format == "tsv":
        print_tsv(FIELDS, map(_tsv_fields, hosts))
    elif options.format == "quiet":
        for host in hosts:
            print_line(host.name)
    else:
        _print_hosts(hosts)
    return DONE


def _print_hosts(hosts: Sequence[Host]) -> None:
    if hosts:
        print_table(
            ["HOST", "STATE", "HEARTBEAT", "FREE", "CAPACITY", "LABELS", "ADDRESS"],
            [
                [
                    host.name,
                    str(host.state),
                    _age(host.heartbeat_age_s),
                    human_size(host.free_bytes),
                    human_size(host.capacity_bytes),
                    ",".join(f"{name}={value}" for name, value in sorted(host.labels.items())),
                    host.address or "",
                ]
                for host in hosts
            ],
            right=["FREE", "CAPACITY"],
            cut=["LABELS", "ADDRESS"],
        )
    alive = sum(host.state is HostState.ALIVE for host in hosts)
    print_notice(f"{pluralize(len(hosts), 'host')}, {alive:,} alive")


def _age(age_s: float | None) -> str:
    if age_s is None:
        return "never"
    for unit_s, unit in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "m")):
        if age_s >= 2 * unit_s:
            return f"{int(age_s // unit_s)}{unit} ago"
    return f"{max(0, int(age_s))}s ago"


def _tsv_fields(host: Host) -> list[object]:
    fields = host.to_dict()
    return [*({**fields, "labels": json.dumps(fields["labels"], sort_keys=True)}.values())]


async def hosts_show(options: Namespace) -> int:
    """Show one host."""

    async def read(catalog: ModelCatalog) -> Host | None:
        return await _registry(catalog, options).find_host(options.name)

    host = await use_existing_catalog(options, read, None)
    if host is None:
        raise HostNotFoundError(options.name)
    if options.format == "json":
        print_json(host.to_dict())
    elif options.format == "tsv":
        print_tsv(FIELDS, [_tsv_fields(host)])
    elif options.format == "quiet":
        print_line(host.name)
    else:
        for name, value in zip(FIELDS, _tsv_fields(host), strict=True):
            if value not in (None, "{}"):
                print_line(f"{name + ':':<17}{value}")
    return DONE


async def hosts_register(options: Namespace) -> int:
    """Register a host."""
    fields: HostFields = {}
    given = ("address", "ssh_user", "ssh_host", "ssh_port", "ssh_key_path")
    values: dict[str, Any] = {name: getattr(options, name) for name in given}
    if options.label:
        values["labels"] = parse_labels(options.label)
    if options.path is not None:
        usage = shutil.disk_usage(options.path)
        values |= {"capacity_bytes": usage.total, "free_bytes": usage.free}
    if options.capacity is not None:
        values["capacity_bytes"] = parse_size("--capacity", options.capacity)
    # An empty text clears a field, as in other commands.
    for name, value in values.items():
        if value is not None:
            fields[name] = None if value == "" else value  # type: ignore[literal-required]
    async with open_named(options) as catalog:
        host = await HostRegistry(catalog).register_host(options.name, **fields)
    print_notice(f"registered the host {host.name}")
    return DONE


async def hosts_beat(options: Namespace) -> int:
    """Record that a host is alive, once or until the command is stopped."""
    every_s = None if options.every is None else parse_age("--every", options.every).total_seconds()

    async def beat(catalog: ModelCatalog) -> int:
        registry = HostRegistry(catalog)
        if every_s is not None:
            async with registry.beat(options.name, interval_s=every_s, path=options.path):
                print_notice(f"the host {options.name} sends a heartbeat every {options.every}")
                await asyncio.Event().wait()
        free_bytes = None if options.path is None else shutil.disk_usage(options.path).free
        await registry.heartbeat(options.name, free_bytes=free_bytes)
        return DONE

    code = await use_existing_catalog(options, beat, None)
    if code is None:
        raise HostNotFoundError(options.name)
    return code


async def hosts_rm(options: Namespace) -> int:
    """Remove a host, after asking for confirmation."""
    models: ModelsOfHost = (
        "keep" if options.keep_models else "delete" if options.delete_models else "refuse"
    )

    async def remove(catalog: ModelCatalog) -> int:
        count = await _model_count(catalog, options.name)
        which = f"the host {options.name}"
        if models == "delete":
            which += f" and the records of {pluralize(count, 'model')}; their files stay"
        if not options.yes and not is_confirmed(f"Remove {which}? [y/N] "):
            print_notice("nothing was removed")
            return FAILED
        if not await HostRegistry(catalog).remove_host(options.name, models=models):
            raise HostNotFoundError(options.name)
        kept = f"; the records of {pluralize(count, 'model')} stay" if models == "keep" else ""
        print_notice(f"removed {which}{kept}")
        return DONE

    code = await use_existing_catalog(options, remove, None)
    if code is None:
        raise HostNotFoundError(options.name)
    return code


async def _model_count(catalog: ModelCatalog, name: str) -> int:
    totals = await catalog.fleet().totals_by_host()
    return sum(each.model_count for each in totals if each.host == name)


def parse_labels(texts: Sequence[str]) -> dict[str, str]:
    """Parse labels such as `gpu=h100`. Raises InvalidModelError."""
    labels: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise InvalidModelError("--label", text, "has no value: give one, as in gpu=h100")
        labels[name] = value
    return labels


def lost_after_s(options: Namespace) -> float:
    """Return the seconds of `--lost-after`. Raises InvalidModelError."""
    if options.lost_after is None:
        return DEFAULT_LOST_AFTER_S
    return parse_age("--lost-after", options.lost_after).total_seconds()


def _registry(catalog: ModelCatalog, options: Namespace) -> HostRegistry:
    return HostRegistry(catalog, lost_after_s=lost_after_s(options))
