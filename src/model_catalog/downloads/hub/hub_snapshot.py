"""Run huggingface_hub in a thread: list the files of a revision, and download them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from model_catalog.downloads.hub.hub_errors import translate_error
from model_catalog.downloads.hub.hub_files import HubRequest
from model_catalog.downloads.hub.hub_progress import HubProgress
from model_catalog.downloads.hub.partial_files import delete_partial_files
from model_catalog.downloads.hub.snapshot_mark import covers_snapshot, mark_path
from model_catalog.errors import CatalogError, HubDownloadError, NotInstalledError
from model_catalog.errors.base import shown

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_LIBRARY: Final = "model-catalog"


@dataclass(frozen=True, slots=True)
class HubListing:
    """The files of a revision that a request names, and where they go."""

    cache: str
    repository: str
    """The folder of the repository in the cache."""
    revision: str
    """The revision, which huggingface_hub does not resolve again: a `ResolvedRevision`."""
    commit: str
    total_bytes: int
    needed_bytes: int
    """The bytes of the files that are not in the cache."""
    needed_blobs: frozenset[str] = frozenset()
    """The names that those files get in the cache."""

    @property
    def snapshot(self) -> str:
        """The folder of the commit."""
        return os.path.join(self.repository, "snapshots", self.commit)

    @property
    def _mark(self) -> str:
        return mark_path(self.repository, self.commit)

    def mark_if_new(self) -> bool:
        """
        Return whether this download, or an earlier one that did not end, began the snapshot.

        That is recorded by an empty file in the folder of the repository until the model is
        registered: otherwise the model of a download that was killed and run again could be one
        that another program has downloaded. The partial files of such an earlier download are
        deleted. An eviction leaves such a file too, if names stay in the snapshot: see
        `snapshot_mark`. Raises OSError.
        """
        if os.path.islink(self.repository):
            return False
        if os.path.lexists(self._mark):
            if not covers_snapshot(self.repository, self.commit, self.snapshot):
                return False
            delete_partial_files(self.cache, self.repository, self.needed_blobs)
            return True
        if os.path.lexists(self.snapshot):
            return False
        os.makedirs(self.repository, exist_ok=True)
        os.close(os.open(self._mark, os.O_WRONLY | os.O_CREAT, stat.S_IRUSR | stat.S_IWUSR))
        return True

    def unmark(self) -> None:
        """Delete the file of `mark_if_new`. Raises no error if that is not possible."""
        try:
            os.unlink(self._mark)
        except OSError:
            # The snapshot is then still known as one that the catalog began, which is true.
            return


def list_request(request: HubRequest, cache_dir: str | None) -> HubListing:
    """
    Ask the hub for the commit of a revision and its files. Runs in a thread.

    The name of a branch or a tag is stored in the cache, as each download of huggingface_hub does.

    Raises HubDownloadError, and NotInstalledError.
    """
    try:
        # An extra, and its import takes half a second.
        from huggingface_hub import HfApi, constants  # noqa: PLC0415
        from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415
    except ImportError as error:
        raise NotInstalledError("huggingface_hub", "hub") from error
    cache = os.path.realpath(os.path.expanduser(cache_dir or constants.HF_HUB_CACHE))
    name = request.ref.reference
    api = HfApi(library_name=_LIBRARY)
    try:
        revision = api.resolve_revision(name, revision=request.revision, cache_dir=cache)
        commit = revision.resolved
        entries = list(api.list_repo_tree(name, revision=commit, recursive=True))
    except Exception as error:  # noqa: BLE001 - its errors have no common base class
        cached = _find_cached(request, cache)
        if cached is not None:
            return cached
        # Not the error itself: it refers to the request, whose headers contain the token.
        raise translate_error(error, request.ref) from None
    wanted = [each for each in entries if isinstance(each, RepoFile) and request.names(each.path)]
    if not wanted:
        raise _no_file_error(request)
    repository = os.path.join(cache, f"models--{name.replace('/', '--')}")
    listing = HubListing(cache, repository, revision, commit, sum(map(_size, wanted)), 0)
    needed = {_blob(file): _size(file) for file in wanted if not _is_cached(listing, file)}
    return replace(listing, needed_bytes=sum(needed.values()), needed_blobs=frozenset(needed))


def _find_cached(request: HubRequest, cache: str) -> HubListing | None:
    """Return the files that the cache already has, for a hub that cannot be asked."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download  # noqa: PLC0415

    try:
        path = snapshot_download(
            request.ref.reference,
            revision=request.revision,
            cache_dir=cache,
            allow_patterns=list(request.include) or None,
            ignore_patterns=list(request.exclude) or None,
            local_files_only=True,
        )
        # Without the tree of the revision huggingface_hub cannot tell whether files are missing.
        get_cached_repo_tree(
            request.ref.reference, revision=os.path.basename(path), cache_dir=cache
        )
    except Exception:  # noqa: BLE001 - the error of the hub is raised in its place
        return None
    repository = os.path.dirname(os.path.dirname(path))
    commit = os.path.basename(path)
    return HubListing(cache, repository, commit, commit, 0, 0)


def download_snapshot(
    request: HubRequest, listing: HubListing, progress: HubProgress, *, may_begin: bool
) -> bool:
    """
    Download the files of a request into the cache. Runs in a thread.

    Files that are in the cache are not downloaded. With `may_begin` the result is that of
    `mark_if_new`, and otherwise False. Raises HubDownloadError, and StoppedError of the progress
    bars.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - see list_request

    try:
        began = may_begin and listing.mark_if_new()
        snapshot_download(
            request.ref.reference,
            revision=listing.revision,
            cache_dir=listing.cache,
            allow_patterns=list(request.include) or None,
            ignore_patterns=list(request.exclude) or None,
            library_name=_LIBRARY,
            tqdm_class=progress.bar_class(),
        )
    except CatalogError:
        raise
    except Exception as error:  # noqa: BLE001 - see list_request
        raise translate_error(error, request.ref) from None
    return began


def _no_file_error(request: HubRequest) -> HubDownloadError:
    reason = f"no file of the repository matches the patterns ({_shown_patterns(request)})"
    if not request.include and not request.exclude:
        reason = "the repository has no files"
    return HubDownloadError(str(request.ref), reason, "See the list of its files on the hub")


def _shown_patterns(request: HubRequest) -> str:
    options = (("include", request.include), ("exclude", request.exclude))
    return ", ".join(f"{option} {shown(each)}" for option, named in options for each in named)


def _size(file: RepoFile) -> int:
    return file.size if file.lfs is None else file.lfs.size


def _blob(file: RepoFile) -> str:
    """Return the name of the blob of a file in the cache."""
    return file.blob_id if file.lfs is None else file.lfs.sha256


def _is_cached(listing: HubListing, file: RepoFile) -> bool:
    blob = os.path.join(listing.repository, "blobs", _blob(file))
    return os.path.exists(blob) or os.path.exists(os.path.join(listing.snapshot, file.path))
