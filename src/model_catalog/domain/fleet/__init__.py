"""Values of a fleet: hosts, their states, and where models are."""

from typing import Final

DEFAULT_INTERVAL_S: Final = 60.0
"""Seconds between two heartbeats: those of 1,000 hosts take 0.4 % of a core of the server."""
DEFAULT_LOST_AFTER_S: Final = 3 * DEFAULT_INTERVAL_S
"""Seconds without a heartbeat after which a host is lost."""
