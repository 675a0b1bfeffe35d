"""Translate the errors of huggingface_hub, which may contain secrets, into one of the catalog."""

from __future__ import annotations

import os
import re
from typing import Final

from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import HubDownloadError
from model_catalog.errors.base import shown

_USER_INFO: Final = re.compile(r"(?<=://)[^\s/@]+@")
_QUERY: Final = re.compile(r"(?<=\w)\?[^\s'\"<>)]+")
_TOKEN: Final = re.compile(r"\bhf_\w{8,}|(?i:bearer)\s+\S+")
_MAX_REASON: Final = 300
_MAX_CAUSES: Final = 10

_SIGN_IN: Final = (
    "If it is private, set HF_TOKEN to a token that may read it, or sign in with `hf auth login`"
)
_WRITABLE: Final = "Make its folder writable, or set HF_HOME to a folder that is"
_RETRY: Final = "Try again; files that are whole are not downloaded again"

# By the name of the class, the most specific first: huggingface_hub need not be imported for it.
_REASONS: Final = {
    "GatedRepoError": (
        "the repository is gated, and this user has no access",
        "Accept its conditions on its page on the hub, and set HF_TOKEN to a token of that account",
    ),
    "DisabledRepoError": ("the hub has disabled the repository", "Use another repository"),
    "RepositoryNotFoundError": (
        "the hub has no such repository, or it is private",
        f"Check the name. {_SIGN_IN}",
    ),
    "RevisionNotFoundError": (
        "the repository has no such branch, tag or commit",
        "Check the part after the last '@'",
    ),
    "OfflineModeIsEnabled": (
        "huggingface_hub is offline (HF_HUB_OFFLINE), and its cache does not have all files",
        "Set HF_HUB_OFFLINE=0",
    ),
    "HFValidationError": ("its name is not one of a repository", "Write hf:organisation/name"),
}
_NO_ACCESS: Final = (401, 403)
_INVALID_URL: Final = ("UnsupportedProtocol", "InvalidURL")
_UNREACHABLE: Final = ("ConnectError", "TimeoutException", "NetworkError", "ProxyError")


def translate_error(error: BaseException, ref: ModelRef) -> HubDownloadError:
    """Return the error to raise for one of huggingface_hub. Tokens and signatures are masked."""
    causes = _causes(error)
    for cause in causes:
        names = [kind.__name__ for kind in type(cause).__mro__]
        for name, (reason, way_out) in _REASONS.items():
            if name in names:
                return HubDownloadError(str(ref), reason, way_out)
        if any(name in names for name in _UNREACHABLE):
            reason = f"the hub cannot be reached ({type(cause).__name__})"
            way_out = "Check the network, the proxy, and HF_ENDPOINT if it is set"
            return HubDownloadError(str(ref), reason, f"{way_out}. {_RETRY}")
        if any(name in names for name in _INVALID_URL):
            reason = "the URL of the hub is not valid"
            way_out = "Set HF_ENDPOINT to one that begins with http:// or https://, or unset it"
            return HubDownloadError(str(ref), reason, way_out)
        if isinstance(cause, OSError) and cause.filename is not None:
            # The error of a hub has no file name, although it may be an OSError.
            reason = f"{shown(os.fsdecode(cause.filename))}: {cause.strerror}"
            return HubDownloadError(str(ref), reason, _WRITABLE)
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            way_out = _SIGN_IN if status in _NO_ACCESS else _RETRY
            return HubDownloadError(str(ref), f"the hub answered with the status {status}", way_out)
    lines = str(error).strip().splitlines() or [""]
    text = mask_secrets(lines[0])[:_MAX_REASON]
    return HubDownloadError(str(ref), f"{type(error).__name__}: {text}", _RETRY)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and len(causes) < _MAX_CAUSES:
        causes.append(cause)
    return causes


def mask_secrets(text: str) -> str:
    """Replace passwords and queries of URLs, and tokens, by `***`."""
    text = _USER_INFO.sub("***@", text)
    return _TOKEN.sub("***", _QUERY.sub("?***", text))
