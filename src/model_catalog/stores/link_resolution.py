"""Resolve symbolic links of a store step by step, and decide which of them may leave the store."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Final

MAX_LINKS: Final = 40
"""The most links on the way to a file. Linux has the same limit."""

LEADS_OUT: Final = "it leads out of the store"
KERNEL_FOLDERS: Final = ("/proc", "/sys")
"""Where reading a regular file can wait for an event, and where links lead to any process."""


class SkippedError(Exception):
    """The reason why an entry is left out. This package catches it; callers never see it."""


@dataclass(slots=True)
class LinkResolver:
    """
    Resolves links that begin in a store below `root`, a real path.

    `given_root` is another absolute path of the root, as the caller wrote it. Without
    `follow_outside`, no link may leave the store. With it, a link may leave the store if this user
    or root owns that link, all links before it and all links after it.
    """

    root: str
    given_root: str
    follow_outside: bool
    _trusted_uids: frozenset[int] = field(default_factory=lambda: frozenset({0, os.geteuid()}))
    _linked_folders: dict[str, str] = field(default_factory=dict)
    _prefix: str = field(init=False)

    def __post_init__(self) -> None:
        self._prefix = self.root.rstrip("/") + "/"

    def is_outside(self, path: str) -> bool:
        """Return whether a real path is not in the store."""
        return not path.startswith(self._prefix) and path != self.root

    def is_trusted(self, status: os.stat_result) -> bool:
        """Return whether a file, a folder or a link belongs to this user or to root."""
        return status.st_uid in self._trusted_uids

    def add_linked_folder(self, path: str, link: str) -> None:
        """
        Allow paths below the real path of a folder outside, to which a link was followed.

        From now on `shown_path` replaces it by the path of this link.
        """
        shown = self.shown_path(link)
        self._linked_folders.pop(path, None)
        self._linked_folders[path] = shown

    def shown_path(self, path: str) -> str:
        """Return the path in the store of a file in a folder to which a link was followed."""
        for folder, link in reversed(self._linked_folders.items()):
            if path == folder or path.startswith(f"{folder}/"):
                return link + path[len(folder) :]
        return path

    def resolve(self, path: str) -> tuple[str, os.stat_result]:
        """
        Return the real path that a path leads to, and its status.

        Each link is resolved here and not by the system, because the system would follow the links
        of every user. Raises SkippedError with the reason, and OSError as the system reports it.
        """
        return _Resolution(self, self._base_of(path)).resolve(path)

    def resolve_file(self, path: str) -> tuple[str, os.stat_result]:
        """Do the same for a path that may not lead to a folder."""
        real, status = self.resolve(path)
        if stat.S_ISDIR(status.st_mode):
            raise SkippedError("it leads to a folder, which can be scanned by its own path")
        return real, status

    def _base_of(self, path: str) -> str:
        """Return the part of a path that is known to be free of links."""
        if not self.is_outside(path):
            return self.root
        for folder in reversed(self._linked_folders):
            if path.startswith(f"{folder}/"):
                return folder
        raise SkippedError(LEADS_OUT)

    def path_below_root(self, path: str) -> str | None:
        """Return the part of an absolute path below the root; None if it begins elsewhere."""
        for root in (self.root, self.given_root):
            if path.startswith(root.rstrip("/") + "/"):
                return path[len(root) :]
        return None

    def require_trusted(self, path: str, status: os.stat_result, what: str) -> None:
        """Raise SkippedError if a file or folder outside of the store may not be used."""
        if not self.is_outside(path):
            return
        if not self.is_trusted(status):
            raise SkippedError(f"it is a link to {what} of another user")


class _Resolution:
    """The resolution of one path. `_current` is always a real path."""

    def __init__(self, resolver: LinkResolver, base: str) -> None:
        self._resolver = resolver
        self._base = base
        self._current = base
        self._link_count = 0
        self._has_untrusted_link = False
        self._has_left = resolver.is_outside(base)

    def resolve(self, path: str) -> tuple[str, os.stat_result]:
        parts = path[len(self._base) :].split("/")[::-1]
        while parts:
            part = parts.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                self._move(os.path.dirname(self._current))
                continue
            step = os.path.join(self._current, part)
            if step in KERNEL_FOLDERS:
                raise SkippedError(f"it leads to {step}, which has the files of the kernel")
            status = os.lstat(step)
            if stat.S_ISLNK(status.st_mode):
                parts += self._follow(path, step, status).split("/")[::-1]
            else:
                self._current = step
        return self._current, os.lstat(self._current)

    def _follow(self, path: str, link: str, status: os.stat_result) -> str:
        """Return the target of a link, relative to `_current`."""
        self._link_count += 1
        if self._link_count > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if not self._resolver.is_trusted(status):
            self._has_untrusted_link = True
            self._require_trusted_links()
        target = os.readlink(link)
        if target.startswith("/"):
            below_root = self._resolver.path_below_root(target)
            self._move("/" if below_root is None else self._resolver.root)
            return target if below_root is None else below_root
        return target

    def _move(self, folder: str) -> None:
        self._current = folder
        if self._resolver.is_outside(folder):
            if not self._resolver.follow_outside:
                raise SkippedError(LEADS_OUT)
            self._has_left = True
            self._require_trusted_links()

    def _require_trusted_links(self) -> None:
        if self._has_left and self._has_untrusted_link:
            raise SkippedError("it leads out of the store by a link of another user")
