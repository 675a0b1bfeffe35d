"""The package contains the migrations once and type-checks in every kind of installation."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ("LICENSE", "README.md", "migrations", "pyproject.toml", "src")
SERVICE = '''
"""A service that uses the public names."""

from pathlib import Path
from typing import assert_type

from model_catalog import Model, ModelCatalog, open_catalog, sync
from model_catalog.upkeep import CheckReport, check_models


async def newest(catalog: ModelCatalog) -> Model | None:
    found = await catalog.find_model("org/name", "hf")
    assert_type(found, Model | None)
    return found


async def main() -> None:
    async with open_catalog(Path("catalog.db")) as catalog:
        model = Model(reference="org/name", provider="hf", local_path="/m/a.gguf", size_bytes=1)
        assert_type(await catalog.register_model(model), Model)
        await check_models(catalog)
        await newest(catalog)


def report() -> CheckReport:
    with sync.open_catalog(Path("catalog.db")) as catalog:
        assert_type(catalog.count_models(), int)
        return catalog.run(check_models)
'''


def run(*words, cwd):
    """Run a command. Its output is the message when it fails."""
    words = [str(word) for word in words]
    done = subprocess.run(words, check=False, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what the package is built from, so that builds do not write to the checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_service_type_checks_against_an_installed_package(checkout, tmp_path):
    """
    mypy --strict and pyright's strict mode report no error in a service, whether the package is
    installed from its files or as an editable package.
    """
    pytest.importorskip("mypy")
    pytest.importorskip("pyright")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile")
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "service.py").write_text(SERVICE)
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))

    checked = ("service.py", "--strict", "--config-file=", f"--python-executable={python}")
    # The second installation replaces the first one, and its dependencies are the same.
    for options in ((), ("--no-deps", "-e")):
        run(*install, *options, checkout, cwd=tmp_path)
        mypy = run(sys.executable, "-m", "mypy", *checked, cwd=folder)
        pyright = run(sys.executable, "-m", "pyright", "--pythonpath", python, cwd=folder)

        assert mypy.strip() == "Success: no issues found in 1 source file"
        assert "0 errors, 0 warnings" in pyright


def test_the_sdist_and_its_wheel_contain_the_migrations_once(checkout, tmp_path):
    """Every file of migrations/ is in the package model_catalog.migrations and nowhere else."""
    pytest.importorskip("build")
    run(sys.executable, "-m", "build", "--outdir", tmp_path, checkout, cwd=tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")

    with tarfile.open(sdist) as archive:
        packed = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
        links = [member.name for member in archive if member.issym() or member.islnk()]
    with zipfile.ZipFile(wheel) as archive:
        installed = archive.namelist()

    sources = ROOT / "migrations"
    files = {f"{path.relative_to(sources)}" for path in sources.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert {"script.py.mako", "versions/__init__.py"} < files
    assert links == []
    for folder, names in (("src/model_catalog", packed), ("model_catalog", installed)):
        assert f"{folder}/py.typed" in names
        inside = {name for name in names if name.startswith(f"{folder}/migrations/")}
        assert {f"{folder}/migrations/{name}" for name in files} <= inside
        # Another copy, for example one at the top level, would also be named like a revision.
        assert len([name for name in names if "0001_create_hive_table" in name]) == 1
