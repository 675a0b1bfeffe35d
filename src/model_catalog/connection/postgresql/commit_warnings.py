"""Notices when PostgreSQL committed without the synchronous standby that it was to wait for."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakSet

from model_catalog.errors import CatalogUnavailableError

# The code of a warning without a code of its own. A COMMIT that is stopped while it waits for a
# standby succeeds with such a warning, and no other warning of a COMMIT has this code.
_WARNING: Final = "01000"

_REASON: Final = (
    "the server stopped waiting for its synchronous standby, so perhaps only this server has the "
    "changes"
)

# The connections of drivers that were warned since their last `forget_warnings`.
_warned: Final[WeakSet[Any]] = WeakSet()


def watch_warnings(driver: Any) -> None:
    """Let a driver's connection record warnings. Call it once for each connection."""
    if hasattr(driver, "add_log_listener"):
        driver.add_log_listener(_on_asyncpg_message)
    else:
        driver.add_notice_handler(_Handler(driver))


def _on_asyncpg_message(driver: Any, message: Any) -> None:
    if message.sqlstate == _WARNING:
        _warned.add(driver)


class _Handler:
    """The notice handler of one connection of psycopg, which it does not keep alive."""

    def __init__(self, driver: Any) -> None:
        self._driver: Final[WeakSet[Any]] = WeakSet((driver,))

    def __call__(self, diagnosis: Any) -> None:
        if diagnosis.sqlstate == _WARNING:
            _warned.update(self._driver)


def forget_warnings(driver: Any) -> None:
    """Forget the warnings of earlier statements. Call it before COMMIT is sent."""
    _warned.discard(driver)


def require_replicated(driver: Any, target: str) -> None:
    """Raise CatalogUnavailableError if COMMIT succeeded, but did not wait for a standby."""
    if driver in _warned:
        _warned.discard(driver)
        raise CatalogUnavailableError(target, _REASON, outcome_unknown=True)
