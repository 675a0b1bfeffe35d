"""The bodies of requests and responses."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class NewModel(BaseModel):
    """A model file to record."""

    provider: str
    reference: str
    version: str = ""
    local_path: str
    size_bytes: int | None = None
    architecture: str | None = None


class ModelOut(BaseModel):
    """A recorded model. Its values are read from a `model_catalog.Model`."""

    model_config = ConfigDict(from_attributes=True)

    provider: str
    reference: str
    version: str
    local_path: str
    size_bytes: int | None
    architecture: str | None
    tags: list[str]
    pinned: bool
    downloaded_at: datetime | None


class ModelPageOut(BaseModel):
    """A page of models, and the token of the next page."""

    model_config = ConfigDict(from_attributes=True)

    models: list[ModelOut]
    next_token: str | None


class NewPlacement(BaseModel):
    """A model to place on a host. `model` is text such as `hf:org/name@version`."""

    model: str
    host: str


class PlacementOut(BaseModel):
    """A placement with its model."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    host: str
    model: ModelOut
