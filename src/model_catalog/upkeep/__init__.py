"""
The catalog and the disk: whatever looks at files, hashes them or waits for them takes a catalog.

    from model_catalog.upkeep import check_models, register_path, verify_models
"""

from model_catalog.upkeep.checks.model_check import Checked, Finding, check_models
from model_catalog.upkeep.duplicates import Copy, Duplicate, Place, find_duplicates
from model_catalog.upkeep.inspection import Recorded
from model_catalog.upkeep.registration import accept_model, register_path
from model_catalog.upkeep.relinking import Moved, find_moved, relink_model
from model_catalog.upkeep.signature_check import Signature, verify_signature
from model_catalog.upkeep.store_sync.adoption import Adopted, adopt, scan_store
from model_catalog.upkeep.store_sync.scan_comparison import Sighting
from model_catalog.upkeep.verification.model_verification import Verdict, Verified, verify_models
from model_catalog.upkeep.watcher import Watch, watch
from model_catalog.upkeep.worker_threads import Progress

__all__ = [
    "Adopted",
    "Checked",
    "Copy",
    "Duplicate",
    "Finding",
    "Moved",
    "Place",
    "Progress",
    "Recorded",
    "Sighting",
    "Signature",
    "Verdict",
    "Verified",
    "Watch",
    "accept_model",
    "adopt",
    "check_models",
    "find_duplicates",
    "find_moved",
    "register_path",
    "relink_model",
    "scan_store",
    "verify_models",
    "verify_signature",
    "watch",
]
