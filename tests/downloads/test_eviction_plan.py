"""An eviction plan: least recently used first, exact bytes, and a reason for each kept model."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import a_model
from managed_models import (
    DAY,
    NOT_USED,
    claim,
    disk_usage,
    manage,
    manage_files,
    manage_hub_cache,
    reasons,
    references,
    use,
)

from model_catalog import DeletionRefusedError, FileRecord, InvalidModelError
from model_catalog.domain.file_record import BEING_DELETED
from model_catalog.downloads import KeptReason, plan_deletion, plan_eviction

sys.path.append(str(Path(__file__).parents[1] / "stores"))
from layouts import C1, C2, HuggingFace

# Most of these are about files, and not about the database.
pytestmark = pytest.mark.slow_with("asyncpg")

KIB = 1024


async def test_the_least_recently_used_models_are_planned_until_the_target_is_reached(
    catalog, database, tmp_path
):
    """
    The plan frees at least the bytes that were asked for, in the order of the last uses.
    """
    await manage_files(
        catalog, database, tmp_path / "models", {"a": 8 * KIB, "b": 16 * KIB, "c": 4 * KIB}
    )
    database.run("UPDATE models SET last_used_at = NULL WHERE reference = 'c'")

    plan = await plan_eviction(catalog, free_bytes=12 * KIB)

    assert references(plan.models) == ["a", "c"]
    assert [model.freed_bytes for model in plan.models] == [8 * KIB, 4 * KIB]
    assert (plan.freed_bytes, plan.shortfall_bytes) == (12 * KIB, 0)
    assert reasons(plan.kept) == {"b": "not needed to reach the target"}
    assert plan.kept_counts == {KeptReason.NOT_NEEDED: 1}


async def test_a_target_that_cannot_be_reached_has_a_shortfall(catalog, database, tmp_path):
    """
    The plan has all models that may be deleted, and says how many bytes are missing.
    """
    await manage_files(catalog, database, tmp_path / "models", {"a": 8 * KIB, "b": 16 * KIB})

    plan = await plan_eviction(catalog, free_bytes=100 * KIB)

    assert references(plan.models) == ["a", "b"]
    assert plan.shortfall_bytes == 76 * KIB


async def test_models_unused_for_some_days_are_planned(catalog, database, tmp_path):
    """
    The age alone selects all older models; with a target it only restricts them.
    """
    await manage_files(catalog, database, tmp_path / "models", {"a": 8 * KIB, "b": 8 * KIB, "c": 1})
    yesterday = datetime.now(UTC) - timedelta(days=1)
    database.run(
        "UPDATE models SET last_used_at = ? WHERE reference = 'c'", int(yesterday.timestamp())
    )

    alone = await plan_eviction(catalog, keep_days=2)
    combined = await plan_eviction(catalog, keep_days=2, free_bytes=1)
    recent = await plan_eviction(catalog, keep_days=0.5)

    assert references(alone.models) == ["a", "b"]
    assert reasons(alone.kept) == {"c": "used recently"}
    assert references(combined.models) == ["a"]
    assert references(recent.models) == ["a", "b", "c"]


async def test_a_total_limits_the_bytes_of_all_managed_models(catalog, database, tmp_path):
    """
    Models are planned until the rest takes at most that many bytes; pinned ones count too.
    """
    await manage_files(
        catalog, database, tmp_path / "models", {"a": 8 * KIB, "b": 16 * KIB, "c": 4 * KIB}
    )
    await catalog.pin_model("a", "hf")

    plan = await plan_eviction(catalog, max_total_bytes=12 * KIB)
    enough = await plan_eviction(catalog, max_total_bytes=28 * KIB)

    assert references(plan.models) == ["b"]
    assert plan.shortfall_bytes == 0
    assert enough.models == ()


async def test_each_kept_model_has_its_reason(catalog, database, tmp_path):
    """
    A model is kept if another one may need it, or if its files may not be the catalog's own.
    """
    names = ("pinned", "used", "claimed", "store", "unknown", "unlisted", "missing", "touched")
    await manage_files(catalog, database, tmp_path / "models", dict.fromkeys(names, 4 * KIB))
    await catalog.pin_model("pinned", "hf")
    use(database, "used")
    claim(database, "claimed")
    database.run(
        "UPDATE models SET managed_root = NULL, store = 'ollama' WHERE reference = 'store'"
    )
    database.run("UPDATE models SET managed_root = NULL WHERE reference = 'unknown'")
    database.run("UPDATE models SET inventoried_at = NULL WHERE reference = 'unlisted'")
    database.run("UPDATE models SET state = 'missing' WHERE reference = 'missing'")
    os.utime(tmp_path / "models/touched.gguf", (1, 1))
    await catalog.register_model(a_model("other", provider="local", local_path="/x"))

    plan = await plan_eviction(catalog, keep_days=0, providers=["hf"])

    assert plan.models == ()
    assert reasons(plan.kept) == {
        "pinned": "pinned",
        "used": "in use",
        "claimed": "being downloaded",
        "store": "in the store of another program",
        "unknown": "not downloaded by the catalog",
        "unlisted": "its files were never recorded",
        "missing": "its files are not as recorded",
        "touched": "its files are not as recorded",
        "other": "of another provider",
    }
    assert "process 9 on box" in next(str(k) for k in plan.kept if k.ref.reference == "used")


async def test_expired_uses_and_claims_do_not_keep_a_model(catalog, database, tmp_path):
    """
    The process that took them was killed.
    """
    await manage_files(catalog, database, tmp_path / "models", {"a": 1, "b": 1})
    use(database, "a", lasts_ms=-500)
    claim(database, "b", lasts_ms=-500)

    plan = await plan_eviction(catalog, keep_days=0)

    assert references(plan.models) == ["a", "b"]


async def test_a_hard_link_counts_for_the_last_model_that_has_it(catalog, database, tmp_path):
    """
    Deleting one of two names frees nothing; deleting both frees the bytes once.
    """
    root = tmp_path / "models"
    await manage_files(catalog, database, root, {"a": 64 * KIB})
    os.link(root / "a.gguf", root / "b.gguf")
    for name, used_at in (("a", NOT_USED), ("b", NOT_USED + DAY)):
        await manage(catalog, database, root / f"{name}.gguf", name, root=root, used_at=used_at)

    both = await plan_eviction(catalog, keep_days=0)
    await catalog.pin_model("b", "hf")
    one = await plan_eviction(catalog, keep_days=0)
    useless = await plan_eviction(catalog, free_bytes=1)

    assert [model.freed_bytes for model in both.models] == [0, 64 * KIB]
    assert [model.freed_bytes for model in one.models] == [0]
    assert useless.models == ()
    assert useless.shortfall_bytes == 1


async def test_a_name_outside_of_the_catalog_frees_nothing(catalog, database, tmp_path):
    """
    Another name of the file, which no model has, keeps its bytes.
    """
    await manage_files(catalog, database, tmp_path / "models", {"a": 64 * KIB})
    os.link(tmp_path / "models/a.gguf", tmp_path / "elsewhere.gguf")
    await manage(catalog, database, tmp_path / "models/a.gguf", "a", root=tmp_path / "models")

    plan = await plan_eviction(catalog, keep_days=0)

    assert [model.freed_bytes for model in plan.models] == [0]


@pytest.mark.parametrize("has_list", [True, False], ids=["listed", "unlisted"])
async def test_a_path_of_two_models_is_kept_with_the_one_that_is_kept(
    catalog, database, tmp_path, has_list
):
    """
    Deleting the file would delete that of the other model.
    """
    path = tmp_path / "models/a.gguf"
    await manage_files(catalog, database, path.parent, {"a": 4 * KIB})
    if has_list:
        await manage(catalog, database, path, "kept", root=path.parent)
        await catalog.pin_model("kept", "hf")
    else:
        await catalog.register_model(a_model("kept", local_path=str(path)))

    plan = await plan_eviction(catalog, keep_days=0)

    assert plan.models == ()
    assert reasons(plan.kept)["a"] == "its files are also those of a model that is kept"


async def test_paths_that_lead_out_of_the_root_are_kept(catalog, database, tmp_path):
    """
    The folder of the files is a link, or is not below the recorded root.
    """
    outside = tmp_path / "outside"
    await manage_files(catalog, database, outside, {"a": 1})
    root = tmp_path / "models"
    root.mkdir()
    (root / "link").symlink_to(outside)
    await manage(catalog, database, root / "link/a.gguf", "linked", root=root)
    await manage(catalog, database, outside / "a.gguf", "a", root=root)

    plan = await plan_eviction(catalog, keep_days=0)

    assert set(reasons(plan.kept).values()) == {"its files are outside of its folder"}
    assert len(plan.kept) == 2


async def test_a_plan_may_be_restricted_to_the_disk_of_a_path(catalog, database, tmp_path, disk):
    """
    Deleting models on another disk makes no room on this one.
    """
    await manage_files(catalog, database, tmp_path / "models", {"here": 4 * KIB})
    await manage_files(catalog, database, disk / "models", {"there": 4 * KIB})

    plan = await plan_eviction(catalog, free_bytes=1, disk_of=disk)

    assert references(plan.models) == ["there"]
    assert reasons(plan.kept) == {"here": "on another disk"}


async def test_revisions_of_a_hub_cache_count_shared_blobs_once(catalog, database, tmp_path):
    """
    A blob of two revisions is freed by the deletion of the second one.
    """
    cache = HuggingFace(tmp_path / "hub")
    shared, other = os.urandom(32 * KIB), os.urandom(8 * KIB)
    cache.revision("org/m", C1, {"model.safetensors": shared}, refs=("v1",))
    cache.revision("org/m", C2, {"model.safetensors": shared, "config.json": other})
    await manage_hub_cache(catalog, database, cache.root)
    before = disk_usage(cache.root)

    plan = await plan_eviction(catalog, keep_days=0)

    first, second = plan.models
    assert first.freed_bytes < 32 * KIB <= second.freed_bytes
    assert plan.freed_bytes == before


async def test_a_criterion_is_required(catalog):
    """
    Without one every model would be planned.
    """
    with pytest.raises(InvalidModelError, match="give free_bytes"):
        await plan_eviction(catalog)
    with pytest.raises(InvalidModelError, match="free_bytes"):
        await plan_eviction(catalog, free_bytes=-1)
    with pytest.raises(InvalidModelError, match="keep_days"):
        await plan_eviction(catalog, keep_days=-1)


async def test_an_unfinished_deletion_is_planned_first(catalog, database, tmp_path):
    """
    A killed process has left its row; another process that deletes it now is left alone.
    """
    await manage_files(catalog, database, tmp_path / "models", {"a": 1, "b": 1, "c": 1})
    database.run(
        "UPDATE models SET state = 'missing', state_detail = ? WHERE reference IN ('b', 'c')",
        BEING_DELETED,
    )
    (tmp_path / "models/b.gguf").unlink()
    claim(database, "c", "evict")

    plan = await plan_eviction(catalog, free_bytes=0)

    assert references(plan.models) == ["b"]
    assert plan.models[0].is_unfinished
    assert reasons(plan.kept)["c"] == "being deleted by another process"


async def test_models_that_the_user_names_may_be_of_unknown_ownership(catalog, database, tmp_path):
    """
    Without a list of files the path must be a file of the recorded size.
    """
    path = tmp_path / "own.gguf"
    path.write_bytes(b"x" * 5000)
    await catalog.register_model(a_model("own", local_path=str(path), size_bytes=5000))

    plan = await plan_deletion(catalog, ["hf:own", "hf:own@"])
    await catalog.update_model("own", "hf", size_bytes=4000)
    with pytest.raises(DeletionRefusedError, match="not as recorded"):
        await plan_deletion(catalog, ["hf:own"])

    assert references(plan.models) == ["own"]
    assert plan.freed_bytes == 8 * KIB


async def test_a_named_model_whose_path_another_model_has_is_refused(catalog, tmp_path):
    """
    The other model would lose its file. Both can be deleted at once.
    """
    path = tmp_path / "own.gguf"
    path.write_bytes(b"x" * 5000)
    for name in ("own", "other"):
        await catalog.register_model(a_model(name, local_path=str(path), size_bytes=5000))

    with pytest.raises(DeletionRefusedError, match="also those of a model that is kept"):
        await plan_deletion(catalog, ["hf:own"])
    plan = await plan_deletion(catalog, ["hf:own", "hf:other"])

    assert plan.freed_bytes == 8 * KIB


@pytest.mark.parametrize("state", ["pinned", "used", "claimed", "store", "changed"])
async def test_a_named_model_is_refused_by_name(catalog, database, tmp_path, state):
    """
    The error says why, before anything is deleted.
    """
    await manage_files(catalog, database, tmp_path / "models", {"m": 1})
    if state == "pinned":
        await catalog.pin_model("m", "hf")
    elif state == "used":
        use(database, "m")
    elif state == "claimed":
        claim(database, "m")
    elif state == "store":
        database.run("UPDATE models SET managed_root = NULL, store = 'ollama'")
    else:
        (tmp_path / "models/m.gguf").write_bytes(b"other")

    with pytest.raises(DeletionRefusedError, match=r"hf:m@.*Nothing was deleted"):
        await plan_deletion(catalog, ["hf:m"])


@pytest.mark.slow_with("asyncpg")
async def test_planned_bytes_are_those_of_du(catalog, database, tmp_path):
    """
    The plan of all models frees what `du` counts, without the folders.
    """
    root = tmp_path / "models"
    await manage_files(catalog, database, root, {"a": 123_456, "b": 1, "sparse": 0})
    with (root / "sparse.gguf").open("wb") as file:
        file.truncate(1 << 20)
    await manage(catalog, database, root / "sparse.gguf", "sparse", root=root)
    printed = subprocess.run(
        ["du", "-B1", "-s", root], check=True, capture_output=True, text=True
    ).stdout

    plan = await plan_eviction(catalog, keep_days=0)

    folder_bytes = root.stat().st_blocks * 512
    assert plan.freed_bytes == int(printed.split()[0]) - folder_bytes


async def test_a_file_without_a_fingerprint_is_kept(catalog, database, tmp_path):
    """
    Nothing shows that it is still the recorded file.
    """
    path = tmp_path / "models/m.gguf"
    await manage_files(catalog, database, path.parent, {"m": 5})
    await catalog.register_model(
        a_model("m", local_path=str(path)), files=[FileRecord("m.gguf", 5)]
    )

    plan = await plan_eviction(catalog, keep_days=0)

    assert reasons(plan.kept) == {"m": "its files were never recorded"}
