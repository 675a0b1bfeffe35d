"""SQLAlchemy and Alembic as programs often use them: every start upgrades to head."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config

from benchmarks.contenders.sqlalchemy import Orm

_SCRIPTS: Final = Path(__file__).parent / "alembic_scripts"


class OrmAndAlembic(Orm):
    """`command.upgrade` is synchronous, so it runs in a thread."""

    async def open(self, target: str, durability: str) -> None:
        config = Config()
        config.set_main_option("script_location", str(_SCRIPTS))
        config.set_main_option("sqlalchemy.url", f"sqlite:///{target}")
        config.set_main_option("version_table", "model_catalog_version")
        await asyncio.to_thread(command.upgrade, config, "head")
        await super().open(target, durability)
