"""
Make stores of other programs from bytes, for the targets of their readers, and check a scan.

An input is a JSON list of entries: the path of a file, its kind, and its content or link target.
The strategy starts from a store as the program writes it, and changes contents, names and kinds.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from fuzz.resource_limits import limited_resources
from model_catalog.domain import fields, key_validation
from model_catalog.files.file_names import Role
from model_catalog.stores.scan_result import FoundModel, Scan, StoreName
from model_catalog.stores.store_kinds import SCANNERS, detect_store

Entry = tuple[str, str, str]
"""The path of an entry in a store, `file`, `link`, `folder` or `fifo`, and a text in Latin-1."""

GGUF: Final = "GGUF" + "\0" * 100
_OUTSIDE: Final = "../outside"
_SECRET: Final = f"{_OUTSIDE}/secret.gguf"
_NAMES: Final = (
    *("..", ".", "x", "blobs", "refs", "latest.json", ".complete", "1.complete", "snapshots"),
    *("a\x1b[2J", "\xff\xfe", "x" * 255, "m.gguf.incomplete", "._____temp", ".mv", "a@b:c", "--"),
)
_VALUES: Final = (
    *(None, True, 0, -1, 2**64, 10**30, 1.5, "", "../x", _SECRET, "a\x1b[2J", "\ud800", "\0"),
    *([], {}, [[]], [None], "x" * 600, "sha256:" + "a" * 64, "sha256:" + "A" * 64, "latest"),
    *("docker.io/ai/m:latest", "/etc/passwd", "m.gguf", "gguf", "safetensor", 7),
)
_TEXTS: Final = ("", "[" * 200, "{", "\xff\xfe", "null", "[]", "1e999", '{"a":1,"a":2}', "GGUF")
_MAX_ENTRIES: Final = 60


def strategy(seeds: Sequence[Sequence[Entry]]) -> st.SearchStrategy[bytes]:
    """Return inputs that are mutations of the given stores."""
    return st.integers(0, 2**64 - 1).map(random.Random).map(lambda choice: _mutate(choice, seeds))


def encode(entries: Sequence[Entry]) -> bytes:
    """Return the input that stands for a store."""
    return json.dumps(entries).encode()


def _mutate(choice: random.Random, seeds: Sequence[Sequence[Entry]]) -> bytes:
    entries = [*choice.choice(seeds)]
    for _ in range(choice.choice([0, 1, 1, 2, 3, 6])):
        at = choice.randrange(len(entries))
        path, kind, text = entries[at]
        match choice.randrange(9):
            case 0:
                del entries[at]
                entries = entries or [("x", "file", "")]
            case 1:
                entries[at] = (_rename(choice, path), kind, text)
            case 2:
                entries.append((_rename(choice, path), kind, text))
            case 3:
                target = choice.choice([_SECRET, _OUTSIDE, "..", ".", "x", path, "/dev/zero", "/"])
                entries[at] = (path, "link", target)
            case 4:
                entries[at] = (path, choice.choice(["folder", "fifo"]), "")
            case 5:
                entries[at] = (path, "file", _change_bytes(choice, text))
            case 6:
                entries[at] = (path, "file", choice.choice(_TEXTS))
            case _:
                entries[at] = (path, kind, _change_json(choice, text))
    return encode(entries[:_MAX_ENTRIES])


def _rename(choice: random.Random, path: str) -> str:
    parts = path.split("/")
    at = choice.randrange(len(parts))
    change = choice.choice(["replace", "replace", "suffix", "remove", "insert"])
    if change == "replace":
        parts[at] = choice.choice(_NAMES)
    elif change == "suffix":
        parts[at] += choice.choice(
            [".incomplete", ".partial", ".json", ".complete", "x", "___", "-"]
        )
    elif change == "insert":
        parts.insert(at, choice.choice(_NAMES))
    elif len(parts) > 1:
        del parts[at]
    return "/".join(parts)


def _change_bytes(choice: random.Random, text: str) -> str:
    at, length = choice.randint(0, len(text)), choice.choice([0, 1, 4, 40])
    return (
        text[:at] + choice.choice(["", '"', "{", "]", "\0", "\xff", "9" * 30]) + text[at + length :]
    )


def _change_json(choice: random.Random, text: str) -> str:
    """Replace, remove or repeat one value anywhere in a JSON text."""
    try:
        content = json.loads(text)
    except ValueError:
        return _change_bytes(choice, text)
    places = [*_places(content)]
    if not places:
        return json.dumps(choice.choice(_VALUES))
    holder, key = choice.choice(places)
    match choice.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.append(holder[key])
        case 2:
            _, other = choice.choice(places)
            with suppress(LookupError, TypeError):
                holder[key] = copy.deepcopy(choice.choice(places)[0][other])
        case _:
            holder[key] = copy.deepcopy(choice.choice(_VALUES))
    with suppress(ValueError):
        return json.dumps(content)
    return text


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    pending = [content] if isinstance(content, dict | list) else []
    while pending:
        holder = pending.pop()
        keys = range(len(holder)) if isinstance(holder, list) else list(holder)
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                pending.append(holder[key])


@dataclass
class _OpenedPaths:
    """The paths that this process opens or lists while the hook is active."""

    paths: list[str] = field(default_factory=list)
    is_active: bool = False

    def record(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event of the interpreter."""
        if self.is_active and event in {"open", "os.listdir", "os.scandir"}:
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                self.paths.append(os.fsdecode(path))


_OPENED: Final = _OpenedPaths()
# A hook cannot be removed, so it is added once.
sys.addaudithook(_OPENED.record)


@contextmanager
def open_store_check(
    store: StoreName, *, digests_are_names: bool = False
) -> Iterator[Callable[[bytes], str]]:
    """Yield the check of a target: a scan of the store that an input stands for."""
    # A file system in memory, because a disk is slow.
    memory = Path("/dev/shm")  # noqa: S108 - the check has a folder of its own in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:

        def check(raw: bytes) -> str:
            try:
                entries = json.loads(raw)
            except ValueError:
                return "no store"
            root = Path(folder) / "store"
            outside = Path(folder) / "outside"
            outside.mkdir()
            (outside / "secret.gguf").write_text(GGUF)
            root.mkdir()
            try:
                _write(root, entries)
                return _scan(store, str(root), digests_are_names=digests_are_names)
            finally:
                shutil.rmtree(root)
                shutil.rmtree(outside)

        yield check


def _write(root: Path, entries: Any) -> None:
    for path, kind, text in entries:
        # A name is any bytes without a slash and NUL. No entry is outside of the store.
        parts = [_name(part) for part in path.split("/") if part not in {"", ".", ".."}]
        full = root.joinpath(*filter(None, parts))
        with suppress(OSError, ValueError):
            (full if kind == "folder" else full.parent).mkdir(parents=True, exist_ok=True)
            # A folder above may be a link that leads out of the store.
            if not full.parent.resolve().is_relative_to(root) or full.is_symlink():
                continue
            if kind == "fifo":
                os.mkfifo(full)
            elif kind == "link":
                full.symlink_to(_name(text))
            elif kind == "file" and not full.is_fifo():
                full.write_bytes(text.encode("latin-1", "replace"))


def _name(text: str) -> str:
    """Return a name whose bytes are the characters of a text. Some are not UTF-8."""
    return os.fsdecode(text.encode("latin-1", "replace").replace(b"\0", b""))


def _scan(store: StoreName, root: str, *, digests_are_names: bool) -> str:
    detect_store(root)
    with limited_resources():
        _OPENED.paths.clear()
        _OPENED.is_active = True
        try:
            scanned = SCANNERS[store](root, follow_links=False)
        finally:
            _OPENED.is_active = False
        followed = SCANNERS[store](root)
    opened = [path for path in _OPENED.paths if not path.startswith("/proc/")]
    assert [path for path in opened if not path.startswith(root)] == [], opened
    for each in (scanned, followed):
        _check(each, digests_are_names=digests_are_names)
    if scanned.problems:
        return "problems"
    if not scanned.found:
        return "nothing"
    is_whole = all(model.is_complete for model in scanned.found)
    return "whole" if is_whole else "incomplete"


def _check(scanned: Scan, *, digests_are_names: bool) -> None:
    names = [(model.provider, model.reference, model.version) for model in scanned.found]
    assert len(set(names)) == len(names), names
    for model in scanned.found:
        _check_model(model, digests_are_names=digests_are_names)
    texts = [problem.reason for problem in scanned.problems]
    assert all(text.isprintable() for text in texts), texts
    used = {file.identity for model in scanned.found for file in model.files}
    assert not [each for each in scanned.leftovers if each.identity in used]
    assert scanned.disk_bytes >= 0


def _check_model(model: FoundModel, *, digests_are_names: bool) -> None:
    key = ("reference", "provider", "version", "local_path")
    fields.validate_model({name: getattr(model, name) for name in key})
    for alias in model.aliases:
        key_validation.alias("alias", alias)
    assert model.folder in {model.local_path, model.local_path.rpartition("/")[0]}
    assert all(text.isprintable() for text in model.reasons), model.reasons
    paths = [file.path for file in model.files]
    assert paths == sorted(set(paths)), paths
    for file in model.files:
        assert file.path.isprintable(), file.path
        assert not {"", ".", ".."}.intersection(file.path.split("/")), file.path
        status = Path(f"{model.folder}/{file.path}").stat()
        assert (status.st_dev, status.st_ino) == file.identity, file.path
        expected = f"sha256:{file.path.lower()}" if digests_are_names else None
        assert file.digest == expected, file
    weights: tuple[Role, ...] = ("weights", "adapter", "projector", "draft", "imatrix")
    has_weights = any(file.role in weights for file in model.files)
    assert has_weights or not model.is_complete or model.kind in {"tokenizer", "unknown"}, model
