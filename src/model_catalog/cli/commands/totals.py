"""Commands that count models and bytes: `du` and `stats`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from model_catalog.cli.catalog_access import use_existing_catalog
from model_catalog.cli.exit_codes import DONE
from model_catalog.cli.output import (
    human_size,
    pluralize,
    print_json,
    print_notice,
    print_table,
    print_tsv,
    text_bar,
)
from model_catalog.repository.operations.statistics import CatalogStats, ModelTotals

_EMPTY_STATS: Final = CatalogStats(ModelTotals(0, 0), {}, {}, {}, {})


async def _read_stats(options: Namespace) -> CatalogStats:
    return await use_existing_catalog(options, lambda catalog: catalog.stats(), _EMPTY_STATS)


async def du(options: Namespace) -> int:
    """Print the number and the total size of models by provider."""
    found = await _read_stats(options)
    rows = [
        (provider, totals.model_count, totals.size_bytes)
        for provider, totals in found.by_provider.items()
    ]
    fields = ("provider", "models", "size_bytes")
    if options.format == "json":
        providers = [dict(zip(fields, row, strict=True)) for row in rows]
        total = {"models": found.total.model_count, "size_bytes": found.total.size_bytes}
        print_json({**total, "providers": providers})
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        print(found.total.size_bytes)
    else:
        largest = max((size for _, _, size in rows), default=0)
        bars = [text_bar(size / largest) if largest else "" for _, _, size in rows]
        rows.append(("total", found.total.model_count, found.total.size_bytes))
        cells = [[provider, f"{models:,}", human_size(size)] for provider, models, size in rows]
        names = ["PROVIDER", "MODELS", "SIZE"]
        if sys.stdout.isatty():
            names.append("")
            cells = [[*row, bar] for row, bar in zip(cells, [*bars, ""], strict=True)]
        print_table(names, cells, right=["MODELS", "SIZE"])
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
        (kind, name, totals.model_count, totals.size_bytes)
        for kind, totals_by_name in totals_by_kind.items()
        for name, totals in totals_by_name.items()
    ]
    fields = ("kind", "name", "models", "size_bytes")
    if options.format == "json":
        print_json([dict(zip(fields, row, strict=True)) for row in rows])
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        print(found.total.model_count)
    else:
        cells = [
            [kind, name or "?", f"{models:,}", human_size(size)]
            for kind, name, models, size in rows
        ]
        print_table(
            ["KIND", "NAME", "MODELS", "SIZE"], cells, right=["MODELS", "SIZE"], cut=["NAME"]
        )
        print_notice(
            f"{pluralize(found.total.model_count, 'model')}, {human_size(found.total.size_bytes)}"
        )
    return DONE
