"""The command line, `model-catalog`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from model_catalog.cli import completion
from model_catalog.cli.exit_codes import (
    FAILED,
    INTERRUPTED,
    MISUSED,
    NOT_AS_RECORDED,
    TERMINATED,
)
from model_catalog.cli.output import print_error
from model_catalog.cli.output.named_commands import complete_commands
from model_catalog.cli.parser import make_parser
from model_catalog.errors import (
    CatalogError,
    DigestMismatchError,
    InvalidImportError,
    InvalidModelError,
    InvalidTargetError,
    TooManyMissingError,
)


class _StderrHandler(logging.Handler):
    """Prints the package's log messages to standard error, like the messages of commands."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(record.getMessage())


def run_program() -> NoReturn:
    """
    Run the command of the process, and end the process with its exit code.

    After Ctrl-C and SIGTERM it does not wait for threads. A thread that reads from the hub cannot
    be cancelled, and may wait for minutes. The catalog is closed by then.
    """
    code = main()
    if code in {INTERRUPTED, TERMINATED}:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, AttributeError):
                stream.flush()
        os._exit(code)
    # At its end Python looks for reference cycles in all objects that are not frozen: 30 ms.
    gc.freeze()
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command and return its exit code.

    0: done. 1: not found, declined or not possible. 2: invalid arguments. 3: a file differs from
    the catalog. 130: interrupted. 143: terminated. Data goes to standard output, messages to
    standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        # None if the shell has closed the stream. A file name may contain characters that the
        # encoding of the stream does not have; they are printed as escapes.
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = make_parser()
    if completion.VARIABLE in os.environ:
        completion.complete(parser)
    options = parser.parse_args(arguments)
    # Imported here because the commands import SQLAlchemy, which takes half a second. `--help`
    # does not need it.
    from model_catalog.cli.dispatch import run_command  # noqa: PLC0415

    handler = _StderrHandler(logging.WARNING)
    logging.getLogger("model_catalog").addHandler(handler)
    try:
        code = asyncio.run(_run_until_terminated(run_command(options)))
        print(end="", flush=True)
    except CatalogError as error:
        print_error(complete_commands(f"error: {error}", options))
        return _exit_code(error)
    except BrokenPipeError:
        # The reader of the pipe has closed it, as `head` does. Without this redirection Python
        # would report another error when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        print_error(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        logging.getLogger("model_catalog").removeHandler(handler)
    return code


async def _run_until_terminated(command: Coroutine[Any, Any, int]) -> int:
    """
    Run a command, and return its exit code. SIGTERM cancels it.

    So a download that is terminated releases its claim, and a transaction is rolled back.
    """
    running = asyncio.ensure_future(command)
    is_terminated = asyncio.Event()

    def terminate() -> None:
        is_terminated.set()
        running.cancel()

    # Outside of the main thread a program cannot receive signals: ValueError or RuntimeError.
    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await running
    except asyncio.CancelledError:
        if is_terminated.is_set():
            return TERMINATED
        raise


def _exit_code(error: CatalogError) -> int:
    if isinstance(error, InvalidImportError | InvalidModelError | InvalidTargetError):
        return MISUSED
    if isinstance(error, DigestMismatchError | TooManyMissingError):
        return NOT_AS_RECORDED
    return FAILED
