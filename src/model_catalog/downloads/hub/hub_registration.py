"""Register a downloaded snapshot in place, as a scan of the cache does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from model_catalog.downloads.hub.hub_files import PROVIDER, HubRequest
from model_catalog.downloads.hub.hub_snapshot import HubListing
from model_catalog.downloads.queries.managed_root_queries import ManagedRoot, set_managed_root
from model_catalog.errors import HubDownloadError
from model_catalog.execution.executor import write
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.stores.scan_result import Scan
from model_catalog.upkeep import scan_store
from model_catalog.upkeep.store_sync.adoption import plan_adoption, save_adoption
from model_catalog.upkeep.store_sync.scan_changes import ScanChanges

STORE: Final = "huggingface"


@dataclass(frozen=True, slots=True)
class PreparedSnapshot:
    """The models of a snapshot, compared with the catalog: see `PreparedDownload`."""

    request: HubRequest
    listing: HubListing
    scan: Scan
    changes: ScanChanges
    is_managed: bool

    async def register(self, catalog: ModelCatalog) -> Model:
        """Write the changes in the transaction of a catalog, and return the model asked for."""
        await save_adoption(catalog, self.scan, self.changes)
        if self.is_managed:
            root = ManagedRoot(
                self.listing.repository,
                STORE,
                self.scan.root,
                (PROVIDER, self.request.ref.reference, self.listing.commit),
            )
            await executor_of(catalog).run(write(set_managed_root, root))
        found = await self._find(catalog)
        if found is None:
            reason = "; ".join(each.reason for each in self.changes.problems) or "it has no model"
            way_out = f"Scan its folder: {self.listing.repository}"
            raise HubDownloadError(str(self.request.ref), reason, way_out)
        return found

    async def _find(self, catalog: ModelCatalog) -> Model | None:
        """Return the model that was asked for: the one of the name, if it is in the snapshot."""
        if not self.request.include:
            named = await catalog.find_model(self.request.ref)
            folder = f"{self.listing.snapshot}/"
            if named is not None and f"{named.local_path}/".startswith(folder):
                return named
        return await self.request.choose(catalog, self.listing.commit)


async def prepare_snapshot(
    catalog: ModelCatalog, request: HubRequest, listing: HubListing, *, managed: bool
) -> PreparedSnapshot:
    """Scan the folder of a commit, read the headers of its models, and compare them."""
    scope = listing.snapshot.removeprefix(f"{listing.cache.rstrip('/')}/")
    scan = await scan_store(catalog, STORE, listing.repository, scope=scope)
    changes = await plan_adoption(catalog, scan)
    return PreparedSnapshot(request, listing, scan, changes, managed)


async def list_models_of(catalog: ModelCatalog, request: HubRequest) -> list[Model]:
    """Return all recorded models of a repository."""
    return await catalog.list_models(provider=PROVIDER, reference=request.ref.reference)


def is_managed(models: Iterable[Model], listing: HubListing) -> bool | None:
    """
    Return whether the catalog manages the models of a snapshot; None if none is recorded.

    A scan may have recorded what an interrupted download or an eviction has left. Such an
    incomplete model does not count: the disk tells who began the snapshot.
    """
    folder = f"{listing.snapshot}/"
    roots = {
        model.managed_root
        for model in models
        if f"{model.local_path}/".startswith(folder)
        and (model.managed_root is not None or model.incomplete_reason is None)
    }
    return roots == {listing.repository} if roots else None
