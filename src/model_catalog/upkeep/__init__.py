"""
Compare a catalog with the disk: register, check, verify, scan and relink model files.

Every function takes a catalog and reads files in worker threads.

    from model_catalog.upkeep import check_models, register_path, verify_models
"""

from model_catalog.upkeep.checks.model_check import CheckFinding, CheckReport, check_models
from model_catalog.upkeep.duplicates import (
    CopyLocation,
    DuplicateCopy,
    DuplicateSet,
    find_duplicates,
)
from model_catalog.upkeep.inspection import RegisteredPath
from model_catalog.upkeep.registration import accept_model, register_path
from model_catalog.upkeep.relinking import MovedModel, find_moved, relink_model
from model_catalog.upkeep.signature_check import Signature, verify_signature
from model_catalog.upkeep.store_sync.adoption import StoreSyncReport, adopt, scan_store
from model_catalog.upkeep.store_sync.scan_changes import StoreFinding
from model_catalog.upkeep.verification.model_verification import verify_models
from model_catalog.upkeep.verification.results import Verdict, VerifiedModel
from model_catalog.upkeep.watcher import WatchReport, watch
from model_catalog.upkeep.worker_threads import Progress

__all__ = [
    "CheckFinding",
    "CheckReport",
    "CopyLocation",
    "DuplicateCopy",
    "DuplicateSet",
    "MovedModel",
    "Progress",
    "RegisteredPath",
    "Signature",
    "StoreFinding",
    "StoreSyncReport",
    "Verdict",
    "VerifiedModel",
    "WatchReport",
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

# Names of release 0.1.0 that have a clearer name now. They keep working.
Adopted = StoreSyncReport
Checked = CheckReport
Copy = DuplicateCopy
Duplicate = DuplicateSet
Finding = CheckFinding
Moved = MovedModel
Place = CopyLocation
Recorded = RegisteredPath
Sighting = StoreFinding
Verified = VerifiedModel
Watch = WatchReport
