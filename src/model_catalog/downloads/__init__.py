"""
Find a model, or download it once; hold models in use; plan what may be deleted.

Every function takes a catalog.

    from model_catalog.downloads import get_or_download, use_model
"""

from model_catalog.downloads.claim import Claim, PreparedDownload
from model_catalog.downloads.eviction.plan import (
    EvictedModel,
    EvictionPlan,
    EvictionResult,
    KeptModel,
    KeptReason,
    PlannedModel,
)
from model_catalog.downloads.eviction.planning import plan_deletion, plan_eviction
from model_catalog.downloads.hub.hub_download import download_from_hub
from model_catalog.downloads.single_flight import get_or_download
from model_catalog.downloads.states import Download, DownloadState, ModelUser, Scope
from model_catalog.downloads.tracker import list_downloads, wait_for_download
from model_catalog.downloads.uses import list_users, use_model

__all__ = [
    "Claim",
    "Download",
    "DownloadState",
    "EvictedModel",
    "EvictionPlan",
    "EvictionResult",
    "KeptModel",
    "KeptReason",
    "ModelUser",
    "PlannedModel",
    "PreparedDownload",
    "Scope",
    "download_from_hub",
    "get_or_download",
    "list_downloads",
    "list_users",
    "plan_deletion",
    "plan_eviction",
    "use_model",
    "wait_for_download",
]
