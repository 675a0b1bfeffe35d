"""Fills a PostgreSQL database with the models of many hosts, for tests and benchmarks."""

from __future__ import annotations

from typing import Final

import psycopg

REFERENCES_PER_MODEL: Final = 1.5
"""How many references the fleet has for each model of a host: a reference is on most hosts."""

_INSERT_MODELS: Final = """
INSERT INTO models (
    host, provider, reference, version, local_path, size_bytes, downloaded_at, claimed_format,
    claimed_architecture, claimed_quantization, claimed_license, claimed_context_length,
    claimed_parameter_count, reference_folded, digest, state, checked_at, mount_point,
    inventoried_at, store, store_root, claimed_kind, last_used_at
)
SELECT
    'gpu-' || lpad(host::text, 4, '0'), 'hf', name, md5(name), '/srv/models/hub/' || name,
    4000000000 + number * 1000, 1760000000 + (host * 10000 + number) %% 5000000, 'gguf', 'llama',
    'Q4_K_M', 'apache-2.0', 131072, 8000000000, lower(name), 'sha256:' || md5(name) || md5(name),
    'present', 1764000000, '/srv', 1764000000, 'huggingface', '/srv/models/hub', 'model',
    1764000000 + (host * 7 + number) %% 100000
FROM generate_series(0, %(hosts)s - 1) AS host,
    generate_series(0, %(models)s - 1) AS number,
    LATERAL (
        SELECT (host * 97 + number) %% %(references)s AS reference_number
    ) AS numbered,
    LATERAL (
        SELECT 'organisation-' || reference_number %% 97 || '/Model-' || reference_number
            || '-Instruct-GGUF' AS name
    ) AS named
ORDER BY number, host
"""
_INSERT_HOSTS: Final = """
INSERT INTO model_hosts (
    name, address, labels, ssh_user, ssh_host, ssh_port, ssh_key_path, capacity_bytes, free_bytes,
    registered_at_ms, heartbeat_at_ms
)
SELECT 'gpu-' || lpad(host::text, 4, '0'), 'gpu-' || host || '.lan', '{"gpu": "h100"}', 'models',
    '10.0.0.' || host %% 256, 22, '/home/models/.ssh/id_ed25519', 4000000000000, 900000000000, 0,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint
FROM generate_series(0, %(hosts)s - 1) AS host
"""


def host_name(number: int) -> str:
    """Return the name of a host of `insert_fleet`."""
    return f"gpu-{number:04}"


def reference_name(number: int) -> str:
    """Return a reference that hosts of `insert_fleet` have."""
    return f"organisation-{number % 97}/Model-{number}-Instruct-GGUF"


def insert_fleet(dsn: str, *, hosts: int, models: int) -> None:
    """Insert hosts, and this number of models for each of them. The rows are mixed on the disk."""
    counts = {
        "hosts": hosts,
        "models": models,
        "references": max(1, int(models * REFERENCES_PER_MODEL)),
    }
    with psycopg.connect(dsn, autocommit=True) as raw:
        # VACUUM marks no page as visible to all before the commit of its rows is on the disk.
        raw.execute("SET synchronous_commit = on")
        raw.execute(_INSERT_MODELS, counts)
        raw.execute(_INSERT_HOSTS, counts)
        raw.execute("VACUUM ANALYZE models")
        raw.execute("VACUUM ANALYZE model_hosts")
