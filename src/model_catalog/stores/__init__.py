"""Read-only scanners for the model folders of other programs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_catalog.stores.scan_result import (
        Claims,
        FoundModel,
        PassedOver,
        Scan,
        Scanner,
        ScanProblem,
        StoreFile,
        StoreName,
    )
    from model_catalog.stores.store_kinds import PROVIDERS, SCANNERS, detect_store
    from model_catalog.stores.store_roots import StoreRoot, default_roots

__all__ = [
    "PROVIDERS",
    "SCANNERS",
    "Claims",
    "FoundModel",
    "PassedOver",
    "Scan",
    "ScanProblem",
    "Scanner",
    "StoreFile",
    "StoreName",
    "StoreRoot",
    "default_roots",
    "detect_store",
]

_MODULES = {
    "PROVIDERS": "store_kinds",
    "SCANNERS": "store_kinds",
    "Claims": "scan_result",
    "FoundModel": "scan_result",
    "PassedOver": "scan_result",
    "Scan": "scan_result",
    "ScanProblem": "scan_result",
    "Scanner": "scan_result",
    "StoreFile": "scan_result",
    "StoreName": "scan_result",
    "StoreRoot": "store_roots",
    "default_roots": "store_roots",
    "detect_store": "store_kinds",
}


# Each name is imported on first use: `model_catalog.upkeep` needs the result types of a scan
# without the scanners.
def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
