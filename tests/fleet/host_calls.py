"""
Every public call of a catalog and of its packages, as steps of a random sequence.

A step takes a catalog, a random generator and the folder with the model files, and returns a value
that can be compared: without ids, times and facts of one file on one disk.
"""

import asyncio
import dataclasses
import io
import json
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from model_catalog import CatalogError, FileRecord, Model, ModelCatalog, ModelRef, Sort
from model_catalog.domain.ndjson import HEADER
from model_catalog.downloads import (
    get_or_download,
    list_downloads,
    list_users,
    plan_deletion,
    plan_eviction,
    use_model,
    wait_for_download,
)
from model_catalog.upkeep import (
    accept_model,
    adopt,
    check_models,
    find_duplicates,
    find_moved,
    register_path,
    relink_model,
    scan_store,
    verify_models,
    verify_signature,
    watch,
)

Step = Callable[[ModelCatalog, random.Random, Path], Awaitable[Any]]

NAMES = ("m0", "m1", "m2", "m3", "org/m4")
VERSIONS = ("", "v1", "v2")
TAGS = ("chat", "Code", "tiny")
ALIASES = ("stable", "latest")
_LEFT_OUT = {"id", "host", "fingerprint", "file_id", "process_id", "record", "path_id"}


def comparable(value: Any) -> Any:  # noqa: PLR0911 - one for each kind of value
    """Return a value without ids, times and hosts, made of lists, dicts and texts."""
    if isinstance(value, Model):
        return comparable(value.to_dict()) | {"tags": value.tags}
    if isinstance(value, datetime | timedelta):
        return "a time"
    if value is None or isinstance(value, Enum | int | str | float):
        return value
    if hasattr(value, "_asdict"):
        return comparable(value._asdict())
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return comparable({field.name: getattr(value, field.name) for field in fields})
    if isinstance(value, Mapping):
        return {
            str(comparable(name)): comparable(each)
            for name, each in value.items()
            if name not in _LEFT_OUT and not str(name).endswith(("_at", "_since", "_ns"))
        }
    if isinstance(value, set | frozenset):
        return sorted(map(repr, map(comparable, value)))
    return [comparable(each) for each in value] if isinstance(value, Iterable) else str(value)


def weights(name: str) -> bytes:
    """Return the bytes of the file of a model; those of `m2` and `m3` are equal."""
    seed = {"m3": "m2"}.get(name, name)
    header = json.dumps({seed: {"dtype": "U8", "shape": [4096], "data_offsets": [0, 4096]}})
    return len(header).to_bytes(8, "little") + header.encode() + bytes(4096)


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '--')}.safetensors"


def write_files(folder: Path) -> None:
    """Write a file for each name, and a folder of another program with one model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        path_of(folder, name).write_bytes(weights(name))
    store = folder / "store"
    store.mkdir(exist_ok=True)
    (store / "found.safetensors").write_bytes(weights("found"))


def a_key(rng: random.Random) -> ModelRef:
    return ModelRef("hf", rng.choice(NAMES), rng.choice((*VERSIONS, None, *ALIASES)))


def new_model(rng: random.Random, folder: Path) -> Model:
    name = rng.choice(NAMES)
    return Model(
        reference=name,
        provider="hf",
        version=rng.choice(VERSIONS),
        local_path=str(path_of(folder, name)),
        size_bytes=path_of(folder, name).stat().st_size if path_of(folder, name).exists() else 7,
        license=rng.choice((None, "mit", "apache-2.0")),
        downloaded_at=datetime.fromtimestamp(1_700_000_000 + rng.randrange(1000)).astimezone(),
    )


def some_filters(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        (
            {},
            {"provider": "hf"},
            {"provider": "hf", "reference": rng.choice(NAMES)},
            {"reference": rng.choice(NAMES)},
            {"tags": [rng.choice(TAGS)]},
            {"search": rng.choice(("m", "4", "chat"))},
            {"pinned": True},
            {"license": "mit"},
            {"never_used": True},
        )
    )


def some_order(rng: random.Random) -> dict[str, Any]:
    return {"sort": rng.choice(list(Sort)), "descending": rng.choice((None, True, False))}


async def register_model(catalog, rng, folder):
    files = None
    model = new_model(rng, folder)
    if rng.random() < 0.5:
        name = Path(model.local_path).name
        files = [FileRecord(name, model.size_bytes, digest=f"sha256:{len(name):064x}")]
    return await catalog.register_model(model, files)


async def register_models(catalog, rng, folder):
    return await catalog.register_models([new_model(rng, folder) for _ in range(3)])


async def register_together(catalog, rng, folder):
    """On PostgreSQL these calls share a batch, and its statements have arrays."""
    models = {model.ref: model for model in (new_model(rng, folder) for _ in range(6))}
    return await asyncio.gather(*map(catalog.register_model, models.values()))


async def find_together(catalog, rng, _):
    return await asyncio.gather(*(catalog.find_model(a_key(rng)) for _ in range(6)))


async def update_model(catalog, rng, _):
    return await catalog.update_model(a_key(rng), license="bsd", description="Ä text")


async def remove_model(catalog, rng, _):
    return await catalog.remove_model(a_key(rng))


async def rename_model(catalog, rng, _):
    new = {"new_reference": rng.choice(NAMES)} if rng.random() < 0.5 else {}
    return await catalog.rename_model(a_key(rng), new_version=rng.choice(VERSIONS), **new)


async def relocate(catalog, rng, folder):
    elsewhere = f"{folder}-elsewhere"
    pair = (str(folder), elsewhere) if rng.random() < 0.5 else (elsewhere, str(folder))
    return await catalog.relocate(*pair, dry_run=rng.random() < 0.3)


async def find_model(catalog, rng, _):
    return await catalog.find_model(a_key(rng), present=rng.random() < 0.3)


async def get_model(catalog, rng, _):
    return await catalog.get_model(a_key(rng))


async def find_model_by_id(catalog, rng, _):
    models = await catalog.list_models(provider="hf")
    return await catalog.find_model_by_id(rng.choice(models).id) if models else None


async def get_model_by_id(catalog, rng, _):
    models = await catalog.list_models(provider="hf")
    return await catalog.get_model_by_id(models[-1].id) if models else None


async def list_files(catalog, rng, _):
    return await catalog.list_files(a_key(rng))


async def list_models(catalog, rng, _):
    first = await catalog.list_models(limit=2, **some_order(rng), **some_filters(rng))
    return first, await catalog.list_models(**some_order(rng))


async def list_page(catalog, rng, _):
    order, token, pages = some_order(rng), None, []
    while True:
        page = await catalog.list_page(limit=2, page_token=token, **order)
        pages.append(page.models)
        token = page.next_token
        if token is None:
            return pages


async def list_rows(catalog, rng, _):
    order = some_order(rng)
    first = await catalog.list_rows(limit=2, **order)
    after = await catalog.list_rows(limit=2, after=first[-1], **order) if first else []
    return first, after


async def iter_models(catalog, rng, _):
    return [model async for model in catalog.iter_models(**some_order(rng), **some_filters(rng))]


async def iter_rows(catalog, rng, _):
    return [row async for row in catalog.iter_rows(**some_order(rng))]


async def count_models(catalog, rng, _):
    return await catalog.count_models(**some_filters(rng))


async def get_total_size(catalog, rng, _):
    return await catalog.get_total_size(**some_filters(rng))


async def get_disk_usage(catalog, rng, _):
    return await catalog.get_disk_usage(**some_filters(rng))


async def stats(catalog, rng, _):
    return await catalog.stats(**some_filters(rng))


async def tag_model(catalog, rng, _):
    return await catalog.tag_model(a_key(rng), tags=[rng.choice(TAGS), rng.choice(TAGS)])


async def untag_model(catalog, rng, _):
    return await catalog.untag_model(a_key(rng), tags=[rng.choice(TAGS)])


async def list_tags(catalog, rng, _):
    return await catalog.list_tags(**some_filters(rng))


async def pin_model(catalog, rng, _):
    return await catalog.pin_model(a_key(rng), reason="mine")


async def unpin_model(catalog, rng, _):
    return await catalog.unpin_model(a_key(rng))


async def set_alias(catalog, rng, _):
    return await catalog.set_alias(a_key(rng), alias=rng.choice(ALIASES))


async def remove_alias(catalog, rng, _):
    name = ModelRef("hf", rng.choice(NAMES))
    return await catalog.remove_alias(name, alias=rng.choice(ALIASES))


async def list_aliases(catalog, rng, _):
    of_one = await catalog.list_aliases(ModelRef("hf", rng.choice(NAMES)))
    return of_one, await catalog.list_aliases()


async def record_use(catalog, rng, _):
    return await catalog.record_use(a_key(rng), count=rng.randrange(1, 4))


async def export_catalog(catalog, _rng, _folder):
    stream = io.StringIO()
    count = await catalog.export_catalog(stream)
    models = [comparable(json.loads(line)) for line in stream.getvalue().splitlines()[1:]]
    for model in models:
        # The times at which files were hashed.
        model["files"] = [each["path"] for each in model.get("files", ())]
    return count, models


async def import_catalog(catalog, rng, folder):
    lines = [
        {
            "reference": rng.choice(NAMES),
            "provider": "hf",
            "version": version,
            "local_path": str(folder / "imported"),
            "tags": [rng.choice(TAGS)],
            "aliases": [rng.choice(ALIASES)],
        }
        for version in ("v1", "v3")
    ]
    stream = io.StringIO(HEADER + "\n".join(map(json.dumps, lines)))
    return await catalog.import_catalog(stream, rng.choice(("keep", "replace", "newer")))


async def transaction(catalog, rng, folder):
    async with catalog.transaction() as inner:
        async with inner.transaction() as nested:
            found = await find_together(nested, rng, folder)
            written = [await register_model(nested, rng, folder)]
        await inner.tag_model(written[0], tags=["inside"])
        await inner.record_use(written[0])
        return found, written, await inner.list_models(), inner.host == catalog.host


async def host(catalog, _rng, _folder):
    return isinstance(catalog.host, str)


async def database_files(catalog, _rng, _folder):
    return catalog.database_files


async def accept(catalog, rng, _):
    accepted = await accept_model(catalog, a_key(rng))
    return accepted.model


async def adopt_store(catalog, _rng, folder):
    scan = await scan_store(catalog, "directory", folder / "store")
    report = await adopt(catalog, scan, force=True)
    again = await adopt(catalog, await scan_store(catalog, "directory", folder / "store"))
    return report, again


async def check(catalog, rng, folder):
    missing = path_of(folder, rng.choice(NAMES))
    if rng.random() < 0.3:
        missing.unlink(missing_ok=True)
    report = await check_models(catalog, force=True, **some_filters(rng))
    return report, await catalog.list_models()


async def duplicates(catalog, _rng, _folder):
    return await find_duplicates(catalog)


async def moved(catalog, _rng, folder):
    return await find_moved(catalog, [folder])


async def register_file(catalog, rng, folder):
    name = rng.choice(NAMES)
    done = await register_path(catalog, path_of(folder, name), ModelRef("hf", name, "v1"))
    return done.model


async def relink(catalog, rng, folder):
    done = await relink_model(catalog, a_key(rng), path=path_of(folder, rng.choice(NAMES)))
    return done.model


async def verify(catalog, rng, _):
    found = [
        (str(each.model.ref), str(each.verdict))
        async for each in verify_models(catalog, "full", provider="hf")
    ]
    return sorted(found), await catalog.list_models()


async def check_signature(catalog, rng, folder):
    return await verify_signature(catalog, a_key(rng), key=b"not a key")


async def watch_once(catalog, _rng, _folder):
    done = asyncio.Event()
    async with watch(catalog, interval_s=3600, on_event=lambda _: done.set()):
        async with asyncio.timeout(20):
            await done.wait()
    return await catalog.list_models()


async def download(catalog, rng, folder):
    name = rng.choice(NAMES)
    calls = []

    async def write(claim):
        calls.append(claim.ref)
        assert [each.ref for each in await list_downloads(catalog, states=["running"])] == calls
        path = path_of(folder, name)
        path.write_bytes(weights(name))
        return path

    ref = ModelRef("hf", name, rng.choice(("v1", "v9")))
    model = await get_or_download(catalog, ref, write, root=folder, timeout_s=20)
    await wait_for_download(catalog, ref, timeout_s=20)
    return model, calls


async def downloads(catalog, rng, _):
    ref = ModelRef("hf", rng.choice(NAMES), "v1")
    listed = [
        (each.ref, each.state, each.error)
        for each in (*await list_downloads(catalog), *await list_downloads(catalog, ref))
    ]
    last = await wait_for_download(catalog, ref, timeout_s=20)
    return listed, None if last is None else last.state


async def use(catalog, rng, _):
    key = a_key(rng)
    async with use_model(catalog, key) as model:
        users = [each.ref for each in await list_users(catalog)]
        own = len(await list_users(catalog, key))
        try:
            await catalog.remove_model(model)
        except CatalogError as error:
            return model, users, own, type(error).__name__
        return model, users, own


async def evict(catalog, rng, _):
    plan = await plan_eviction(catalog, max_total_bytes=5000, keep_days=0)
    result = await plan.execute(catalog, delete_files=rng.random() < 0.7)
    return plan.kept_counts, [each.ref for each in plan.models], result


async def delete(catalog, rng, _):
    plan = await plan_deletion(catalog, [a_key(rng)])
    result = await plan.execute(catalog, delete_files=rng.random() < 0.5)
    return plan.kept_counts, [each.ref for each in plan.models], result


METHODS: dict[str, Step] = {
    step.__name__: step
    for step in (
        *(register_model, register_models, update_model, remove_model, rename_model, relocate),
        *(find_model, get_model, find_model_by_id, get_model_by_id, list_files, list_models),
        *(list_page, list_rows, iter_models, iter_rows, count_models, get_total_size),
        *(get_disk_usage, stats, tag_model, untag_model, list_tags, pin_model, unpin_model),
        *(set_alias, remove_alias, list_aliases, record_use, export_catalog, import_catalog),
        *(transaction, host, database_files),
    )
}
"""A step for each public attribute of ModelCatalog."""

AT_ONCE: dict[str, Step] = {step.__name__: step for step in (register_together, find_together)}

FUNCTIONS: dict[str, Step] = {
    "accept_model": accept,
    "adopt": adopt_store,
    "scan_store": adopt_store,
    "check_models": check,
    "find_duplicates": duplicates,
    "find_moved": moved,
    "register_path": register_file,
    "relink_model": relink,
    "verify_models": verify,
    "verify_signature": check_signature,
    "watch": watch_once,
    "get_or_download": download,
    "list_downloads": downloads,
    "wait_for_download": downloads,
    "use_model": use,
    "list_users": use,
    "plan_eviction": evict,
    "plan_deletion": delete,
}
"""A step for each function of `upkeep` and `downloads` that takes a catalog."""

STEPS = METHODS | AT_ONCE | FUNCTIONS


class Clock:
    """The time of this process, which advances by a second with each step."""

    def __init__(self) -> None:
        self.now_s = 1_700_100_000.0

    def __call__(self) -> float:
        return self.now_s


async def run_sequence(
    catalog: ModelCatalog, folder: Path, seed: int, clock: Clock, *, count: int
) -> list[tuple[str, Any]]:
    """Run random steps, and return what each returned or raised; the first ones register models."""
    rng = random.Random(seed)
    names = [*("register_model",) * 6, *("tag_model", "set_alias") * 2]
    # Every step at least once in a while: the rest of the sequence is a shuffle of all steps.
    rest = [
        name
        for _ in range(math.ceil(count / len(STEPS)))
        for name in rng.sample(list(STEPS), len(STEPS))
    ]
    results = []
    for name in (*names, *rest[:count]):
        clock.now_s += 1
        try:
            result = comparable(await STEPS[name](catalog, rng, folder))
        except (CatalogError, ValueError, OSError) as error:
            result = type(error).__name__
        results.append((name, result))
    return results
