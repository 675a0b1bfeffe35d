"""URLs with several hosts and `target_session_attrs` mean the same to asyncpg and psycopg."""

import asyncio
import socket
from contextlib import closing, contextmanager

import postgres
import pytest
from conftest import a_model

from model_catalog import CatalogUnavailableError, InvalidTargetError, open_catalog, schema_state
from model_catalog.connection.engines import create_engine
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.target import resolve_target

on_a_server = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.fixture(scope="module")
def servers():
    """The ports of a primary, of its standby, and of no server."""
    with (
        postgres.throwaway_cluster() as primary,
        postgres.throwaway_cluster(primary=primary) as standby,
        closing(socket.socket()) as nothing,
    ):
        nothing.bind(("127.0.0.1", 0))
        yield {
            "primary": primary.url.port,
            "standby": standby.url.port,
            "nothing": nothing.getsockname()[1],
        }


@contextmanager
def silent_server():
    """Accept connections, and never answer."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]


FORMS = {
    "before the database, as in libpq": (
        "//postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres?"
    ),
    "host with port, as in SQLAlchemy": (
        "//postgres@/postgres?host=127.0.0.1:{first}&host=127.0.0.1:{second}&"
    ),
    "hosts and ports, as in libpq": (
        "//postgres@/postgres?host=127.0.0.1,127.0.0.1&port={first},{second}&"
    ),
}


async def port_of(driver, rest):
    """Return the port of the server that a connection reaches, or `nothing`."""
    location = resolve_target(f"postgresql+{driver}:{rest}")
    engine = create_engine(location, None)
    try:
        with map_errors(location.name):
            async with engine.connect() as connection:
                found = await connection.exec_driver_sql("SELECT inet_server_port()")
                return found.scalar()
    except CatalogUnavailableError:
        return "nothing"
    finally:
        await engine.dispose()


@pytest.mark.slow
@on_a_server
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("first", "second", "wanted", "expected"),
    [
        ("standby", "primary", "any", "standby"),
        ("standby", "primary", "read-write", "primary"),
        ("standby", "primary", "primary", "primary"),
        ("primary", "standby", "read-only", "standby"),
        ("primary", "standby", "standby", "standby"),
        ("primary", "standby", "prefer-standby", "standby"),
        ("primary", "nothing", "prefer-standby", "primary"),
        ("nothing", "primary", "read-write", "primary"),
        ("nothing", "standby", "read-write", "nothing"),
        ("nothing", "primary", "standby", "nothing"),
    ],
)
async def test_the_first_server_that_is_as_asked_for_is_used(
    servers, driver, form, first, second, wanted, expected
):
    """Three forms of the URL, with both drivers."""
    rest = form.format(first=servers[first], second=servers[second])

    found = await port_of(driver, f"{rest}target_session_attrs={wanted}")

    assert found == (expected if expected == "nothing" else servers[expected])


@pytest.mark.slow
@on_a_server
async def test_a_silent_server_costs_its_own_timeout_only(servers, driver):
    """The timeout is that of each host, so the second one is still asked."""
    with silent_server() as port:
        hosts = f"127.0.0.1:{port},127.0.0.1:{servers['primary']}"
        async with asyncio.timeout(10):
            found = await port_of(driver, f"//postgres@{hosts}/postgres?connect_timeout=2")

    assert found == servers["primary"]


@pytest.mark.slow
@on_a_server
async def test_a_catalog_over_several_hosts_writes_to_the_primary(servers, driver):
    """The catalog is opened, migrated and written to; its name lists the hosts."""
    hosts = f"127.0.0.1:{servers['standby']},127.0.0.1:{servers['primary']}"
    target = f"postgresql+{driver}://postgres@{hosts}/postgres?target_session_attrs=read-write"
    async with open_catalog(target) as catalog:
        await catalog.register_model(a_model(driver))
        found = await catalog.find_model(driver, "hf")

    assert found.reference == driver


@on_a_server
async def test_an_error_names_every_host(driver):
    """No server answers at two ports."""
    target = f"postgresql+{driver}://u:hunter2@127.0.0.1:1,127.0.0.1:2/db"
    with pytest.raises(CatalogUnavailableError) as caught:
        await schema_state(target)

    assert "host=127.0.0.1:1&host=127.0.0.1:2" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@on_a_server
@pytest.mark.parametrize(
    "rest",
    ["//h:1,h:x/d", "/h:1,h:2/d", "//u@/d?host=a,b&port=1,2,3", "//u@/d?host=a&host=b&port=1"],
)
async def test_hosts_that_cannot_be_told_apart_are_refused(driver, rest):
    """A port that is not a number, or another number of ports than of hosts."""
    with pytest.raises(InvalidTargetError):
        await schema_state(f"postgresql+{driver}:{rest}")


def test_an_address_of_ipv6_keeps_its_port():
    """Its colons are not taken for the one before a port."""
    location = resolve_target("postgresql://[::1]:5433,h/d")

    assert location.url.query == {"host": "::1,h", "port": "5433,5432"}
