"""Commands for the models of all hosts: `who-has`, `ls --fleet` and `du --fleet`."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime
from typing import Final

from model_catalog.cli.catalog_access import short_ref, use_existing_catalog
from model_catalog.cli.commands.fleet.hosts import lost_after_s
from model_catalog.cli.exit_codes import DONE, FAILED, MISUSED
from model_catalog.cli.filter_expressions import parse_filters
from model_catalog.cli.output import (
    human_size,
    human_time,
    pluralize,
    print_error,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.domain.fleet.copies import HostTotals, ModelCopy
from model_catalog.domain.json_fields import JSON_FIELDS
from model_catalog.domain.model_ref import ModelRef
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog

_COPY_FIELDS: Final = (
    *("host", "host_state", "provider", "reference", "version", "usable", "whole", "state"),
    *("pinned", "size_bytes", "downloaded_at", "last_used_at", "local_path"),
)
_TOTAL_FIELDS: Final = (*("host", "state", "models", "size_bytes", "capacity_bytes", "free_bytes"),)
NO_HOST: Final = "-"
"""How a table names the models that were recorded without a host."""


async def who_has(options: Namespace) -> int:
    """List the hosts that have a model, the best copy first."""
    ref = ModelRef.parse(options.ref)

    async def read(catalog: ModelCatalog) -> list[ModelCopy]:
        return await catalog.fleet(lost_after_s=lost_after_s(options)).who_has(ref)

    no_copies: list[ModelCopy] = []
    copies = await use_existing_catalog(options, read, no_copies)
    if options.format == "json":
        print_json([copy.to_dict() for copy in copies])
    elif options.format == "tsv":
        print_tsv(_COPY_FIELDS, (list(copy.to_dict().values()) for copy in copies))
    elif options.format == "quiet":
        for copy in copies:
            print_line(copy.host)
    else:
        _print_copies(copies)
    return DONE if copies else FAILED


def _print_copies(copies: list[ModelCopy]) -> None:
    if copies:
        print_table(
            ["HOST", "HOST STATE", "MODEL", "COPY", "SIZE", "LAST USED", "PATH"],
            [
                [
                    copy.host or NO_HOST,
                    str(copy.host_state),
                    short_ref(copy.ref),
                    _copy_label(copy),
                    human_size(copy.size_bytes),
                    "never" if copy.last_used_at is None else human_time(copy.last_used_at),
                    copy.local_path,
                ]
                for copy in copies
            ],
            right=["SIZE"],
            cut=["PATH", "MODEL"],
        )
    usable = sum(copy.is_usable for copy in copies)
    print_notice(f"{pluralize(len(copies), 'copy', 'copies')}, {usable:,} usable")


def _copy_label(copy: ModelCopy) -> str:
    if not copy.is_present:
        return str(copy.state)
    return "whole" if copy.is_whole else "incomplete"


async def ls_fleet(options: Namespace) -> int:
    """List the models of all hosts, sorted by host and name."""
    if options.sort is not None:
        print_error("error: --fleet sorts by host and name: omit --sort")
        return MISUSED
    provider = [] if options.provider is None else [f"provider={options.provider}"]
    filters = parse_filters([*provider, *options.filter], datetime.now(UTC))

    async def read(catalog: ModelCatalog) -> list[Model]:
        return await catalog.fleet().list_models(limit=options.limit, **filters)

    no_models: list[Model] = []
    models = await use_existing_catalog(options, read, no_models)
    if options.format == "json":
        print_json([model.to_dict() for model in models])
    elif options.format == "tsv":
        rows = ({**model.to_dict(), "tags": ",".join(model.tags)} for model in models)
        print_tsv(JSON_FIELDS, (list(row.values()) for row in rows))
    elif options.format == "quiet":
        # Not as on one host: the name alone would not say where the model is.
        for model in models:
            print_line(f"{model.host or NO_HOST} {short_ref(model.ref)}")
    else:
        _print_models(models, paths=options.paths)
    return DONE


def _print_models(models: list[Model], *, paths: bool) -> None:
    if models:
        names = ["HOST", "MODEL", "SIZE", "DOWNLOADED", "STATE", *(["PATH"] if paths else [])]
        cells = [
            [
                model.host or NO_HOST,
                short_ref(model.ref),
                human_size(model.size_bytes),
                human_time(model.downloaded_at),
                str(model.state),
                *([model.local_path] if paths else []),
            ]
            for model in models
        ]
        print_table(names, cells, right=["SIZE"], cut=["MODEL"])
    host_count = len({model.host for model in models})
    size = human_size(sum(model.size_bytes or 0 for model in models))
    print_notice(f"{pluralize(len(models), 'model')} on {pluralize(host_count, 'host')}, {size}")


async def du_fleet(options: Namespace) -> int:
    """Print the number of models, their size and the free space of each host."""

    async def read(catalog: ModelCatalog) -> list[HostTotals]:
        return await catalog.fleet(lost_after_s=lost_after_s(options)).totals_by_host()

    no_totals: list[HostTotals] = []
    totals = await use_existing_catalog(options, read, no_totals)
    models = sum(each.model_count for each in totals)
    size_bytes = sum(each.size_bytes for each in totals)
    if options.format == "json":
        hosts = [each.to_dict() for each in totals]
        print_json({"models": models, "size_bytes": size_bytes, "hosts": hosts})
    elif options.format == "tsv":
        print_tsv(_TOTAL_FIELDS, (list(each.to_dict().values()) for each in totals))
    elif options.format == "quiet":
        print(size_bytes)
    else:
        _print_totals(totals, models, size_bytes)
    return DONE


def _print_totals(totals: list[HostTotals], models: int, size_bytes: int) -> None:
    names = ["HOST", "STATE", "MODELS", "SIZE", "FREE"]
    cells = [
        [
            each.host or NO_HOST,
            str(each.state),
            f"{each.model_count:,}",
            human_size(each.size_bytes),
            human_size(each.free_bytes),
        ]
        for each in totals
    ]
    cells.append(["total", "", f"{models:,}", human_size(size_bytes), ""])
    largest = max((each.size_bytes for each in totals), default=0)
    bars = [each.size_bytes / largest if largest else 0.0 for each in totals]
    print_table(names, cells, right=["MODELS", "SIZE", "FREE"], bars=bars)
