"""PgBouncer between a catalog and a PostgreSQL server."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from postgres import accepts_connections
from sqlalchemy import URL


def _find_binary() -> str:
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None and os.environ.get("MODEL_CATALOG_TEST_PG_REQUIRED"):
        pytest.fail("pgbouncer is not installed")
    if found is None:
        pytest.skip("pgbouncer is not installed")
    return found


@contextmanager
def pooler(url: URL, folder: Path, *, sessions: int, mode: str = "transaction") -> Iterator[URL]:
    """Run PgBouncer over a database with `sessions` sessions of the server; yield its URL."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = f"host={url.host} port={url.port} user={url.username}"
    if url.password:
        server += f" password={url.password}"
    settings = {
        "unix_socket_dir": "",
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "auth_type": "any",
        "pool_mode": mode,
        "default_pool_size": sessions,
    }
    lines = ["[databases]", f"* = {server}", "[pgbouncer]"]
    lines += [f"{name} = {value}" for name, value in settings.items()]
    configuration = folder / "pgbouncer.ini"
    configuration.write_text("\n".join(lines))
    # It refuses to run as root. As another user it cannot search the folders of pytest, but it can
    # open the standard input.
    process_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    with configuration.open() as file:
        process = subprocess.Popen(
            [_find_binary(), "-q", "/proc/self/fd/0"],
            stdin=file,
            stderr=subprocess.DEVNULL,
            **(process_user if os.geteuid() == 0 else {}),
        )
    try:
        found = url.set(host="127.0.0.1", port=port)
        deadline = time.monotonic() + 10
        while not accepts_connections(found):
            assert process.poll() is None, "PgBouncer ended"
            assert time.monotonic() < deadline, "PgBouncer accepts no connection"
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
