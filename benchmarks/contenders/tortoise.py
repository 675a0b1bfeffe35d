"""Tortoise ORM: one connection for all tasks, behind its own lock."""

from __future__ import annotations

from typing import Any

from tortoise import Model as Base
from tortoise import Tortoise, fields
from tortoise.functions import Sum

from benchmarks.harness.models_table import (
    BUSY_TIMEOUT_S,
    COLUMNS,
    DEFAULTS,
    KEY,
    UNIQUE,
    UPDATED,
    Registration,
    pragmas,
)


class Meta:
    table = "models"


Model: Any = type(
    "Model",
    (Base,),
    {
        "__module__": __name__,
        "Meta": Meta,
        **{
            name: (fields.BigIntField if kind is int else fields.TextField)(
                null=name not in DEFAULTS, default=DEFAULTS.get(name)
            )
            for name, kind in COLUMNS.items()
        },
        "id": fields.BigIntField(primary_key=True),
    },
)


class TortoiseOrm:
    """A registration is an upsert: `update_or_create` would take two calls, a read and a write."""

    async def open(self, target: str, durability: str) -> None:
        options = {**pragmas(durability), "busy_timeout": BUSY_TIMEOUT_S * 1000}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        await Tortoise.init(db_url=f"sqlite://{target}?{query}", modules={"models": [__name__]})

    async def close(self) -> None:
        await Tortoise.close_connections()

    async def find(self, reference: str, provider: str) -> Any:
        return await Model.get_or_none(host="", provider=provider, reference=reference, version="")

    async def register(self, entry: Registration) -> None:
        await self.register_many([entry])

    async def register_many(self, entries: list[Registration]) -> None:
        await Model.bulk_create(
            [Model(**entry._asdict()) for entry in entries],
            on_conflict=list(UNIQUE),
            update_fields=list(UPDATED),
        )

    async def list(self) -> Any:
        return await Model.all().order_by("-downloaded_at", *KEY)

    async def page(self, architecture: str, limit: int) -> Any:
        listed = Model.filter(architecture=architecture).order_by("-size_bytes", *KEY)
        return await listed.limit(limit)

    async def total(self) -> int:
        found = await Model.annotate(total=Sum("size_bytes")).values_list("total", flat=True)
        return int(found[0] or 0)

    async def remove(self, reference: str, provider: str) -> bool:
        return bool(await Model.filter(host="", provider=provider, reference=reference).delete())
