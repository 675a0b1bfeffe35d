"""Settings and roles of a PostgreSQL server: no difference, or an error that says what to do."""

import asyncio
import os
from contextlib import contextmanager

import postgres
import pytest
from conftest import a_model, moment, postgresql_database

from model_catalog import (
    CatalogBusyError,
    CatalogReadOnlyError,
    CatalogUnavailableError,
    InvalidTargetError,
    MissingPrivilegeError,
    open_catalog,
    schema_state,
    upgrade,
)

on_a_server = pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])

SETTINGS = {
    "texts": {
        "array_nulls": "off",
        "standard_conforming_strings": "off",
        "bytea_output": "escape",
        "client_encoding": "LATIN1",
        "quote_all_identifiers": "on",
        "transform_null_equals": "on",
    },
    "times": {"TimeZone": "'Asia/Kathmandu'", "DateStyle": "German, DMY"},
    "transactions": {"default_transaction_isolation": "serializable", "lock_timeout": "1"},
    "statements": {"plan_cache_mode": "force_generic_plan", "statement_timeout": "2000"},
}
NAMES = ["a", "B", "é", "日本", "NULL", "null", "a\\b", "it's", "%s $1 :x", "1", "10", "2", "_"]


@contextmanager
def role(database, *grants):
    """Create a role for the block; yield the target as this role, and a function that sets it."""
    name = f"model_catalog_role_{os.getpid()}"
    database.run(f"CREATE ROLE {name} LOGIN")
    try:
        for grant in grants:
            database.run(f"GRANT {grant} TO {name}")
        url = database.url.set(username=name)
        target = postgresql_database(database.backend, url).target
        yield (
            target,
            lambda setting, value: database.run(f"ALTER ROLE {name} SET {setting} TO {value}"),
        )
    finally:
        database.run(f"DROP OWNED BY {name} CASCADE")
        database.run(f"DROP ROLE {name}")


ALL = (
    "ALL ON ALL TABLES IN SCHEMA public",
    "ALL ON ALL SEQUENCES IN SCHEMA public",
    "CREATE ON SCHEMA public",
)


async def answers(target):
    """Return what calls alone, in batches and in a transaction answer."""
    async with open_catalog(target) as catalog:
        await asyncio.gather(
            *(
                catalog.register_model(
                    a_model(name, downloaded_at=moment(0), license="NULL" if number % 2 else None)
                )
                for number, name in enumerate(NAMES)
            )
        )
        await catalog.update_model("1", "hf", description="\\ ' NULL", license="\\")
        async with catalog.transaction() as inner:
            await inner.tag_model("NULL", "hf", "NULL", "it's\\")
        found = await asyncio.gather(*(catalog.find_model(name, "hf") for name in NAMES))
        listed = await catalog.list_models()
        searched = await catalog.list_models(search="null")
    return [[model.to_dict() for model in models] for models in (found, listed, searched)]


@pytest.mark.slow
@on_a_server
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
async def test_a_setting_of_the_role_changes_no_answer(database, settings):
    """The values, their order and the times are the same, whatever the owner of a server sets."""
    expected = await answers(database.target)
    database.delete_rows()

    with role(database, *ALL) as (target, set_to):
        for name, value in settings.items():
            set_to(name, value)

        assert await answers(target) == expected


@pytest.mark.slow
@on_a_server
async def test_the_collation_of_the_database_changes_no_answer(database, pg_server):
    """A database that sorts by a collation of ICU gives the same models in the same order."""
    expected = await answers(database.target)
    name = f"model_catalog_icu_{os.getpid()}"
    database.run(
        f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'sv-SE-u-kn'"
    )
    try:
        url = pg_server.set(database=name)
        assert await answers(postgresql_database(database.backend, url).target) == expected
    finally:
        database.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.slow
@on_a_server
async def test_a_short_statement_timeout_of_the_role_does_not_stop_a_migration(empty):
    """A migration may take longer than the statements of a service."""
    with role(empty, "CREATE ON SCHEMA public", "USAGE ON SCHEMA public") as (target, set_to):
        set_to("statement_timeout", "'5ms'")

        await upgrade(target)

        assert (await schema_state(target))[0] is not None


@pytest.mark.slow
@on_a_server
async def test_a_role_without_a_privilege_is_told_who_can_grant_it(database):
    """A role that may only read finds models, and its writes name the missing privilege."""
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("m"))

    with role(database, "SELECT ON ALL TABLES IN SCHEMA public") as (target, _):
        async with open_catalog(target) as catalog:
            assert (await catalog.find_model("m", "hf")).reference == "m"
            for write in (
                lambda: catalog.register_model(a_model("n")),
                lambda: catalog.tag_model("m", "hf", "chat"),
                lambda: catalog.record_use("m", "hf"),
            ):
                with pytest.raises(MissingPrivilegeError, match=r"GRANT it: .* INSERT") as caught:
                    await write()
                assert "permission denied for table" in caught.value.reason
                assert "cannot be reached" not in str(caught.value)
            assert [model.reference for model in await catalog.list_models()] == ["m"]


@pytest.mark.slow
@on_a_server
async def test_a_role_that_may_not_create_tables_is_told_what_to_run(empty):
    """The tables of the catalog do not exist, and the role cannot make them."""
    with role(empty, "USAGE ON SCHEMA public") as (target, _):
        with pytest.raises(CatalogUnavailableError, match="model-catalog db upgrade"):
            await upgrade(target)
        assert (await schema_state(target))[0] is None
    assert empty.tables == set()


@pytest.mark.slow
@on_a_server
@pytest.mark.parametrize("upgrades", [True, False])
async def test_a_role_that_may_not_use_the_schema_is_told_so(database, upgrades):
    """The server hides its tables; the error does not say that they are missing."""
    with role(database, "SELECT ON ALL TABLES IN SCHEMA public") as (target, _):
        database.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        try:
            with pytest.raises(MissingPrivilegeError, match="USAGE on the schema"):
                async with open_catalog(target, upgrade=upgrades):
                    pass
        finally:
            database.run("GRANT USAGE ON SCHEMA public TO PUBLIC")


WRITES = {
    "register_model": lambda catalog: catalog.register_model(a_model("m")),
    "register_models": lambda catalog: catalog.register_models([a_model("m"), a_model("n")]),
    "remove_model": lambda catalog: catalog.remove_model("m", "hf"),
}


@pytest.mark.slow
@on_a_server
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_role_with_read_only_transactions_is_told_which_setting_it_is(database, write):
    """The advice for a server does not speak of the permissions of a file."""
    with role(database, *ALL) as (target, set_to):
        set_to("default_transaction_read_only", "on")
        async with open_catalog(target) as catalog:
            assert await catalog.list_models() == []
            with pytest.raises(CatalogReadOnlyError, match="default_transaction_read") as caught:
                await write(catalog)

    assert "file" not in str(caught.value)


def idle_role(database):
    """Return whether a session of the role is in a transaction."""
    return database.run(
        "SELECT 1 FROM pg_stat_activity WHERE xact_start IS NOT NULL"
        f" AND usename = 'model_catalog_role_{os.getpid()}'"
    )


async def idle(catalog, database, last_call):
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("m"))
        while idle_role(database):
            await asyncio.sleep(0.02)
        # asyncpg reads the end of the connection in the event loop.
        await asyncio.sleep(0.05)
        await last_call(inner)


async def nothing(_catalog):
    pass


@pytest.mark.slow
@on_a_server
@pytest.mark.parametrize(
    "last_call", [lambda inner: inner.find_model("m", "hf"), nothing], ids=["a call", "the commit"]
)
async def test_a_transaction_that_the_server_ended_for_idling_is_unavailable(database, last_call):
    """The error names the setting and says that nothing was kept; the catalog goes on."""
    with role(database, *ALL) as (target, set_to):
        set_to("idle_in_transaction_session_timeout", "'150ms'")
        async with open_catalog(target) as catalog:
            with pytest.raises(CatalogUnavailableError, match="idle_in_transaction") as caught:
                await idle(catalog, database, last_call)
            assert await catalog.list_models() == []

    assert not caught.value.outcome_unknown


CALLS = {
    "a lookup": lambda catalog: catalog.find_model("m", "hf"),
    "a read": lambda catalog: catalog.list_models(),
    "a write": lambda catalog: catalog.register_model(a_model("m")),
    "a transaction": lambda catalog: idle(catalog, NO_SESSIONS, nothing),
}


class NO_SESSIONS:  # noqa: N801 - a database in which no session is idle
    run = staticmethod(lambda _statement: [])


@pytest.mark.slow
@on_a_server
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("end", ["idle_session_timeout", "pg_terminate_backend"])
async def test_a_session_that_ended_while_it_was_idle_is_replaced(database, call, end):
    """Nothing was sent on it, so the call goes on with a new connection."""
    name = f"model_catalog_role_{os.getpid()}"
    sessions = f"FROM pg_stat_activity WHERE usename = '{name}'"
    with role(database, *ALL) as (target, set_to):
        if end == "idle_session_timeout":
            set_to(end, "'300ms'")
        async with open_catalog(target) as catalog:
            for _ in range(2):
                await asyncio.gather(*(call(catalog) for call in list(CALLS.values())[:3]))
                if end == "pg_terminate_backend":
                    database.run(f"SELECT pg_terminate_backend(pid) {sessions}")
                while database.run(f"SELECT 1 {sessions}"):
                    await asyncio.sleep(0.02)
                await call(catalog)


@pytest.mark.slow
@on_a_server
async def test_a_statement_timeout_of_the_role_does_not_stop_a_lookup(database):
    """A lookup that the server has stopped is repeated with the timeout of the call."""
    names = [f"m{number}" for number in range(2000)]
    async with open_catalog(database.target) as catalog:
        await catalog.register_models(a_model(name) for name in names)

    with role(database, *ALL) as (target, set_to):
        async with open_catalog(target, timeout_s=20) as catalog:
            set_to("statement_timeout", "'1ms'")
            database.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE usename = 'model_catalog_role_{os.getpid()}'"
            )
            found = await asyncio.gather(*(catalog.find_model(name, "hf") for name in names))

    assert [model.reference for model in found] == names


@pytest.mark.slow
@on_a_server
async def test_the_timeout_of_a_call_is_told_apart_from_that_of_the_server(database):
    """A table stays locked. The role's limits are shorter, and do not show."""
    with role(database, *ALL) as (target, set_to):
        set_to("statement_timeout", "'30ms'")
        set_to("lock_timeout", "'20ms'")
        async with open_catalog(target, timeout_s=0.8) as catalog:
            with postgres.table_locked(database.url):
                for call in list(CALLS.values())[:3]:
                    with pytest.raises(CatalogBusyError) as caught:
                        await call(catalog)
                    assert 0.75 < caught.value.waited_s < 1.6
                    assert "statement timeout" not in str(caught.value)


@pytest.mark.slow
@on_a_server
async def test_calls_wait_for_the_connections_that_a_role_has(database):
    """Forty calls share the two connections that the server allows."""
    with role(database, *ALL) as (target, _):
        database.run(f"ALTER ROLE model_catalog_role_{os.getpid()} CONNECTION LIMIT 2")
        async with open_catalog(target) as catalog:
            found = await asyncio.gather(*(catalog.list_models() for _ in range(40)))

    assert found == [[]] * 40


@pytest.mark.parametrize(
    ("driver", "parameter"),
    [
        ("asyncpg", "statement_cache_size=many"),
        ("asyncpg", "statement_cache_size=1&statement_cache_size=2"),
        ("asyncpg", "timeout=soon"),
        ("asyncpg", "direct_tls=perhaps"),
        ("asyncpg", "server_settings=x"),
        ("psycopg", "prepare_threshold=often"),
        ("psycopg", "autocommit=true"),
        ("psycopg", "row_factory=x"),
    ],
)
async def test_a_parameter_that_the_driver_cannot_take_is_named(driver, parameter):
    """The error names the parameter and not its value, before anything connects."""
    name, _, value = parameter.partition("=")

    with pytest.raises(InvalidTargetError) as caught:
        await upgrade(f"postgresql+{driver}://u@127.0.0.1:1/d?{parameter}")

    assert f"'{name}' of its URL" in str(caught.value)
    assert value.partition("&")[0] not in str(caught.value).partition("invalid")[2]
