"""Install versions of model-catalog side by side, for a comparison."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Final

from benchmarks.contenders import Installation

ROOT: Final = Path(__file__).parents[2]
_MIGRATE: Final = (
    "import asyncio, sys, model_catalog; asyncio.run(model_catalog.upgrade(sys.argv[1]))"
)
_PACKAGE_SOURCES: Final = ("LICENSE", "README.md", "migrations", "pyproject.toml", "src")


class InstallationError(Exception):
    """A version could not be installed; the message has pip's or git's own words."""


def install_version(source: str, label: str, folder: Path) -> Installation:
    """
    Make a version of model-catalog usable by child processes.

    `source` is a virtual environment or its `python`, a wheel, a checkout, a folder that contains
    `model_catalog`, or a git revision of this repository. Wheels, checkouts and revisions are
    installed without their dependencies into `folder`.
    """
    path = Path(source)
    if path.joinpath("bin", "python").exists():
        return Installation(label, str(path.absolute() / "bin" / "python"))
    if path.is_file() and os.access(path, os.X_OK):
        return Installation(label, str(path.absolute()))
    if path.joinpath("model_catalog", "__init__.py").exists():
        return Installation(label, sys.executable, str(path.absolute()))
    if path.suffix == ".whl":
        return _install(path, label, folder)
    if path.joinpath("pyproject.toml").exists():
        return _install(_copy_checkout(path, folder / f"{label}-source"), label, folder)
    return _install(_export_revision(source, folder / f"{label}-source"), label, folder)


def child_environment(installation: Installation | None) -> Mapping[str, str]:
    """The environment variables of a process that runs benchmark code on an installation."""
    if installation is None:
        return os.environ
    paths = [installation.package_folder, str(ROOT)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        # Both versions get the same order in sets and the same collisions in dicts.
        "PYTHONHASHSEED": "0",
    }


def migrate(target: str, installation: Installation | None) -> None:
    """Upgrade a database to the newest revision that the installation knows, in a process."""
    _run(
        [
            sys.executable if installation is None else installation.python,
            *("-P", "-c", _MIGRATE, target),
        ],
        environment=child_environment(installation),
    )


def describe_installation(installation: Installation) -> str:
    """One line that names the folder of the package that the processes import."""
    code = "import model_catalog; print(model_catalog.__file__)"
    done = subprocess.run(
        [installation.python, "-P", "-c", code],
        env=child_environment(installation),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InstallationError(_last_line(done.stderr))
    return f"{installation.label}: {Path(done.stdout.strip()).parent} ({installation.python})"


def _install(source: Path, label: str, folder: Path) -> Installation:
    target = folder / label
    options = ("--quiet", "--no-deps", "--disable-pip-version-check", "--target", str(target))
    _run([sys.executable, "-m", "pip", "install", *options, str(source)])
    return Installation(label, sys.executable, str(target))


def _copy_checkout(checkout: Path, folder: Path) -> Path:
    # setuptools would otherwise build in the checkout, and pack what an earlier build left there.
    folder.mkdir()
    for name in _PACKAGE_SOURCES:
        source = checkout / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("*.egg-info", "__pycache__")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


def _export_revision(revision: str, folder: Path) -> Path:
    commit = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    if subprocess.run(commit, capture_output=True, check=False).returncode:
        raise InstallationError(
            f"{revision!r} is not a virtual environment, a wheel, a checkout, a folder that"
            " contains model_catalog, or a git revision of this repository"
        )
    archive = _run(["git", "-C", str(ROOT), "archive", "--format=tar", revision])
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    if done.returncode:
        raise InstallationError(f"{command[0]}: {_last_line(done.stderr.decode(errors='replace'))}")
    return done.stdout


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it failed without a message"])[-1]
