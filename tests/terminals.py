"""Pseudo-terminals: run a command in one, or print to one, and read what it shows."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from contextlib import contextmanager

# Ctrl-C becomes a signal only for a process whose controlling terminal it is.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
_COLOR = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """What was written to a terminal, read in a thread so that the writer need not wait."""

    def __init__(self, leader):
        self._leader = leader
        self._bytes = b""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        while True:
            try:
                part = os.read(self._leader, 65536)
            except OSError:
                # Linux reports the end of a terminal as an input/output error.
                part = b""
            with self._changed:
                self._bytes += part
                self._is_closed = not part
                self._changed.notify_all()
            if not part:
                return

    def wait_for(self, text, timeout_s=30):
        """Wait until a text was written."""
        with self._changed:
            assert self._changed.wait_for(lambda: text.encode() in self._bytes, timeout_s), text

    def type(self, keys):
        """Type keys, such as the byte of Ctrl-C."""
        os.write(self._leader, keys)

    def close(self):
        self._thread.join()
        os.close(self._leader)

    @property
    def raw(self):
        """All text, with its escape sequences; a line ends with a newline alone."""
        return self._bytes.decode().replace("\r\n", "\n")

    @property
    def text(self):
        """The text without escape sequences."""
        return ESCAPE.sub("", self.raw)

    @property
    def remains(self):
        """The text of the lines that were not erased, without escape sequences."""
        lines = [""]
        for part in re.split(r"(\n|\r|\x1b\[2K|\x1b\[1A)", self.raw):
            if part == "\n":
                lines.append("")
            elif part == "\x1b[1A":
                lines.pop()
            elif part == "\x1b[2K":
                lines[-1] = ""
            elif part != "\r":
                lines[-1] += ESCAPE.sub("", part)
        return "\n".join(lines)


def _open(width):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    return leader, follower


@contextmanager
def printing_to_terminal(monkeypatch, *streams, width=80, **environment):
    """Replace `stdout`, `stderr` or both by a terminal during the block."""
    leader, follower = _open(width)
    screen = Screen(leader)
    with monkeypatch.context() as patch, os.fdopen(follower, "w") as file:
        # Rich asks the standard streams of the process, and COLUMNS replaces their answer.
        for name, value in {"COLUMNS": str(width), "TERM": "xterm", **environment}.items():
            patch.setenv(name, value)
        for name in _COLOR - {"COLUMNS", *environment}:
            patch.delenv(name, raising=False)
        for stream in streams:
            patch.setattr(sys, stream, file)
        yield screen
    screen.close()


@contextmanager
def in_terminal(*command, width=80, stdout=None, **environment):
    """
    Start a command in a session with this terminal; yield the process and its screen.

    `stdout` is where its standard output goes, if that is not the terminal.
    """
    leader, follower = _open(width)
    env = {name: value for name, value in os.environ.items() if name not in _COLOR}
    with subprocess.Popen(
        [sys.executable, "-c", _TAKE_TERMINAL, *command],
        stdin=follower,
        stdout=follower if stdout is None else stdout,
        stderr=follower,
        env={**env, "TERM": "xterm", **environment},
        start_new_session=True,
    ) as process:
        os.close(follower)
        screen = Screen(leader)
        yield process, screen
        process.wait()
        screen.close()
