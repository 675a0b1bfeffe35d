"""The commands `report` and `completion`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from model_catalog.cli.catalog_access import use_existing_catalog
from model_catalog.cli.commands.export_import import output_stream
from model_catalog.cli.commands.report.report_data import ReportData, read_report_data
from model_catalog.cli.commands.report.report_page import report_page
from model_catalog.cli.completion import shell_code
from model_catalog.cli.exit_codes import DONE, FAILED
from model_catalog.cli.output import pluralize, print_error, print_notice
from model_catalog.cli.output.named_commands import completed_command
from model_catalog.connection.target import name_with_schema, resolve_target
from model_catalog.repository.model_catalog import ModelCatalog


async def report(options: Namespace) -> int:
    """Write a page about the models of the catalog to a file."""
    database = name_with_schema(resolve_target(options.db).name, options.schema)

    async def read(catalog: ModelCatalog) -> ReportData | None:
        return await read_report_data(
            catalog, database, max_models=options.limit, unused_days=options.unused_days
        )

    data = await use_existing_catalog(options, read, None)
    if data is None:
        scan = completed_command(["scan"], options)
        print_error(f"error: there is no catalog: run {scan} to record the models of this machine")
        return FAILED
    with output_stream(options.html) as stream:
        stream.write(report_page(data))
    if options.html != "-":
        path = Path(options.html).resolve()
        print_notice(f"{pluralize(len(data.models), 'model')} in {path}: open {path.as_uri()}")
    return DONE


async def completion(options: Namespace) -> int:
    """Print the script that completes `model-catalog` in a shell."""
    print(shell_code(options.shell), end="")
    return DONE
