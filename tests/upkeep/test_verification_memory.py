"""The memory that a verification of very many tensors needs."""

import json
import os
import subprocess
import sys

import pytest

from model_catalog import open_catalog
from model_catalog.upkeep import register_path

TENSORS = 100_000
PROGRAM = """if True:
    import sys
    from model_catalog.cli import main
    try:
        main()
    finally:
        # ru_maxrss would include the memory that the parent had at the fork.
        peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
        print("peak", int(peak[0].split()[1]) // 1024 if peak else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "in reverse order"])
async def test_verifying_100_000_tensors_needs_less_than_64_mib(tmp_path, order):
    """The limit is for the whole process, of which the interpreter and SQLAlchemy take 58 MiB."""
    header = json.dumps(
        {
            f"model.layers.{i // 2500}.mlp.experts.{i % 2500}.down_proj.weight": {
                "dtype": "F32",
                "shape": [],
                "data_offsets": [4 * i, 4 * i + 4],
            }
            for i in range(TENSORS)[::order]
        }
    ).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * TENSORS))
    async with open_catalog(tmp_path / "c.db") as catalog:
        await register_path(catalog, path, provider="local", reference="m")

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "verify", "--level", "structure"],
        env={**os.environ, "MODEL_CATALOG_URL": str(tmp_path / "c.db")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "ok " in done.stdout
    assert int(done.stdout.split("peak")[1]) < 64
