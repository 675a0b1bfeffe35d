"""The command line, `model-catalog`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from model_catalog.cli.output import print_error
from model_catalog.cli.parser import make_parser
from model_catalog.errors import (
    CatalogError,
    DigestMismatchError,
    InvalidImportError,
    InvalidModelError,
    InvalidTargetError,
    TooManyMissingError,
)

DONE, FAILED, MISUSED, NOT_AS_RECORDED, INTERRUPTED = 0, 1, 2, 3, 130


class _Words(logging.Handler):
    """What the package has to say beside its results, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(record.getMessage())


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command; return its exit code.

    0 done, 1 not found, declined or not possible, 2 misuse, 3 not as it is recorded. Data goes to
    standard output, words to standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        # None where the shell has closed it; and a name may hold what its encoding does not.
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    options = make_parser().parse_args(arguments)
    # Here, because the commands import SQLAlchemy: half a second that `--help` does not need.
    from model_catalog.cli.commands import models  # noqa: PLC0415

    words = _Words(logging.WARNING)
    logging.getLogger("model_catalog").addHandler(words)
    try:
        code = asyncio.run(models.run(options))
        print(end="", flush=True)
    except CatalogError as error:
        print_error(f"error: {error}")
        return _code_of(error)
    except BrokenPipeError:
        # Whoever read has read enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        print_error(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        logging.getLogger("model_catalog").removeHandler(words)
    return code


def _code_of(error: CatalogError) -> int:
    if isinstance(error, InvalidImportError | InvalidModelError | InvalidTargetError):
        return MISUSED
    if isinstance(error, DigestMismatchError | TooManyMissingError):
        return NOT_AS_RECORDED
    return FAILED
