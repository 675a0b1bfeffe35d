"""Questions about the models of all hosts."""

import pytest
from conftest import a_model, moment
from fleet_rows import insert_host, insert_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    Exclusion,
    FileState,
    HostRegistry,
    HostState,
    InvalidModelError,
    ModelCatalog,
    ModelNotFoundError,
    ModelRef,
    open_catalog,
)

LOST_S = 10_000
USED = int(moment(100).timestamp())


@pytest.fixture
def fleet(catalog):
    return catalog.fleet()


async def test_who_has_names_the_best_copy_first(fleet, database):
    """Usable copies, then hosts that are alive, then the copy that was used last."""
    for name, age_s in [("alive", 0), ("used", 0), ("missing", 0), ("never", None)]:
        insert_host(database, name, age_s)
    for name in ("broken", "damaged"):
        insert_host(database, name)
    insert_host(database, "lost", LOST_S)
    insert_model(database, "alive", "m", last_used_at=USED)
    insert_model(database, "used", "m", last_used_at=USED + 1)
    insert_model(database, "never", "m", last_used_at=USED + 9)
    insert_model(database, "unknown", "m", last_used_at=USED + 9)
    insert_model(database, "lost", "m", last_used_at=USED + 9)
    insert_model(database, "missing", "m", state="missing")
    insert_model(database, "broken", "m", incomplete_reason="missing: a")
    insert_model(database, "damaged", "m", found_digest=f"sha256:{1:064x}")
    insert_model(database, "", "m", pinned_at=USED)
    insert_model(database, "alive", "other")

    copies = await fleet.who_has("hf:m")

    assert [copy.host for copy in copies] == [
        *("used", "alive", "never", "unknown", ""),
        *("missing", "broken", "damaged", "lost"),
    ]
    assert [copy.is_usable for copy in copies] == [True] * 5 + [False] * 4
    by_host = {copy.host: copy for copy in copies}
    assert by_host["used"].last_used_at == moment(101)
    assert by_host["used"].ref == ModelRef("hf", "m", "")
    assert by_host["missing"].state is FileState.MISSING
    assert (by_host["missing"].is_whole, by_host["missing"].is_present) == (True, False)
    assert not by_host["broken"].is_whole
    assert by_host[""].is_pinned
    assert [by_host[name].host_state for name in ("used", "never", "", "lost")] == [
        *(HostState.ALIVE, HostState.NEVER, HostState.UNREGISTERED, HostState.LOST)
    ]


async def test_who_has_takes_a_version_or_an_alias_of_each_host(fleet, database):
    """An alias may mean another version on each host, and an exact version has priority."""
    for host, versions in {"a": ["v1", "v2"], "b": ["v2", "main"], "c": ["v3"]}.items():
        for version in versions:
            insert_model(database, host, "m", version)
    for host, version in [("a", "v2"), ("b", "v2"), ("c", "v3")]:
        database.run(
            "INSERT INTO model_aliases (host, provider, reference, alias, model_id)"
            " SELECT host, provider, reference, 'main', id FROM models"
            " WHERE host = ? AND version = ?",
            *(host, version),
        )

    exact = await fleet.who_has("m", "hf", "v2")
    aliased = await fleet.who_has("hf:m@main")
    everything = await fleet.who_has("hf:m")

    assert [(copy.host, copy.ref.version) for copy in exact] == [("a", "v2"), ("b", "v2")]
    assert [(copy.host, copy.ref.version) for copy in aliased] == [
        *(("a", "v2"), ("b", "main"), ("c", "v3"))
    ]
    assert len(everything) == 5
    assert await fleet.who_has("hf:absent") == []
    with pytest.raises(InvalidModelError):
        await fleet.who_has("m")


async def test_a_copy_names_a_model(catalog, fleet):
    """A catalog without a host is part of its fleet, under the name ""."""
    await catalog.register_model(a_model("m", version="v1"))

    (copy,) = await fleet.who_has("hf:m")

    assert (await catalog.get_model(copy)).version == "v1"
    assert (copy.host, copy.to_dict()["host_state"]) == ("", "unregistered")


async def test_totals_name_each_host_that_is_registered_or_has_models(fleet, database):
    """The sums are exact beyond 2**63, and an unknown size counts 0."""
    insert_host(database, "gpu-1", capacity_bytes=9, free_bytes=4)
    insert_host(database, "empty", LOST_S, free_bytes=7)
    for number in range(3):
        insert_model(database, "gpu-1", f"m{number}", size_bytes=2**63 - 1)
    insert_model(database, "gpu-1", "unknown")
    insert_model(database, "gpu-2", "m", size_bytes=5)
    insert_model(database, "", "m", size_bytes=6)

    totals = await fleet.totals_by_host()

    assert [
        (each.host, each.state, each.model_count, each.size_bytes, each.free_bytes)
        for each in totals
    ] == [
        ("", HostState.UNREGISTERED, 1, 6, None),
        ("empty", HostState.LOST, 0, 0, 7),
        ("gpu-1", HostState.ALIVE, 4, 3 * (2**63 - 1), 4),
        ("gpu-2", HostState.UNREGISTERED, 1, 5, None),
    ]
    assert [each.capacity_bytes for each in totals] == [None, None, 9, None]


async def test_the_limit_after_which_a_host_is_lost_is_the_callers(catalog, database):
    """The same heartbeat is recent for one caller and old for another."""
    insert_host(database, "gpu-1", LOST_S)
    insert_model(database, "gpu-1", "m")

    (patient,) = await catalog.fleet(lost_after_s=2 * LOST_S).who_has("hf:m")
    (other,) = await catalog.fleet().who_has("hf:m")

    assert (patient.host_state, other.host_state) == (HostState.ALIVE, HostState.LOST)
    with pytest.raises(InvalidModelError):
        catalog.fleet(lost_after_s=0)


def insert_copies(database) -> None:
    """Insert a model on 0 to 3 usable hosts; `bad` and `lost` copies do not count."""
    insert_host(database, "lost", LOST_S)
    for host in ("a", "b", "c"):
        insert_model(database, host, "three", last_used_at=USED + ord(host))
    insert_model(database, "", "two")
    insert_model(database, "a", "two")
    insert_model(database, "lost", "two")
    insert_model(database, "a", "one", "v1")
    insert_model(database, "b", "one", "v2")
    insert_model(database, "b", "one", "v1", state="missing")
    insert_model(database, "lost", "zero")


async def test_scarce_models_have_few_usable_copies(fleet, database):
    """Copies on lost hosts, and those that are not present, do not count."""
    insert_copies(database)

    scarce = await fleet.list_scarce_models()
    none = await fleet.list_scarce_models(copy_count=0)

    assert [(str(each.ref), each.usable_count, len(each.copies)) for each in scarce] == [
        *(("hf:one@v1", 1, 2), ("hf:one@v2", 1, 1), ("hf:zero@", 0, 1))
    ]
    assert [copy.host for copy in scarce[0].copies] == ["a", "b"]
    assert [str(each.ref) for each in none] == ["hf:zero@"]


async def test_the_copies_to_spare_are_the_least_recently_used(fleet, database):
    """A pinned copy is never to spare, and neither is one that is not usable."""
    insert_copies(database)
    insert_model(database, "d", "three", pinned_at=USED)
    insert_model(database, "e", "three", state="missing")

    spare = await fleet.list_spare_models(keep=1)
    more = await fleet.list_spare_models(keep=3)

    assert [each.ref.reference for each in spare] == ["three", "two"]
    assert [copy.host for copy in spare[0].to_spare(1)] == ["a", "b", "c"]
    assert [copy.host for copy in spare[0].to_spare(3)] == ["a"]
    assert [copy.host for copy in spare[1].to_spare(1)] == [""]
    assert [each.ref.reference for each in more] == ["three"]
    assert more[0].to_spare(4) == []


@pytest.mark.parametrize("step", [1, 4, 200])
async def test_pages_of_models_by_their_copies_have_each_model_once(
    fleet, database, monkeypatch, step
):
    """A page begins after the last model of the page before, however many are counted at once."""
    monkeypatch.setattr("model_catalog.repository.operations.fleet.copies._STEP", step)
    references = [f"{name}{number}" for name in ("a", "é", "Z") for number in range(4)]
    for index, reference in enumerate(references):
        insert_model(database, "" if index % 3 else "h", reference, "v@1")
        insert_model(database, "h", f"{reference}-twice")
        insert_model(database, "", f"{reference}-twice")
    found = []
    after = None

    while page := await fleet.list_scarce_models(limit=5, after=after):
        found += [each.ref.reference for each in page]
        after = page[-1].ref

    assert found == sorted(references)
    for limit in (0, 1001, None):
        with pytest.raises(InvalidModelError, match="is not a page size"):
            await fleet.list_scarce_models(limit=limit)
    with pytest.raises(InvalidModelError, match="pass the `ref`"):
        await fleet.list_spare_models(after="hf:m")


async def test_a_plan_offers_hosts_with_room_and_fewest_versions_first(fleet, database):
    """All other hosts are named with the reason."""
    insert_host(database, "roomy", free_bytes=500)
    insert_host(database, "roomier", free_bytes=600)
    insert_host(database, "has an old one", free_bytes=900)
    insert_host(database, "just enough", free_bytes=110)
    insert_host(database, "full", free_bytes=109)
    insert_host(database, "unknown", free_bytes=None)
    insert_host(database, "has it", free_bytes=900)
    insert_host(database, "has it missing", free_bytes=900)
    insert_host(database, "lost", LOST_S, free_bytes=900)
    insert_host(database, "never", None, free_bytes=900)
    new = {"size_bytes": 100, "downloaded_at": 9}
    insert_model(database, "has an old one", "m", "old", size_bytes=7, downloaded_at=8)
    insert_model(database, "has it", "m", "new", **new)
    insert_model(database, "has it missing", "m", "new", **new, state="missing")
    insert_model(database, "unregistered", "m", "new", downloaded_at=9)

    plan = await fleet.plan_placement("hf:m", reserve_bytes=10)

    assert (plan.ref, plan.size_bytes) == (ModelRef("hf", "m", "new"), 100)
    assert [(each.host.name, each.copy_count, each.free_after_bytes) for each in plan.offers] == [
        ("roomier", 0, 490),
        ("roomy", 0, 390),
        ("just enough", 0, 0),
        ("has an old one", 1, 790),
    ]
    assert {each.host.name: each.reason for each in plan.excluded} == {
        "full": Exclusion.NO_ROOM,
        "unknown": Exclusion.UNKNOWN_SPACE,
        "has it": Exclusion.HAS_MODEL,
        "has it missing": Exclusion.HAS_MODEL,
        "lost": Exclusion.LOST,
        "never": Exclusion.NEVER_ALIVE,
    }
    assert [copy.host for copy in plan.copies] == ["has it", "unregistered", "has it missing"]


async def test_a_plan_for_a_model_that_no_host_has_needs_its_size(fleet, database):
    """Labels select the hosts."""
    insert_host(database, "a", free_bytes=50, labels='{"gpu": "h100"}')
    insert_host(database, "b", free_bytes=50)
    insert_model(database, "a", "unsized")

    plan = await fleet.plan_placement("hf:m@v1", size_bytes=50, labels={"gpu": "h100"})

    assert [each.host.name for each in plan.offers] == ["a"]
    assert [each.reason for each in plan.excluded] == [Exclusion.OTHER_LABELS]
    assert (plan.ref, plan.copies) == (ModelRef("hf", "m", "v1"), ())
    with pytest.raises(ModelNotFoundError):
        await fleet.plan_placement("hf:m")
    with pytest.raises(InvalidModelError, match="is recorded on no host: give size_bytes"):
        await fleet.plan_placement("hf:unsized")


async def test_a_plan_resolves_an_alias(fleet, database):
    """The version is then the one that the alias means."""
    insert_host(database, "a", free_bytes=50)
    insert_host(database, "b", free_bytes=50)
    insert_model(database, "a", "m", "v7", size_bytes=1)
    database.run(
        "INSERT INTO model_aliases (host, provider, reference, alias, model_id)"
        " SELECT host, provider, reference, 'stable', id FROM models"
    )

    plan = await fleet.plan_placement("hf:m@stable")

    assert plan.ref == ModelRef("hf", "m", "v7")
    assert [each.host.name for each in plan.offers] == ["b"]


async def test_the_models_of_all_hosts_are_listed_in_pages(fleet, database):
    """They are sorted by host, and filters select as they do on one host."""
    for host in ("b", "", "a"):
        for reference in ("n", "m"):
            insert_model(database, host, reference, format="gguf" if host else None)

    everything = await fleet.list_models()
    first = await fleet.list_models(limit=3)
    rest = await fleet.list_models(after=first[-1])
    of_hosts = await fleet.list_models(hosts=["b", ""], reference="m")
    iterated = [model.id async for model in fleet.iter_models(format="gguf")]

    names = [(model.host, model.reference) for model in everything]
    assert names == [(host, name) for host in ("", "a", "b") for name in ("m", "n")]
    assert [model.id for model in first + rest] == [model.id for model in everything]
    assert [(model.host, model.reference) for model in of_hosts] == [("", "m"), ("b", "m")]
    assert iterated == [model.id for model in everything if model.host]
    for arguments in ({"hosts": "a"}, {"hosts": ["*"]}, {"after": "hf:m"}, {"limit": -1}):
        with pytest.raises(InvalidModelError):
            await fleet.list_models(**arguments)


async def test_a_fleet_reads_in_an_open_transaction(catalog):
    """It then sees what the transaction has written."""
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("m"))
        inside = await inner.fleet().who_has("hf:m")

    assert len(inside) == 1


async def test_a_fleet_of_a_closed_catalog_raises_an_error_of_the_catalog(sqlite_file):
    """As all methods of the catalog do."""
    async with open_catalog(sqlite_file) as catalog:
        fleet = catalog.fleet()

    with pytest.raises(Exception, match="closed") as caught:
        await fleet.who_has("hf:m")
    assert type(caught.value).__name__ == "CatalogClosedError"


async def test_a_catalog_over_the_sessions_of_a_program_has_hosts_and_a_fleet(database):
    """They see all hosts, whatever host the catalog is for."""
    engine = create_async_engine(database.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine), host="a")
    registry = HostRegistry(catalog)
    await registry.register_host("a", free_bytes=100)
    await registry.register_host("b", free_bytes=100)
    await catalog.register_model(a_model("m", size_bytes=7))
    insert_model(database, "b", "m", size_bytes=9, last_used_at=USED)

    async with registry.beat("a"), registry.beat("b"):
        copies = await catalog.fleet().who_has("hf:m")
    totals = await catalog.fleet().totals_by_host()
    scarce = await catalog.fleet().list_scarce_models(copy_count=2)
    plan = await catalog.fleet().plan_placement("hf:m")
    await engine.dispose()

    assert [(copy.host, copy.size_bytes) for copy in copies] == [("b", 9), ("a", 7)]
    assert [(each.host, each.state, each.size_bytes) for each in totals] == [
        *(("a", HostState.ALIVE, 7), ("b", HostState.ALIVE, 9))
    ]
    assert [each.usable_count for each in scarce] == [2]
    assert {each.reason for each in plan.excluded} == {Exclusion.HAS_MODEL}
