"""Which changes each call that writes tells the hook `on_change` of."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
from conftest import a_model
from public_calls import FILE, WRITES, fill

import model_catalog
from model_catalog import FileState, HostRegistry, open_catalog
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.downloads import get_or_download, plan_deletion
from model_catalog.execution.observation.changed_rows import UNREPORTED_FIELDS, is_declared
from model_catalog.mapping.tables import Model
from model_catalog.upkeep import adopt, check_models, register_path, scan_store

PACKAGE = Path(model_catalog.__file__).parent

# Each write of tests/public_calls.py, in its order, on the model that `fill` records. The field
# `downloaded_at` is left out: it changes only if the second has changed.
EVENTS = {
    "register_inspected": [("updated", ("download_count", "inventoried_at"))],
    "save_check_results": [("state_changed", ("state",))],
    "save_file_digest": [],
    "save_inspection": [("updated", ("verified_at",))],
    "save_store_sync": [],
    "import_catalog": [
        (
            "updated",
            (
                "aliases",
                "digest",
                "download_count",
                "files",
                "inventoried_at",
                "local_path",
                "tags",
                "verified_at",
            ),
        ),
        ("state_changed", ("state",)),
    ],
    "pin_model": [("updated", ("pinned_at",))],
    "record_use": [],
    "register_model": [("updated", ("download_count", "local_path"))],
    "register_models": [("updated", ("download_count",))],
    "relocate": [("updated", ("local_path",))],
    "rename_model": [("updated", ("version",)), ("updated", ("version",))],
    "set_alias": [("updated", ("aliases",))],
    "tag_model": [("updated", ("tags",))],
    "transaction": [("updated", ("download_count", "local_path"))],
    "unpin_model": [("updated", ("pinned_at",))],
    "untag_model": [],
    "update_model": [("updated", ("license",))],
    "remove_alias": [("updated", ("aliases",))],
    "remove_model": [("removed", ())],
}


@pytest.fixture
def seen() -> list:
    return []


@pytest.fixture
async def catalog(database, seen):
    async with open_catalog(database.target, on_change=seen.extend) as found:
        yield found


async def test_each_write_tells_of_its_changes(catalog, seen):
    """
    Every call that writes is in the table, with the kinds and the fields of its changes.
    """
    await fill(catalog)
    found = {}
    for name, call in WRITES.items():
        seen.clear()
        await call(catalog)
        found[name] = [
            (each.kind, tuple(name for name in each.fields if name != "downloaded_at"))
            for each in seen
        ]
        assert {(each.provider, each.reference, each.host) for each in seen} <= {("hf", "m", "")}

    assert found == EVENTS


@pytest.mark.slow
def test_every_operation_that_writes_states_what_it_changes():
    """
    Each function that is passed to `write` or `write_alone` is declared.
    """
    undeclared = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            if call.func.id in ("write", "write_alone") and call.args:
                name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
                module = import_module(name)
                for node in ast.walk(call.args[0]):
                    function = getattr(module, getattr(node, "id", ""), None)
                    if function is not None and not is_declared(function):
                        undeclared.append(f"{name}: {node.id}")

    assert undeclared == []


def test_no_field_is_left_out_by_accident():
    """
    The fields whose changes are not told are columns of the table.
    """
    assert set(Model.__table__.columns.keys()) >= UNREPORTED_FIELDS


async def test_a_check_tells_of_changed_states_only(catalog, seen, tmp_path):
    """
    A first check finds one model present and one missing; a second one changes nothing.
    """
    (tmp_path / "m.gguf").write_bytes(b"x")
    await catalog.register_model(a_model("there", local_path=str(tmp_path / "m.gguf")))
    await catalog.register_model(a_model("gone", local_path=str(tmp_path / "gone.gguf")))
    seen.clear()

    await check_models(catalog, force=True)
    states = {each.reference: (each.old_state, each.new_state) for each in seen}
    assert {each.kind for each in seen if each.fields != ("mount_point",)} == {"state_changed"}
    assert states == {
        "there": (FileState.UNCHECKED, FileState.PRESENT),
        "gone": (FileState.UNCHECKED, FileState.MISSING),
    }

    seen.clear()
    await check_models(catalog, force=True)
    assert seen == []


async def test_a_scan_tells_of_what_it_adds_changes_and_misses(catalog, seen, tmp_path):
    """
    Models of a folder are registered by `adopt`; a scan finds one missing that was deleted.
    """
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + bytes(60))

    await adopt(catalog, await scan_store(catalog, "directory", tmp_path))
    assert [each.kind for each in seen] == ["registered", "registered"]

    seen.clear()
    await adopt(catalog, await scan_store(catalog, "directory", tmp_path))
    assert seen == []
    (tmp_path / "b.gguf").unlink()
    await adopt(catalog, await scan_store(catalog, "directory", tmp_path))
    assert [(each.kind, each.new_state) for each in seen] == [("state_changed", FileState.MISSING)]


async def test_an_eviction_tells_of_the_state_and_of_the_removal(catalog, seen, tmp_path):
    """
    A model is first recorded as missing, and then removed. A download registers it again.
    """
    path = tmp_path / "m.gguf"

    async def download(_progress=None) -> Path:
        path.write_bytes(make_gguf("bert", context_length=512))
        return path

    await get_or_download(catalog, "hf:m", download, root=tmp_path)
    assert seen[0].kind == "registered"

    seen.clear()
    plan = await plan_deletion(catalog, ["hf:m"])
    await plan.execute(catalog)
    assert [each.kind for each in seen] == ["state_changed", "removed"]
    assert not path.exists()


async def test_the_removal_of_a_host_tells_of_its_models(database, seen):
    """
    The models of another host are told with the name of that host.
    """
    async with open_catalog(database.target, host="gpu-01") as other:
        await other.register_model(a_model("m"))
    async with open_catalog(database.target, host="gpu-02", on_change=seen.extend) as catalog:
        registry = HostRegistry(catalog)
        await registry.register_host("gpu-01")
        await registry.remove_host("gpu-01", models="delete")

    assert [(each.kind, each.reference, each.host) for each in seen] == [("removed", "m", "gpu-01")]


async def test_an_alias_that_moves_changes_both_models(catalog, seen):
    """
    The model that loses an alias and the one that gets it are told, with the field `aliases`.
    """
    for version in ("v1", "v2"):
        await catalog.register_model(a_model("m", version=version))
    await catalog.set_alias("m", "hf", "stable", version="v1")
    seen.clear()

    await catalog.set_alias("m", "hf", "stable", version="v2")
    assert [(each.version, each.fields) for each in seen] == [
        ("v1", ("aliases",)),
        ("v2", ("aliases",)),
    ]


async def test_removed_versions_are_told_one_by_one(catalog, seen):
    """
    `remove_model` without a version tells of each version.
    """
    await catalog.register_models([a_model("m", version=each) for each in ("v1", "v2")])
    seen.clear()

    await catalog.remove_model("m", "hf")
    assert [(each.kind, each.version) for each in seen] == [("removed", "v1"), ("removed", "v2")]


async def test_a_registration_with_files_tells_once(catalog, seen, tmp_path):
    """
    The list of files is a field; equal files are no change of it.
    """
    await catalog.register_model(a_model("m"), [FILE])
    await catalog.register_model(a_model("m"), [FILE])
    assert [each.kind for each in seen] == ["registered", "updated"]
    assert "files" not in seen[1].fields

    (tmp_path / "n.gguf").write_bytes(b"GGUF" + bytes(60))
    await register_path(catalog, tmp_path / "n.gguf", reference="n", provider="hf")
    assert (seen[2].kind, seen[2].reference) == ("registered", "n")
