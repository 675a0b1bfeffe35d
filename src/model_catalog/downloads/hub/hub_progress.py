"""The progress bars that huggingface_hub updates: they report bytes, and they stop a download."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, Self

from model_catalog.errors import StoppedError


class HubProgress:
    """
    Counts the bytes of one call of `snapshot_download`.

    `report(done_bytes, total_bytes)` is called in the threads of huggingface_hub. Each chunk of a
    file, of at most 10 MB, is one update. If `is_stopped()` is true, an update raises StoppedError
    in the thread that downloads, which deletes its partial file and ends.

    A transfer by hf_xet drops that error: it ends with its file, or by `abort_xet_transfers`. No
    file is started after it.
    """

    def __init__(
        self,
        report: Callable[[int, int], object],
        is_stopped: Callable[[], bool],
        *,
        cached_bytes: int,
        total_bytes: int,
    ) -> None:
        self._report = report
        self._is_stopped = is_stopped
        self._cached_bytes = cached_bytes
        self._total_bytes = total_bytes
        self._lock = threading.Lock()
        self._bars: list[_ProgressBar] = []
        report(cached_bytes, total_bytes)

    def bar_class(self) -> type[_ProgressBar]:
        """Return the class to pass as `tqdm_class`."""
        return type("HubProgressBar", (_ProgressBar,), {"progress": self})

    def add_bar(self, bar: _ProgressBar) -> None:
        """Add a bar that counts bytes."""
        with self._lock:
            self._bars.append(bar)

    def advance(self, bar: _ProgressBar, count: float) -> None:
        """Advance a bar, and report the bytes. Raises StoppedError."""
        if self._is_stopped():
            raise StoppedError("the download was stopped")
        with self._lock:
            bar.n += count
            if bar not in self._bars:
                return
            # One bar counts the bytes from the network, and one those that were written. They
            # differ where huggingface_hub gets a file in compressed pieces.
            done_bytes = self._cached_bytes + int(max(each.n for each in self._bars))
            self._report(max(0, min(done_bytes, self._total_bytes)), self._total_bytes)


class _ProgressBar:
    """
    A progress bar with the methods of `tqdm` that huggingface_hub 2.4 calls. It draws nothing.

    huggingface_hub adjusts `total` from its threads, and reads `n`.
    """

    progress: ClassVar[HubProgress]

    def __init__(self, *_: Any, **options: Any) -> None:
        self.total = options.get("total")
        self.n = options.get("initial") or 0
        if options.get("unit") == "B":
            self.progress.add_bar(self)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values that a bar would draw."""
        return {"n": self.n, "total": self.total, "rate": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        """Advance by a number of bytes or files; a negative number takes bytes back."""
        self.progress.advance(self, n or 0)

    def refresh(self, *_: Any, **__: Any) -> None:
        """Draw nothing."""

    close = set_postfix = set_postfix_str = set_description = set_description_str = refresh


def abort_xet_transfers() -> None:
    """
    Abort all transfers by hf_xet in this process, also those of others.

    For a process that ends: otherwise it would wait for the files that are being downloaded.
    huggingface_hub 2.4 has no public function for this, and none for a single download.
    """
    if "hf_xet" not in sys.modules:
        return
    with contextlib.suppress(ImportError, AttributeError):
        import_module("huggingface_hub.utils._xet").abort_xet_session()
