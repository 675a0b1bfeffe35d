"""Processes that write to a catalog for a long time, while faults strike them and the databases."""

from __future__ import annotations

CALL_TIMEOUT_S = 2.0
"""The `timeout_s` of every call of a worker."""

MODELS_OF_A_BULK_CALL = 20
