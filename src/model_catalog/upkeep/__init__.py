"""
The catalog and the disk: whatever looks at files, hashes them or waits for them takes a catalog.

    from model_catalog.upkeep import check_models, register_path, verify_models
"""

from model_catalog.upkeep.checking import Checked, Finding, check_models
from model_catalog.upkeep.inspection import Recorded
from model_catalog.upkeep.moving import Moved, find_moved, relink_model
from model_catalog.upkeep.registration import accept_model, register_path
from model_catalog.upkeep.signing import Signature, verify_signature
from model_catalog.upkeep.threads import Progress
from model_catalog.upkeep.verification import Verdict, Verified, verify_models
from model_catalog.upkeep.watching import Watch, watch

__all__ = [
    "Checked",
    "Finding",
    "Moved",
    "Progress",
    "Recorded",
    "Signature",
    "Verdict",
    "Verified",
    "Watch",
    "accept_model",
    "check_models",
    "find_moved",
    "register_path",
    "relink_model",
    "verify_models",
    "verify_signature",
    "watch",
]
