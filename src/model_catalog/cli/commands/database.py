"""The commands that look after a whole database: its schema, its text."""

from __future__ import annotations

import os
import stat
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Final

from model_catalog.backups.restore import backup, restore
from model_catalog.backups.salvage import repair
from model_catalog.cli.catalog_access import DONE, FAILED, existing_catalog
from model_catalog.cli.output import pluralize, print_error, print_line, print_notice
from model_catalog.domain.ndjson import HEADER
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.schema.check import check_schema
from model_catalog.schema.migrate import upgrade
from model_catalog.schema.revision import schema_state

_SHOWN: Final = 20


async def db_upgrade(options: Namespace) -> int:
    await upgrade(options.db, options.revision)
    current, _ = await schema_state(options.db)
    print_notice(f"the catalog is at {current}")
    return DONE


async def db_current(options: Namespace) -> int:
    current, head = await schema_state(options.db)
    print_line(current or "none")
    print_notice("the newest" if current == head else f"the newest is {head}")
    return DONE


async def db_check(options: Namespace) -> int:
    problems = await check_schema(options.db)
    for problem in problems:
        print_line(problem)
    print_notice(pluralize(len(problems), "problem") if problems else "no problem found")
    return FAILED if problems else DONE


async def db_backup(options: Namespace) -> int:
    copy = await backup(options.db, options.file)
    print_line(str(copy))
    return DONE


async def db_restore(options: Namespace) -> int:
    done = await restore(options.copy, options.db)
    if done.replaced is not None:
        print_notice(f"what was there before is kept as {done.replaced}")
    print_notice(f"restored {pluralize(done.model_count, 'model')}")
    return DONE


async def db_repair(options: Namespace) -> int:
    done = await repair(options.db, options.file)
    for saved in done.tables:
        print_notice(f"{saved.table}: {pluralize(saved.kept, 'row')} saved")
        if saved.refused:
            print_error(
                f"{saved.table}: {pluralize(saved.refused, 'row')} could be read and not be kept"
            )
        if saved.lost:
            listed = ", ".join(map(str, saved.lost[:_SHOWN]))
            more = ", ..." if len(saved.lost) > _SHOWN else ""
            print_error(
                f"{saved.table}: {pluralize(len(saved.lost), 'row')} lost, "
                f"of the ids {listed}{more}"
            )
    print_line(str(done.path))
    print_notice(
        "the damaged file is as it was: `model-catalog db restore` puts this one in its place"
    )
    return DONE if done.is_whole else FAILED


async def export(options: Namespace) -> int:
    with _written(options.file) as stream:

        async def write(catalog: ModelCatalog) -> int:
            return await catalog.export_catalog(stream)

        models = await existing_catalog(options, write, None)
        if models is None:
            stream.write(HEADER)
    print_notice(f"exported {pluralize(models or 0, 'model')}")
    return DONE


@contextmanager
def _written(name: str) -> Iterator[IO[str]]:
    """
    A file that is there whole or not at all: what was exported before outlives a full disk.

    What is there and no regular file is written to; a link is followed, and a file keeps its mode.
    """
    if name == "-":
        yield sys.stdout
        return
    path = Path(name).resolve()
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        with path.open("w") as device:
            yield device
        return
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


@contextmanager
def _read(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
    else:
        with Path(name).open("rb") as file:
            yield file


async def import_(options: Namespace) -> int:
    with _read(options.file) as stream:
        async with open_catalog(options.db) as catalog:
            done = await catalog.import_catalog(
                stream, options.on_conflict, skip_broken=options.skip_broken
            )
    for problem in done.problems:
        print_error(f"line {problem.line} was skipped: {problem.reason}")
    kept = f", kept {done.kept:,} that were there" if done.kept else ""
    print_notice(f"imported {pluralize(done.written, 'model')}{kept}")
    return FAILED if done.problems else DONE
