"""A PostgreSQL server for the tests: a given one, a local one, or a temporary cluster."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path

import psycopg
from sqlalchemy import URL, make_url

ENVIRONMENT = "MODEL_CATALOG_TEST_PG_URL"
LOCAL = URL.create("postgresql", "postgres", host="127.0.0.1", port=5432, database="postgres")


def dsn(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def accepts_connections(url: URL) -> bool:
    try:
        psycopg.connect(dsn(url), connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


def connection(url: URL) -> psycopg.Connection:
    """Connect to a database in autocommit; use it as a context manager, which closes it."""
    return psycopg.connect(dsn(url), autocommit=True)


def find_binary(name: str) -> str | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next(
        (found for folder in folders if (found := shutil.which(name, path=folder))),
        shutil.which(name),
    )


class Cluster:
    """
    A temporary cluster of local binaries; root runs it as the user postgres or nobody.

    With `primary` it is a streaming standby of another one, which must run.
    """

    def __init__(self, *settings: str, primary: "Cluster | None" = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="model-catalog-pg-"))
        self._process_user = {}
        if os.geteuid() == 0:
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = names.get("postgres") or names["nobody"]
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._process_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        data = self._folder / "data"
        if primary is None:
            command = [find_binary("initdb"), "-D", data, "-A", "trust", "-U", "postgres"]
            command += ["--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
        else:
            source = f"{dsn(primary.url)}?application_name=standby"
            command = [find_binary("pg_basebackup"), "-D", data, "-d", source, "-R", "--no-sync"]
            command += ["-c", "fast", "-X", "stream"]
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            **self._process_user,
        )
        self._command = [find_binary("postgres"), "-D", data, "-p", str(port), "-h", "127.0.0.1"]
        self._command += ["-k", self._folder]
        for setting in ("fsync=off", "max_connections=200", *settings):
            self._command += ["-c", setting]
        self.url = LOCAL.set(port=port)

    def add_file(self, name: str, text: str) -> Path:
        """Write a file into the folder of the data, readable by the server only."""
        path = self._folder / "data" / name
        path.write_text(text)
        path.chmod(0o600)
        if self._process_user:
            os.chown(path, self._process_user["user"], self._process_user["group"])
        return path

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        log = self._folder / "log"
        with log.open("ab") as file:
            self._server = subprocess.Popen(
                self._command, stdout=file, stderr=file, cwd=self._folder, **self._process_user
            )
        deadline = time.monotonic() + 30
        while not accepts_connections(self.url):
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends its connections with a message, SIGQUIT without one."""
        self._server.send_signal(how)
        self._server.wait(30)

    def remove(self) -> None:
        shutil.rmtree(self._folder)


@contextmanager
def throwaway_cluster(*settings: str, primary: Cluster | None = None) -> Iterator[Cluster]:
    """Run a temporary server and remove it afterwards."""
    cluster = Cluster(*settings, primary=primary)
    try:
        cluster.start()
        yield cluster
    finally:
        # The fast stop of a primary would wait for its standby.
        cluster.stop(signal.SIGQUIT)
        cluster.remove()


@contextmanager
def replay_paused(standby: URL) -> Iterator[None]:
    """Let a standby receive and not replay what its primary writes."""
    with connection(standby) as admin:
        admin.execute("SELECT pg_wal_replay_pause()")
        while admin.execute("SELECT pg_get_wal_replay_pause_state()").fetchone()[0] != "paused":
            time.sleep(0.005)
        try:
            yield
        finally:
            admin.execute("SELECT pg_wal_replay_resume()")


def wait_for_replay(primary: URL, standby: URL) -> None:
    """Wait until a standby has replayed what its primary has written."""
    with connection(primary) as writer, connection(standby) as reader:
        (end,) = writer.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        deadline = time.monotonic() + 30
        while not reader.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [end]).fetchone()[
            0
        ]:
            assert time.monotonic() < deadline, "the standby does not follow"
            time.sleep(0.005)


@contextmanager
def server() -> Iterator[URL | None]:
    """Yield the URL of a server on which databases can be created, or None."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        yield make_url(given)
    elif accepts_connections(LOCAL):
        yield LOCAL
    elif find_binary("initdb") and find_binary("postgres"):
        with throwaway_cluster() as cluster:
            yield cluster.url
    else:
        yield None


@contextmanager
def database(server: URL, name: str) -> Iterator[URL]:
    """Create a database on a server; drop it afterwards, with all connections to it."""
    name = f"model_catalog_{name}_{os.getpid()}"
    with psycopg.connect(dsn(server), autocommit=True) as admin:
        admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        # Faster, and these tests do not cut the power.
        admin.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        try:
            yield server.set(database=name)
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def table_locked(url: URL) -> Iterator[None]:
    """Lock the table `models` as another migration does: readers wait too."""
    with psycopg.connect(dsn(url)) as other:
        other.execute("LOCK TABLE models IN ACCESS EXCLUSIVE MODE")
        yield
        other.rollback()


def main(arguments: list[str]) -> int:
    """Run commands, separated by `--`, with the URL of a new database in place of `@URL@`."""
    with server() as found:
        if found is None:
            print("no PostgreSQL server and no server binaries were found", file=sys.stderr)
            return 1
        with database(found, "main") as url:
            target = url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
            for last, command in groupby(arguments, lambda word: word == "--"):
                if not last:
                    subprocess.run([word.replace("@URL@", target) for word in command], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
