"""Commands that manage the database: upgrade, check, backup, restore and repair."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from model_catalog.backups.restore import backup, restore
from model_catalog.backups.salvage import repair
from model_catalog.cli.exit_codes import DONE, FAILED
from model_catalog.cli.output import pluralize, print_error, print_line, print_notice
from model_catalog.cli.output.named_commands import complete_commands, completed_command
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.schema.diagnosis import check_schema
from model_catalog.schema.migrate import upgrade
from model_catalog.schema.revision import schema_state

_MAX_LISTED_IDS: Final = 20


async def db_upgrade(options: Namespace) -> int:
    """Create or upgrade the tables."""
    await upgrade(options.db, options.revision, shared=options.shared, schema=options.schema)
    current, _ = await schema_state(options.db, schema=options.schema)
    print_notice(f"the catalog is at revision {current}")
    return DONE


async def db_current(options: Namespace) -> int:
    """Print the revision of the database."""
    state = await schema_state(options.db, schema=options.schema)
    current, head = state
    print_line(current or "none")
    if current == head and not state.has_search_index:
        print_notice("without an index, `--search` reads every model")
    print_notice("this is the newest" if current == head else f"the newest is {head}")
    return DONE


async def db_check(options: Namespace) -> int:
    """Print the problems of the database."""
    problems = await check_schema(options.db, schema=options.schema)
    for problem in problems:
        print_line(complete_commands(problem, options))
    print_notice(pluralize(len(problems), "problem") if problems else "no problem found")
    return FAILED if problems else DONE


async def db_backup(options: Namespace) -> int:
    """Back up the database, and print the path of the backup."""
    with ProgressBar("copying the database"):
        path = await backup(options.db, options.file, schema=options.schema)
    print_line(str(path))
    return DONE


async def db_restore(options: Namespace) -> int:
    """Replace the database with a backup."""
    result = await restore(options.copy, options.db)
    if result.replaced is not None:
        print_notice(f"the replaced database is kept as {result.replaced}")
    print_notice(f"restored {pluralize(result.model_count, 'model')}")
    return DONE


async def db_repair(options: Namespace) -> int:
    """Copy the readable rows of a damaged database to a new file."""
    report = await repair(options.db, options.file)
    for table in report.tables:
        print_notice(f"{table.table}: {pluralize(table.kept, 'row')} saved")
        for rowid, column in table.mended[:_MAX_LISTED_IDS]:
            print_error(f"{table.table}: the value of {column} in row {rowid} was replaced")
        if table.refused:
            refused = pluralize(table.refused, "row")
            print_error(f"{table.table}: {refused} read but not saved: not valid in a catalog")
        if table.lost:
            ids = ", ".join(map(str, table.lost[:_MAX_LISTED_IDS]))
            more = ", ..." if len(table.lost) > _MAX_LISTED_IDS else ""
            print_error(f"{table.table}: {pluralize(len(table.lost), 'row')} lost: ids {ids}{more}")
    print_line(str(report.path))
    restore_command = completed_command(["db", "restore", str(report.path)], options)
    print_notice(
        f"the damaged file was not changed; to replace it with the new file, run {restore_command}"
    )
    return DONE if report.is_whole else FAILED
