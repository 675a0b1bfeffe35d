"""
Pull models from a loopback hub in child processes.

huggingface_hub reads its environment once in a process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from forked_commands import run_command
from loopback_hub import LoopbackHub

COMMIT = "a" * 40
OTHER_COMMIT = "b" * 40
TOKEN = "hf_" + "s3cret" * 5
GGUF = b"GGUF\x03\x00\x00\x00" + bytes(16)
FILES = {
    "model-Q4_K_M.gguf": GGUF + bytes(200_000),
    "config.json": b'{"model_type": "llama"}',
    "README.md": b"about",
}
QUANTIZATIONS = {"m-Q4_K_M.gguf": GGUF, "m-Q8_0.gguf": GGUF + bytes(100), "README.md": b"about"}

_PROGRAM = """
import asyncio, json, sys
from model_catalog import open_catalog
from model_catalog.downloads import download_from_hub

async def main():
    async with open_catalog(sys.argv[1]) as catalog:
        print(json.dumps(await run(catalog)))

{code}
asyncio.run(main())
"""


class Puller:
    """Starts `model-catalog pull` and programs with one hub, one database and one cache."""

    def __init__(self, hub: LoopbackHub, target: str, folder: Path) -> None:
        self.hub = hub
        self.target = target
        self.cache = folder / "home" / "hub"
        self.env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(self.cache.parent),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }

    @property
    def repository(self) -> Path:
        return self.cache / "models--o--m"

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a pull."""
        command = ("-m", "model_catalog", "pull", *words, "--db", self.target)
        return self._start(*command)

    def pull(self, *words: str) -> tuple[int, str]:
        """Pull, and return the exit code and what was printed."""
        code, printed, errors = run_command("pull", *words, "--db", self.target, env=self.env)
        return code, printed + errors

    def run(self, code: str, **variables: str) -> object:
        """Run `async def run(catalog)` of a program, and return its result."""
        self.env.update(variables)
        process = self.start_program(code)
        printed, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return json.loads(printed.splitlines()[-1])

    def start_program(self, code: str) -> subprocess.Popen[str]:
        """Start a program that prints the result of its `async def run(catalog)`."""
        return self._start("-c", _PROGRAM.replace("{code}", code), self.target)

    def download_by_the_library(self) -> None:
        """Download the whole repository as another program does."""
        code = "from huggingface_hub import snapshot_download; snapshot_download('o/m')"
        code_of_exit, printed = finish(self._start("-c", code))
        assert code_of_exit == 0, printed

    def _start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return the exit code, and what it has printed to both streams."""
    printed, errors = process.communicate(timeout=60)
    return process.returncode, printed + errors
