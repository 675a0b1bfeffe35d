"""`sslmode` and the certificates in a URL mean the same to asyncpg and psycopg."""

import postgres
import pytest

pytest.importorskip("cryptography")

from certificates import Authority

from model_catalog import CatalogUnavailableError, InvalidTargetError, upgrade
from model_catalog.connection.engines import create_engine
from model_catalog.connection.error_mapping import map_errors
from model_catalog.connection.target import resolve_target

on_a_server = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])

# By the name of a database: who may connect to it, and how.
RULES = """
hostssl   encrypted   all all trust
hostssl   certified   all all cert
host      either      all all trust
host      postgres    all all trust
"""
IS_ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """The certificates of a client and of two authorities, one of which signed the server's."""
    folder = tmp_path_factory.mktemp("certificates")
    certificate, key = authority.issue("postgres")
    texts = {"root": authority.text, "other": Authority().text, "client": certificate, "key": key}
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return {name: folder / name for name in texts}


@pytest.fixture(scope="module")
def servers(authority):
    """A server without encryption and one with it, by the name of a database."""
    certificate, key = authority.issue("localhost")
    settings = ["ssl=on", "ssl_cert_file=server.crt", "ssl_key_file=server.key"]
    settings += ["ssl_ca_file=root.crt"]
    encrypted = postgres.Cluster(*settings)
    for name, text in {
        "server.crt": certificate,
        "server.key": key,
        "root.crt": authority.text,
        "pg_hba.conf": RULES,
    }.items():
        encrypted.add_file(name, text)
    with postgres.throwaway_cluster() as plain:
        try:
            encrypted.start()
            with postgres.connection(encrypted.url) as admin:
                for name in ("encrypted", "certified", "either"):
                    admin.execute(f"CREATE DATABASE {name}")
            yield {
                "none": plain.url,
                **{
                    name: encrypted.url.set(database=name)
                    for name in ("encrypted", "certified", "either")
                },
            }
        finally:
            encrypted.stop()
            encrypted.remove()


async def connect(url, driver, parameters, files):
    """Return whether a connection is encrypted, or the error of the catalog."""
    query = parameters.format(**files)
    target = url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    location = resolve_target(f"{target}?{query}")
    engine = None
    try:
        with map_errors(location.name):
            engine = create_engine(location, None)
            async with engine.connect() as connection:
                found = await connection.exec_driver_sql(IS_ENCRYPTED)
                return "encrypted" if found.scalar() else "plain"
    except CatalogUnavailableError:
        return "refused"
    except InvalidTargetError:
        return "invalid"
    finally:
        if engine is not None:
            await engine.dispose()


# What a connection is to a server without encryption, to one with it, and to one that demands it.
MODES = {
    "": ("plain", "encrypted", "encrypted"),
    "sslmode=disable": ("plain", "plain", "refused"),
    "sslmode=allow": ("plain", "plain", "encrypted"),
    "sslmode=prefer": ("plain", "encrypted", "encrypted"),
    "sslmode=require": ("refused", "encrypted", "encrypted"),
    "sslmode=require&sslrootcert={root}": ("refused", "encrypted", "encrypted"),
    "sslmode=require&sslrootcert={other}": ("refused", "refused", "refused"),
    "sslmode=verify-ca&sslrootcert={root}": ("refused", "encrypted", "encrypted"),
    "sslmode=verify-ca&sslrootcert={other}": ("refused", "refused", "refused"),
    # The certificate is for localhost.
    "sslmode=verify-full&sslrootcert={root}": ("refused", "refused", "refused"),
    "sslmode=verify-full&sslrootcert={other}": ("refused", "refused", "refused"),
    "sslmode=verify-full&sslrootcert=system": ("refused", "refused", "refused"),
    "sslmode=verify-ca&sslrootcert=system": ("invalid", "invalid", "invalid"),
    "sslmode=verify-ca": ("invalid", "invalid", "invalid"),
    "sslmode=verify-full": ("invalid", "invalid", "invalid"),
    "sslmode=require&sslrootcert={root}x": ("invalid", "invalid", "invalid"),
    "sslmode=require&sslcert={client}x&sslkey={key}": ("invalid", "invalid", "invalid"),
    "sslmode=required": ("invalid", "invalid", "invalid"),
    "sslmode=prefer&sslmode=require": ("invalid", "invalid", "invalid"),
}


@pytest.mark.slow
@on_a_server
@pytest.mark.parametrize(("parameters", "expected"), MODES.items(), ids=MODES)
async def test_a_mode_means_the_same_to_both_drivers(
    servers, files, driver, parameters, expected, tmp_path, monkeypatch
):
    """Each mode, against a server without encryption, with it, and one that demands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, outcome in zip(("none", "either", "encrypted"), expected, strict=True):
        assert await connect(servers[name], driver, parameters, files) == outcome, name


@pytest.mark.slow
@on_a_server
async def test_verify_full_compares_the_name_of_the_host(servers, files, driver):
    """The same server, under the name in its certificate."""
    url = servers["encrypted"].set(host="localhost")

    found = await connect(url, driver, "sslmode=verify-full&sslrootcert={root}", files)

    assert found == "encrypted"


@pytest.mark.slow
@on_a_server
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("sslmode=require", "refused"),
        ("sslmode=require&sslcert={client}&sslkey={key}", "encrypted"),
        ("sslmode=verify-ca&sslrootcert={root}&sslcert={client}&sslkey={key}", "encrypted"),
    ],
    ids=["none", "without the server's", "with the server's"],
)
async def test_a_client_shows_its_certificate(servers, files, driver, parameters, expected):
    """A server may demand the certificate of a client."""
    assert await connect(servers["certified"], driver, parameters, files) == expected


@on_a_server
async def test_an_invalid_mode_is_refused_before_anything_connects(driver):
    """The error names the parameter and the modes."""
    with pytest.raises(InvalidTargetError, match=r"'sslmode'.*verify-full"):
        await upgrade(f"postgresql+{driver}://u@127.0.0.1:1/d?sslmode=on")
