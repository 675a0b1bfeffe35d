"""Eight processes as eight hosts of one PostgreSQL database, through PgBouncer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pooler import pooler

from model_catalog import HostRegistry, HostState, open_catalog

PROGRAM = Path(__file__).with_name("fleet_program.py")
HOSTS = [f"gpu-{number:02}" for number in range(8)]
SECONDS = float(os.environ.get("MODEL_CATALOG_TEST_FLEET_S", "4"))
"""How long the hosts work; `MODEL_CATALOG_TEST_FLEET_S=60` for the long run."""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)
async def test_eight_hosts_share_a_database_through_a_pooler(database, tmp_path):
    """
    No call fails, no host sees another's row as its own, and the totals are exact at the end.
    """
    with pooler(database.url, tmp_path, sessions=8) as url:
        target = url.set(
            drivername=f"postgresql+{database.backend}", query={"pooler": "transaction"}
        ).render_as_string(hide_password=False)
        processes = [
            subprocess.Popen(
                [sys.executable, PROGRAM, target, host, str(SECONDS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for host in HOSTS
        ]
        ended = [process.communicate(timeout=SECONDS + 120) for process in processes]
        async with open_catalog(target) as catalog:
            totals = await catalog.fleet().totals_by_host()
            models = [model async for model in catalog.fleet().iter_models()]
            hosts = await HostRegistry(catalog).list_hosts()

    assert [error for _, error in ended] == [""] * len(HOSTS)
    assert [process.returncode for process in processes] == [0] * len(HOSTS)
    found = [json.loads(printed) for printed, _ in ended]
    print({each["host"]: each["calls"] for each in found})
    assert min(each["calls"] for each in found) > 2 * SECONDS
    assert [(each.host, each.model_count, each.size_bytes) for each in totals] == [
        (each["host"], len(each["sizes"]), sum(each["sizes"].values())) for each in found
    ]
    assert {(m.host, m.reference): (m.size_bytes, m.use_count) for m in models} == {
        (each["host"], name): (size, each["uses"][name])
        for each in found
        for name, size in each["sizes"].items()
    }
    assert all(model.local_path == f"/{model.host}/{model.reference}" for model in models)
    assert [host.state for host in hosts] == [HostState.ALIVE] * len(HOSTS)
    assert database.run("SELECT count(*) FROM model_uses") == [(0,)]
