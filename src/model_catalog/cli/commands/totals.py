"""Commands that count models and bytes: `du` and `stats`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from model_catalog.cli.catalog_access import use_existing_catalog
from model_catalog.cli.exit_codes import DONE
from model_catalog.cli.output import (
    human_disk_usage,
    human_size,
    pluralize,
    print_json,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.repository.operations.statistics import CatalogStats, ModelTotals

_EMPTY_STATS: Final = CatalogStats(ModelTotals(0, 0), {}, {}, {}, {})


async def _read_stats(options: Namespace) -> CatalogStats:
    return await use_existing_catalog(options, lambda catalog: catalog.stats(), _EMPTY_STATS)


async def du(options: Namespace) -> int:
    """Print the number of models by provider, their bytes on the disk, and the sum of sizes."""
    if options.fleet:
        from model_catalog.cli.commands.fleet.models import du_fleet  # noqa: PLC0415

        return await du_fleet(options)
    found = await _read_stats(options)
    total = (found.total.model_count, found.total.size_bytes, found.total.disk_bytes)
    rows = [
        (provider, totals.model_count, totals.size_bytes, totals.disk_bytes)
        for provider, totals in found.by_provider.items()
    ]
    fields = ("provider", "models", "size_bytes", "disk_bytes")
    if options.format == "json":
        providers = [dict(zip(fields, row, strict=True)) for row in rows]
        print_json({**dict(zip(fields[1:], total, strict=True)), "providers": providers})
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        print(found.total.disk_bytes)
    else:
        largest = max((on_disk for _, _, _, on_disk in rows), default=0)
        bars = [on_disk / largest if largest else 0.0 for _, _, _, on_disk in rows]
        rows.append(("total", *total))
        cells = [
            [provider, f"{models:,}", human_size(size), human_size(on_disk)]
            for provider, models, size, on_disk in rows
        ]
        names = ["PROVIDER", "MODELS", "SIZE", "ON DISK"]
        print_table(names, cells, right=["MODELS", "SIZE", "ON DISK"], bars=bars)
    return DONE


async def stats(options: Namespace) -> int:
    """Print counts and sizes by provider, format, architecture and quantization."""
    found = await _read_stats(options)
    totals_by_kind: dict[str, Mapping[Any, ModelTotals]] = {
        "provider": found.by_provider,
        "format": found.by_format,
        "architecture": found.by_architecture,
        "quantization": found.by_quantization,
    }
    rows = [
        (kind, name, totals.model_count, totals.size_bytes, totals.disk_bytes)
        for kind, totals_by_name in totals_by_kind.items()
        for name, totals in totals_by_name.items()
    ]
    fields = ("kind", "name", "models", "size_bytes", "disk_bytes")
    if options.format == "json":
        print_json([dict(zip(fields, row, strict=True)) for row in rows])
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        print(found.total.model_count)
    else:
        cells = [
            [kind, name or "?", f"{models:,}", human_size(size), human_size(on_disk)]
            for kind, name, models, size, on_disk in rows
        ]
        print_table(
            ["KIND", "NAME", "MODELS", "SIZE", "ON DISK"],
            cells,
            right=["MODELS", "SIZE", "ON DISK"],
            cut=["NAME"],
        )
        sizes = human_disk_usage(found.total.disk_bytes, found.total.size_bytes)
        print_notice(f"{pluralize(found.total.model_count, 'model')}, {sizes}")
    return DONE
