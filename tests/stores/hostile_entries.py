"""Make hostile entries in a store, and record which paths a scan opens."""

import json
import os
import socket
import sys
import tracemalloc
from contextlib import contextmanager

from layouts import write

from model_catalog.domain import fields, key_validation
from model_catalog.stores.store_kinds import SCANNERS
from model_catalog.stores.store_walk import MAX_FILES

GGUF = b"GGUF" + bytes(100)
DEEP = "[" * 100_000
LISTS = "[" + "[]," * 300_000 + "[]]"
ESCAPE = "a\x1b[2Jb"
NOT_UTF8 = os.fsdecode(b"a\xff\xfeb")
OPEN_EVENTS = {"open", "os.listdir", "os.scandir"}

_listeners = []


def _on_audit_event(event, args):
    # A file that is opened by its descriptor was opened by its path before.
    if _listeners and event in OPEN_EVENTS and not isinstance(args[0], int):
        _listeners[-1](os.fspath(args[0]))


# An audit hook cannot be removed. It does nothing without listeners.
sys.addaudithook(_on_audit_event)


@contextmanager
def recorded_paths():
    """Collect every path that is opened or listed."""
    opened = []
    with on_open(opened.append):
        yield opened


@contextmanager
def on_open(listener):
    """Call a listener with each path, just before it is opened or listed."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


def change_members(path, *steps, **changed):
    """Change members of an object in a JSON file. `steps` lead to the object."""
    content = json.loads(path.read_text())
    member = content
    for step in steps:
        member = member[step]
    member.update(changed)
    return write(path, json.dumps(content))


def problem_paths(store, root, outside, *, good=1):
    """
    Scan a store without links out of it; return the paths of the problems.

    Asserts that nothing outside is accessed. A scan that follows links must be as robust, and may
    also access `outside`.
    """
    scanned = _scan_safely(store, root, (root,), follow_links=False)
    assert len([model for model in scanned.found if model.is_complete]) >= good
    _scan_safely(store, root, (root, outside, "/etc/hostname"), follow_links=True)
    return [problem.path for problem in scanned.problems]


def _scan_safely(store, root, allowed, *, follow_links):
    tracemalloc.start()
    with recorded_paths() as opened:
        scanned = SCANNERS[store](root, follow_links=follow_links)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert opened
    assert [path for path in opened if not str(path).startswith(tuple(map(str, allowed)))] == []
    assert peak < 64 << 20
    for model in scanned.found:
        key = ("reference", "provider", "version", "local_path")
        fields.validate_model({name: getattr(model, name) for name in key})
        for alias in model.aliases:
            key_validation.alias("alias", alias)
        texts = [*model.reasons, *(file.path for file in model.files)]
        assert [text for text in texts if not text.isprintable()] == []
    assert [each.reason for each in scanned.problems if not each.reason.isprintable()] == []
    return scanned


def link(path, to):
    path.symlink_to(to)
    return path


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        # The path of a socket has a low length limit. The path through /proc is short.
        folder = os.open(path.parent, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
    return path


def move_outside(path, outside):
    """Move a folder out of the store and replace it by a link."""
    path.rename(outside / "moved")
    return link(path, outside / "moved")


def renamed(path, name):
    return path.rename(path.with_name(name))


def make_too_many_files(folder, data=b""):
    """Make one file more than a model may have."""
    first = write(folder / "0", data)
    for number in range(1, MAX_FILES + 1):
        os.link(first, folder / str(number))
