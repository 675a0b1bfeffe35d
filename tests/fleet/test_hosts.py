"""The hosts of a fleet: what is recorded about them, and when one is lost."""

import asyncio
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from fleet_rows import insert_model

from model_catalog import (
    HostHasModelsError,
    HostNotFoundError,
    HostRegistry,
    HostState,
    InvalidModelError,
    ModelInUseError,
    TransactionError,
    open_catalog,
)

ALL_FIELDS = {
    "address": "gpu-07.lan",
    "labels": {"gpu": "h100", "rack": "7"},
    "ssh_user": "models",
    "ssh_host": "10.0.0.7",
    "ssh_port": 2222,
    "ssh_key_path": "/home/me/.ssh/id_ed25519",
    "capacity_bytes": 4_000_000_000_000,
    "free_bytes": 2**62,
}
OPENSSH_KEY = """-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
-----END OPENSSH PRIVATE KEY-----
"""


@pytest.fixture
def registry(catalog) -> HostRegistry:
    return HostRegistry(catalog)


def set_age(database, name: str, seconds: float) -> None:
    """Make the last heartbeat of a host this old, by the clock of this machine."""
    at_ms = int((time.time() - seconds) * 1000)
    database.run("UPDATE model_hosts SET heartbeat_at_ms = ? WHERE name = ?", at_ms, name)


async def test_a_registered_host_is_found_with_all_fields(registry, database):
    """A host without a heartbeat has never been alive."""
    registered = await registry.register_host("gpu-07", **ALL_FIELDS)

    found = await registry.find_host("gpu-07")

    assert found == registered
    assert {name: getattr(found, name) for name in ALL_FIELDS} == ALL_FIELDS
    assert (found.name, found.state, found.heartbeat_at) == ("gpu-07", HostState.NEVER, None)
    assert abs(found.registered_at.timestamp() - time.time()) < 60
    assert database.run("SELECT labels FROM model_hosts") == [('{"gpu": "h100", "rack": "7"}',)]
    assert json.loads(json.dumps(found.to_dict()))["state"] == "never"


async def test_registering_again_writes_only_the_given_fields(registry):
    """None clears a field, and the time of the registration stays."""
    first = await registry.register_host("gpu-07", **ALL_FIELDS)
    await registry.heartbeat("gpu-07")

    second = await registry.register_host("gpu-07", address="new.lan", labels=None)
    third = await registry.register_host("gpu-07")

    assert (second.address, second.labels, second.ssh_port) == ("new.lan", {}, 2222)
    assert second.registered_at == first.registered_at
    assert (third.address, third.state) == ("new.lan", HostState.ALIVE)


async def test_hosts_are_listed_by_the_bytes_of_their_names(registry):
    """Labels select those that have all of them."""
    for name, gpu in [("b", "h100"), ("a", "l40"), ("Z", "h100"), ("ä", "h100")]:
        await registry.register_host(name, labels={"gpu": gpu, "rack": "1"})

    everything = await registry.list_hosts()
    selected = await registry.list_hosts(labels={"gpu": "h100", "rack": "1"})

    assert [host.name for host in everything] == ["Z", "a", "b", "ä"]
    assert [host.name for host in selected] == ["Z", "b", "ä"]
    assert await registry.find_host("c") is None


AGES = {
    "recent": (1, HostState.ALIVE),
    "old": (700, HostState.LOST),
    "a little in the future": (-20, HostState.ALIVE),
    "far in the future": (-700, HostState.LOST),
}


@pytest.mark.parametrize(("age_s", "state"), AGES.values(), ids=AGES)
async def test_the_state_follows_from_the_age_of_the_last_heartbeat(
    registry, catalog, database, age_s, state
):
    """The clock is that of the database, and the caller sets the limit."""
    await registry.register_host("gpu-07")
    set_age(database, "gpu-07", age_s)

    found = await registry.find_host("gpu-07")
    patient = await HostRegistry(catalog, lost_after_s=10_000).find_host("gpu-07")

    assert found.state is state
    assert found.heartbeat_age_s == pytest.approx(age_s, abs=15)
    assert patient.state is HostState.ALIVE


async def test_a_heartbeat_sets_the_time_and_the_free_space(registry):
    """Without a number the recorded free space stays."""
    await registry.register_host("gpu-07", free_bytes=5)

    await registry.heartbeat("gpu-07")
    kept = await registry.find_host("gpu-07")
    await registry.heartbeat("gpu-07", free_bytes=3)
    found = await registry.find_host("gpu-07")

    assert (kept.state, kept.free_bytes) == (HostState.ALIVE, 5)
    assert found.free_bytes == 3
    assert abs(found.heartbeat_at.timestamp() - time.time()) < 60


async def test_a_host_that_is_not_registered_has_no_heartbeat(registry):
    """The error says how to register it."""
    with pytest.raises(HostNotFoundError, match=r"'gpu-08'.*hosts register gpu-08`"):
        await registry.heartbeat("gpu-08")
    with pytest.raises(HostNotFoundError):
        async with registry.beat("gpu-08"):
            pass


SECRETS = {
    "a key": {"ssh_key_path": OPENSSH_KEY},
    "a key in one line": {"ssh_key_path": "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAA=="},
    "a key without its armour": {"ssh_key_path": "MIIEpAIBAAKCAQEA" * 20},
    "the bytes of a key": {"ssh_key_path": OPENSSH_KEY.encode()},
    "a key in the address": {"address": OPENSSH_KEY},
    "a key in a label": {"labels": {"note": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHunter2"}},
    "a password in a URL": {"address": "ssh://me:hunter2@gpu-07:22/"},
    "a password without a scheme": {"address": "me:hunter2@gpu-07"},
    "a password in a parameter": {"address": "https://gpu-07/?api_token=hunter2"},
    "a password of a user": {"ssh_user": "me:hunter2"},
    "a password before a host": {"ssh_host": "me:hunter2@gpu-07"},
    "a password in a label": {"labels": {"Password": "hunter2"}},
}


@pytest.mark.parametrize("fields", SECRETS.values(), ids=SECRETS)
async def test_a_secret_is_refused_and_not_repeated(on_sqlite, fields):
    """Neither the message nor the attributes of the error contain it, and nothing is written."""
    registry = HostRegistry(on_sqlite)

    with pytest.raises(InvalidModelError) as caught:
        await registry.register_host("gpu-07", **fields)

    shown = repr((str(caught.value), vars(caught.value), caught.value.__context__))
    for secret in ("hunter2", "b3BlbnNza", "MIIEp", "AAAAC3", "BEGIN"):
        assert secret not in shown
    assert await registry.list_hosts() == []


VALID_FIELDS = {
    "an IPv6 address": {"address": "https://[2001:db8::7]:8443/path?rack=7"},
    "a user in a URL": {"address": "ssh://me@gpu-07:22"},
    "a path with a long name": {"ssh_key_path": Path("/home/me/keys") / ("k" * 60 + ".pem")},
    "a path of the user": {"ssh_key_path": "~/.ssh/id_rsa"},
    "labels in any language": {"labels": {"拠点": "東京", "note": "key in /etc/keys"}},
    "no space": {"capacity_bytes": 0, "free_bytes": 0},
}


@pytest.mark.parametrize("fields", VALID_FIELDS.values(), ids=VALID_FIELDS)
async def test_values_that_only_resemble_secrets_are_recorded(registry, fields):
    """They are read as they were given."""
    await registry.register_host("gpu-07", **fields)

    found = await registry.find_host("gpu-07")

    for name, value in fields.items():
        assert getattr(found, name) == (str(value) if isinstance(value, Path) else value)


INVALID_FIELDS = {
    "a port of 0": {"ssh_port": 0},
    "a port beyond the last": {"ssh_port": 65_536},
    "a negative number of bytes": {"free_bytes": -1},
    "bytes as a float": {"capacity_bytes": 1.5},
    "labels that are a text": {"labels": "gpu=h100"},
    "a label with an equals sign": {"labels": {"gpu=h100": "yes"}},
    "a label that is a number": {"labels": {"rack": 7}},
    "too many labels": {"labels": {f"l{number}": "x" for number in range(101)}},
    "a blank address": {"address": " "},
    "an address that is not a URL": {"address": "http://[::1"},
    "a control character": {"address": "gpu\x1b[2J"},
    "a user with a host": {"ssh_user": "me@gpu-07"},
}


@pytest.mark.parametrize("fields", INVALID_FIELDS.values(), ids=INVALID_FIELDS)
async def test_an_invalid_field_is_refused(on_sqlite, fields):
    """The error names the field, and nothing is written."""
    registry = HostRegistry(on_sqlite)

    with pytest.raises(InvalidModelError) as caught:
        await registry.register_host("gpu-07", **fields)

    assert caught.value.field in fields
    assert await registry.list_hosts() == []


@pytest.mark.parametrize("name", ["", "*", "a b", "a/b", "a@b", "x" * 256, 7, "a\0b"], ids=repr)
async def test_an_invalid_name_is_refused_by_every_method(on_sqlite, name):
    """The rules are those of the host of a catalog."""
    registry = HostRegistry(on_sqlite)

    for call in (
        registry.register_host,
        registry.find_host,
        registry.remove_host,
        registry.heartbeat,
    ):
        with pytest.raises(InvalidModelError):
            await call(name)


async def test_other_arguments_are_validated(on_sqlite):
    """Unknown fields raise TypeError, as unknown filters do."""
    registry = HostRegistry(on_sqlite)

    with pytest.raises(TypeError, match="a host has no field 'adress': use address"):
        await registry.register_host("gpu-07", adress="x")
    with pytest.raises(InvalidModelError, match="give one of refuse, keep, delete"):
        await registry.remove_host("gpu-07", models="all")
    for seconds in (0, -1, float("nan"), float("inf"), "1"):
        with pytest.raises(InvalidModelError):
            HostRegistry(on_sqlite, lost_after_s=seconds)
    with pytest.raises(InvalidModelError, match=r"give 0\.1 seconds or more"):
        registry.beat("gpu-07", interval_s=0.01)


def hosts_of_models(database) -> list[str]:
    return [host for (host,) in database.run("SELECT host FROM models ORDER BY host")]


async def test_a_host_with_models_is_removed_only_on_request(registry, database):
    """The error names the number of its models, and nothing is removed."""
    await registry.register_host("gpu-07")
    for host in ("gpu-07", "gpu-08", ""):
        insert_model(database, host, "m")

    with pytest.raises(HostHasModelsError, match="1 model is recorded") as caught:
        await registry.remove_host("gpu-07")
    refused = await registry.find_host("gpu-07")
    kept = await registry.remove_host("gpu-07", models="keep")

    assert caught.value.model_count == 1
    assert refused is not None
    assert kept
    assert await registry.find_host("gpu-07") is None
    assert hosts_of_models(database) == ["", "gpu-07", "gpu-08"]


async def test_the_models_of_a_host_can_be_deleted_with_it(registry, database):
    """Those of other hosts stay, with their tags."""
    await registry.register_host("gpu-07")
    for host in ("gpu-07", "gpu-08"):
        insert_model(database, host, "m")
    database.run("INSERT INTO model_tags SELECT id, 't', 't' FROM models")

    removed = await registry.remove_host("gpu-07", models="delete")
    again = await registry.remove_host("gpu-07", models="delete")

    assert (removed, again) == (True, False)
    assert hosts_of_models(database) == ["gpu-08"]
    assert database.run("SELECT count(*) FROM model_tags") == [(1,)]


async def test_a_host_whose_model_is_in_use_is_not_removed(registry, database):
    """Nothing of it is deleted, whatever it has besides."""
    await registry.register_host("gpu-07")
    insert_model(database, "gpu-07", "m")
    insert_model(database, "gpu-07", "n")
    now_ms = int(time.time() * 1000)
    database.run(
        "INSERT INTO model_uses (token, model_id, holder_host, holder_process_id, started_at_ms,"
        " renewed_at_ms, expires_at_ms)"
        " SELECT 't', id, 'machine', 9, 0, 0, ? FROM models WHERE reference = 'n'",
        now_ms + 3_600_000,
    )

    with pytest.raises(ModelInUseError, match="of the host gpu-07"):
        await registry.remove_host("gpu-07", models="delete")

    assert hosts_of_models(database) == ["gpu-07"] * 2
    assert await registry.find_host("gpu-07") is not None


async def until(condition, timeout_s=20):
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_block_sends_heartbeats_with_the_free_space(registry, tmp_path):
    """The first one is sent before the block begins, and none after its end."""
    await registry.register_host("gpu-07")
    seen = []

    async def has_beaten_twice() -> bool:
        seen.append((await registry.find_host("gpu-07")).heartbeat_at)
        return len(set(seen)) >= 3

    async with registry.beat("gpu-07", interval_s=0.1, path=tmp_path):
        await until(has_beaten_twice)
    last = await registry.find_host("gpu-07")
    # Time for two more heartbeats, of which none may be sent.
    await asyncio.sleep(0.25)

    assert None not in seen
    assert last.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert (await registry.find_host("gpu-07")).heartbeat_at == last.heartbeat_at


@pytest.mark.slow
async def test_a_failing_heartbeat_ends_neither_the_block_nor_the_heartbeats(
    registry, database, caplog
):
    """It is logged once, and they go on when the database lets them."""
    caplog.set_level(logging.INFO, "model_catalog")
    await registry.register_host("gpu-07")

    async def is_logged() -> bool:
        return bool(caplog.records)

    async def is_alive() -> bool:
        host = await registry.find_host("gpu-07")
        return host is not None and host.state is HostState.ALIVE

    async with registry.beat("gpu-07", interval_s=0.1):
        await registry.remove_host("gpu-07")
        await until(is_logged)
        # Time for three more failures, of which none may be logged.
        await asyncio.sleep(0.3)
        failures = [record.levelno for record in caplog.records]
        await registry.register_host("gpu-07")
        await until(is_alive)

    assert failures == [logging.WARNING]
    assert "no host 'gpu-07' is registered" in caplog.records[0].getMessage()
    assert "recorded again" in caplog.records[-1].getMessage()


async def test_a_disk_that_does_not_answer_delays_no_heartbeat(registry, tmp_path):
    """A path that is not there, or that hangs, leaves the recorded number as it is."""
    await registry.register_host("gpu-07", free_bytes=7)

    async with registry.beat("gpu-07", path=tmp_path / "gone"):
        found = await registry.find_host("gpu-07")

    assert (found.state, found.free_bytes) == (HostState.ALIVE, 7)


async def test_a_transaction_sends_no_heartbeats(on_sqlite):
    """They would be committed with it at the earliest."""
    async with on_sqlite.transaction() as inner:
        with pytest.raises(TransactionError, match="beat commits"):
            HostRegistry(inner).beat("gpu-07")


def beat_for_ever(target: str) -> None:
    async def beat() -> None:
        async with open_catalog(target) as catalog:
            registry = HostRegistry(catalog)
            await registry.register_host("gpu-07")
            async with registry.beat("gpu-07", interval_s=0.1):
                await asyncio.Event().wait()

    asyncio.run(beat())


@pytest.mark.slow
async def test_the_host_of_a_killed_process_is_lost(catalog, database):
    """Its row and its models stay."""
    registry = HostRegistry(catalog, lost_after_s=2)
    process = multiprocessing.get_context("forkserver").Process(
        target=beat_for_ever, args=(database.target,)
    )
    process.start()

    async def is_alive() -> bool:
        host = await registry.find_host("gpu-07")
        return host is not None and host.state is HostState.ALIVE

    async def is_lost() -> bool:
        return (await registry.find_host("gpu-07")).state is HostState.LOST

    try:
        await until(is_alive)
        insert_model(database, "gpu-07", "m")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    still_alive = await is_alive()
    await until(is_lost)

    assert still_alive
    assert hosts_of_models(database) == ["gpu-07"]
    assert [host.name for host in await registry.list_hosts()] == ["gpu-07"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_heartbeats_on_postgresql_are_heap_only_updates(database):
    """No column that a heartbeat changes has an index."""
    counters = (
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'model_hosts'"
    )
    database.run("SELECT pg_stat_reset_single_table_counters('model_hosts'::regclass)")

    # A server counts what a connection did when the connection ends, and otherwise seconds later.
    async with open_catalog(database.target) as catalog:
        registry = HostRegistry(catalog)
        await registry.register_host("gpu-07", **ALL_FIELDS)
        for number in range(50):
            await registry.heartbeat("gpu-07", free_bytes=number)

    async def is_counted() -> bool:
        database.run("SELECT pg_stat_clear_snapshot()")
        return database.run(counters)[0][0] >= 50

    await until(is_counted)
    updates, heap_only = database.run(counters)[0]
    assert heap_only >= updates - 1
