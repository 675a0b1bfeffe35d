"""Rows of several hosts, written by a plain driver."""

import time


def insert_model(database, host: str, reference: str, version: str = "", **columns) -> None:
    """Insert a model of a provider `hf` for a host."""
    row = {
        "host": host,
        "provider": "hf",
        "reference": reference,
        "version": version,
        "local_path": f"/models/{reference}",
        **columns,
    }
    marks = ", ".join("?" * len(row))
    database.run(f"INSERT INTO models ({', '.join(row)}) VALUES ({marks})", *row.values())


def insert_host(database, name: str, age_s: float | None = 0, **columns) -> None:
    """Insert a host whose last heartbeat is `age_s` seconds old; None is no heartbeat."""
    row = {
        "name": name,
        "registered_at_ms": 1,
        "heartbeat_at_ms": None if age_s is None else int((time.time() - age_s) * 1000),
        **columns,
    }
    marks = ", ".join("?" * len(row))
    database.run(f"INSERT INTO model_hosts ({', '.join(row)}) VALUES ({marks})", *row.values())
