"""`model_catalog.files` and `model_catalog.stores` export their public names."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ["model_catalog.files", "model_catalog.stores"]


def run_python(code):
    """Run code in a new interpreter and return what it prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_can_be_imported(package):
    """
    Each name in `__all__` is an object of the package, and `dir()` lists exactly these names.
    """
    module = import_module(package)

    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []
    assert dir(module) == sorted(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    """
    The message names the package and the attribute.
    """
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'unknown'"):
        _ = import_module(package).unknown


def test_functions_are_imported_from_the_package():
    """
    Users import them from the package and need not know the module of each.
    """
    from model_catalog.files import describe_model, file_digest, find_model_files, read_header
    from model_catalog.stores import SCANNERS, default_roots, detect_store

    functions = [describe_model, file_digest, find_model_files, read_header]
    functions += [default_roots, detect_store, *SCANNERS.values()]
    assert all(callable(function) for function in functions)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_import_of_all_names_imports_neither_sqlalchemy_nor_cryptography(package):
    """
    SQLAlchemy is slow to import, and cryptography is an optional dependency.
    """
    loaded = run_python(
        "import json, sys\n"
        f"from {package} import *\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )

    assert {"sqlalchemy", "aiosqlite", "alembic", "cryptography"}.isdisjoint(loaded)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_import_of_the_package_imports_none_of_its_modules(package):
    """
    A module is imported when one of its names is first used, which keeps startup fast.
    """
    loaded = run_python(
        f"import json, sys\nimport {package}\nprint(json.dumps(sorted(sys.modules)))\n"
    )

    assert [name for name in loaded if name.startswith(f"{package}.")] == []
