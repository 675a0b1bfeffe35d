"""Exceptions about the hosts of a fleet."""

from __future__ import annotations

from model_catalog.errors.base import CatalogError, command, shown


class HostNotFoundError(CatalogError, LookupError):
    """No host of this name is registered: `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no host {shown(name)} is registered: register it with "
            f"register_host({shown(name)}) ({command('hosts', 'register', name)})"
        )
        self.name = name


class HostHasModelsError(CatalogError):
    """A host was not removed, because models are recorded for it: `name` and `model_count`."""

    def __init__(self, name: str, model_count: int) -> None:
        models = f"{model_count:,} model{'s are' if model_count != 1 else ' is'}"
        super().__init__(
            f"the host {shown(name)} was not removed, because {models} recorded for it. To remove "
            f"only the host and keep its models, pass models='keep' (`--keep-models`). To delete "
            f"the records of its models too, pass models='delete' (`--delete-models`)"
        )
        self.name = name
        self.model_count = model_count
