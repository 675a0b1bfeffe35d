"""Put model files under the management of a catalog, for tests of evictions."""

import os
from datetime import UTC, datetime
from pathlib import Path

from model_catalog.domain.model_ref import ModelRef
from model_catalog.upkeep import adopt, register_path, scan_store

DAY = 86400
NOT_USED = 1_600_000_000
"""The time of the first use that a test records."""


async def manage(catalog, database, path, reference, *, root, version="", used_at=None):
    """Register a path as a model that the catalog has downloaded, and return the model."""
    await register_path(catalog, path, reference, "hf", version)
    database.run(
        "UPDATE models SET managed_root = ?, last_used_at = ?, downloaded_at = ?"
        " WHERE reference = ? AND version = ?",
        *(str(root), used_at, NOT_USED, reference, version),
    )
    return await catalog.get_model(ModelRef("hf", reference, version))


async def manage_files(catalog, database, folder, sizes):
    """Write a file for each name, and manage it; the first name is the least recently used."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, size_bytes) in enumerate(sizes.items()):
        path = folder / f"{name}.gguf"
        path.write_bytes(os.urandom(size_bytes))
        await manage(catalog, database, path, name, root=folder, used_at=NOT_USED + number * DAY)


async def manage_hub_cache(catalog, database, root):
    """Adopt the models of a Hugging Face cache, and manage them."""
    await adopt(catalog, await scan_store(catalog, "huggingface", root), headers=False)
    database.run("UPDATE models SET managed_root = ?, downloaded_at = id", str(root))


def disk_usage(folder: Path) -> int:
    """Return the bytes of the files and links below a folder, as `du` counts them."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    statuses = {path.lstat().st_ino: path.lstat() for path in paths}
    return sum(status.st_blocks * 512 for status in statuses.values())


def references(models):
    """Return the references of models, in order."""
    return [model.ref.reference for model in models]


def reasons(kept):
    """Return why each model is kept, by its reference."""
    return {model.ref.reference: str(model.reason) for model in kept}


def paths_below(folder: Path) -> set[str]:
    """Return the paths below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def claim(database, reference, purpose="download", *, lasts_ms=60_000):
    """Insert a claim of another process, under another version."""
    now = int(datetime.now(UTC).timestamp() * 1000)
    database.run(
        "INSERT INTO model_claims (provider, reference, version, purpose, token, holder_host,"
        " holder_process_id, renewed_at_ms, expires_at_ms)"
        " VALUES ('hf', ?, 'other', ?, ?, 'box', 7, ?, ?)",
        *(reference, purpose, f"token of {reference}", now - 1000, now + lasts_ms),
    )


def use(database, reference, *, lasts_ms=60_000):
    """Insert a use of another process."""
    now = int(datetime.now(UTC).timestamp() * 1000)
    database.run(
        "INSERT INTO model_uses (token, model_id, holder_host, holder_process_id, started_at_ms,"
        " renewed_at_ms, expires_at_ms) SELECT ?, id, 'box', 9, ?, ?, ? FROM models"
        " WHERE reference = ?",
        *(f"use of {reference}", now - 1000, now - 1000, now + lasts_ms, reference),
    )
