"""Commands that export and import the whole catalog as NDJSON."""

from __future__ import annotations

import os
import stat
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Final, cast

from model_catalog.cli.catalog_access import open_named, use_existing_catalog
from model_catalog.cli.exit_codes import DONE, FAILED
from model_catalog.cli.output import pluralize, print_error, print_notice
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.concurrency.threads import CountReporter
from model_catalog.domain.ndjson import HEADER
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep import Progress

# A command that a person waits for can be stopped with Ctrl-C. A million models take minutes.
_IMPORT_TIMEOUT_S: Final = 24 * 3600.0


async def export(options: Namespace) -> int:
    """Export the catalog to a file or to standard output."""
    with output_stream(options.file) as stream:

        async def write(catalog: ModelCatalog) -> int:
            with ProgressBar("reading the catalog", stdout_too=options.file == "-") as bar:
                return await catalog.export_catalog(
                    stream, on_progress=lambda done, total: bar.show_count(done, total, "models")
                )

        model_count = await use_existing_catalog(options, write, None)
        if model_count is None:
            stream.write(HEADER)
    print_notice(f"exported {pluralize(model_count or 0, 'model')}")
    return DONE


@contextmanager
def output_stream(name: str) -> Iterator[IO[str]]:
    """
    Open a file that replaces an existing file atomically; `-` is standard output.

    If the block fails, for example because the disk is full, the earlier export stays. A device or
    a FIFO is written to directly. A symbolic link is followed, and an existing file keeps its mode.
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
def _input_stream(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
    else:
        with Path(name).open("rb") as file:
            yield file


def _counted_lines(stream: IO[bytes], name: str, bar: ProgressBar) -> IO[bytes]:
    """Return a stream that shows in a progress bar how much of it was read."""
    status = os.fstat(stream.fileno())
    total_bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return cast(IO[bytes], _CountedLines(stream, name, total_bytes, bar))


class _CountedLines:
    """The part of a stream that an import reads."""

    def __init__(self, stream: IO[bytes], name: str, total_bytes: int, bar: ProgressBar) -> None:
        self._stream = stream
        self._done_bytes = 0
        self._report = CountReporter(
            lambda done_bytes: bar.show(Progress(name, done_bytes, total_bytes))
        )

    def readline(self, size: int = -1) -> bytes:
        line = self._stream.readline(size)
        self._done_bytes += len(line)
        self._report(self._done_bytes)
        return line


async def import_(options: Namespace) -> int:
    """Import an export from a file or from standard input."""
    with _input_stream(options.file) as stream:
        async with open_named(options) as catalog:
            with ProgressBar() as bar:
                result = await catalog.import_catalog(
                    _counted_lines(stream, options.file, bar),
                    options.on_conflict,
                    skip_broken=options.skip_broken,
                    trust_source=options.trust_source,
                    timeout_s=_IMPORT_TIMEOUT_S,
                    on_progress=lambda done, total: bar.show_count(done, total, "models"),
                )
    for problem in result.problems:
        print_error(f"line {problem.line} was skipped: {problem.reason}")
    kept = f", kept {result.kept:,} existing" if result.kept else ""
    print_notice(f"imported {pluralize(result.written, 'model')}{kept}")
    return FAILED if result.problems else DONE
