"""Which recorded model an adopted model is, and which version its aliases name."""

import shutil

import pytest
from adoption_helpers import GGUF, SAFETENSORS, adopt_scan, make_hub, names, scan
from conftest import a_model
from layouts import C1, C2, HuggingFace, Ollama, fill

from model_catalog import FileState
from model_catalog.upkeep import (
    adopt,
    register_path,
    relink_model,
)
from model_catalog.upkeep.store_sync import adoption

# They test files more than statements, which the slow tests run on PostgreSQL too.
pytestmark = pytest.mark.slow_with("asyncpg")

"""A whole file, by the package safetensors 0.8."""


@pytest.fixture
def hub(tmp_path):
    return make_hub(tmp_path)


async def test_an_alias_follows_its_ref(catalog, hub):
    """
    A ref to another commit moves its alias, and a deleted ref deletes it.
    """
    await adopt_scan(catalog, hub)
    refs = hub.repository("org/a") / "refs"
    refs.joinpath("main").write_text(C2)
    refs.joinpath("v1").unlink()

    done = await adopt_scan(catalog, hub)

    assert sorted(each.detail for each in done.changed) == ["alias main set", "alias v1 removed"]
    targets = {each.alias: each.version for each in await catalog.list_aliases("org/a", "hf")}
    assert targets == {"main": C2, "next": C2}
    assert (await adopt_scan(catalog, hub)).changed == ()


async def test_the_alias_of_an_unreadable_ref_is_kept(catalog, hub):
    """
    A damaged ref is a problem, and its target is unknown.
    """
    await adopt_scan(catalog, hub)
    hub.repository("org/a").joinpath("refs/main").write_text("../../etc/passwd")

    done = await adopt_scan(catalog, hub)

    assert (len(done.problems), done.changed) == (1, ())
    assert (await catalog.get_model("org/a", "hf", "main")).version == C1


async def test_an_alias_of_the_user_has_priority_over_a_ref(catalog, hub):
    """
    It is never moved, and the conflict is reported as a problem.
    """
    await adopt_scan(catalog, hub)
    await catalog.set_alias("org/a", "hf", "main", C2)

    done = await adopt_scan(catalog, hub)

    assert (await catalog.get_model("org/a", "hf", "main")).version == C2
    assert [("'main'" in problem.reason, problem.version) for problem in done.problems] == [
        (True, C1)
    ]
    assert done.changed == ()


async def test_an_export_keeps_the_aliases_of_a_store(catalog, hub, tmp_path):
    """
    After an import a ref still moves its alias.
    """
    await adopt_scan(catalog, hub)
    with (tmp_path / "out").open("w+") as stream:
        await catalog.export_catalog(stream)
        for model in await catalog.list_models():
            await catalog.remove_model(model.reference, model.provider)
        stream.seek(0)
        await catalog.import_catalog(stream)
    assert (await adopt_scan(catalog, hub)).changed == ()
    hub.repository("org/a").joinpath("refs/main").write_text(C2)

    done = await adopt_scan(catalog, hub)

    assert done.problems == ()
    assert (await catalog.get_model("org/a", "hf", "main")).version == C2


async def test_two_stores_can_have_models_of_the_same_name(catalog, tmp_path):
    """
    The reference of the second contains the path of its store. Later scans in any order keep it.
    """
    first, second = Ollama(tmp_path / "mine"), Ollama(tmp_path / "service")
    for store in (first, second):
        store.model("llama3", GGUF)

    await adopt(catalog, scan("ollama", first.root))
    done = await adopt(catalog, scan("ollama", second.root))

    other_reference = f"{second.root}/llama3"
    assert names(done.new) == [(other_reference, "latest")]
    for store in (second, first):
        again = await adopt(catalog, scan("ollama", store.root))
        assert (again.new, again.changed, again.gone, again.problems) == ((), (), (), ())
    shutil.rmtree(second.root / "manifests")
    gone = await adopt(catalog, scan("ollama", second.root))
    assert names(gone.gone) == [(other_reference, "latest")]


async def test_a_model_of_the_user_at_another_path_is_kept(catalog, hub, tmp_path):
    """
    A model with the same name at another path is another copy.
    """
    fill(tmp_path, mine__gguf=GGUF)
    await register_path(
        catalog, tmp_path / "mine.gguf", provider="hf", reference="org/b", version=C1
    )

    done = await adopt_scan(catalog, hub)

    assert names(done.new)[-1] == (f"{hub.root}/org/b", C1)
    mine = await catalog.get_model("org/b", "hf")
    assert (mine.local_path, mine.foreign) == (str(tmp_path / "mine.gguf"), False)


@pytest.mark.parametrize("below", ["", "/b.gguf"], ids=["folder", "file in the folder"])
async def test_a_model_that_the_user_recorded_in_a_store_stays_the_users_own(catalog, hub, below):
    """
    A row with the same name and path gets a state. One file of a folder keeps its path.
    """
    path = f"{hub.repository('org/b')}/snapshots/{C1}{below}"
    before = await catalog.register_model(
        a_model("org/b", version=C1, local_path=path, architecture="mine")
    )

    await adopt_scan(catalog, hub)
    again = await adopt_scan(catalog, hub)

    assert again.changed == ()
    model = await catalog.get_model("org/b", "hf")
    assert (model.store, model.foreign, model.architecture) == (None, False, "mine")
    assert (model.local_path, model.downloaded_at) == (path, before.downloaded_at)
    assert model.state is (FileState.UNCHECKED if below else FileState.PRESENT)
    assert [file.path for file in await catalog.list_files(model)] == ([] if below else ["b.gguf"])


async def test_a_model_that_was_added_stays_the_users_own(catalog, tmp_path):
    """
    Its list of files stays, and a scan still notices that a file has changed or is gone.
    """
    folder = tmp_path / "models"
    fill(folder / "m", config__json=b"{}", model__safetensors=SAFETENSORS, README__md=b"mine")
    path = folder / "m"
    await register_path(catalog, path, provider="local", reference="m", digest=True)
    before = await catalog.get_model("m", "local")

    first = await adopt(catalog, scan("directory", folder))
    same = await catalog.get_model("m", "local")
    (path / "model.safetensors").write_bytes(SAFETENSORS[:-1] + b"x")
    await adopt(catalog, scan("directory", folder))
    changed = await catalog.get_model("m", "local")

    assert (len(first.unchanged), first.new, first.changed) == (1, (), ())
    assert same.to_dict() == before.to_dict()
    assert (changed.store, changed.state) == (None, FileState.CHANGED)
    assert changed.digest == before.digest


async def test_a_models_folder_that_the_user_moved_is_followed(catalog, tmp_path):
    """
    A model of the user's own at a path that no longer exists gets the path at which it is found.
    """
    fill(tmp_path / "old/m", config__json=b"{}", model__safetensors=SAFETENSORS)
    await register_path(catalog, tmp_path / "old/m", provider="local", reference="m")
    (tmp_path / "old").rename(tmp_path / "new")

    await adopt(catalog, scan("directory", tmp_path / "new"))

    model = await catalog.get_model("m", "local")
    assert (model.local_path, model.store) == (str(tmp_path / "new/m"), None)
    assert model.state is FileState.PRESENT


async def test_a_moved_store_keeps_its_models(catalog, hub, tmp_path):
    """
    If the old path no longer exists, the models are the same and keep their tags.
    """
    await adopt_scan(catalog, hub)
    await catalog.tag_model("org/b", "hf", "Chat")
    moved = HuggingFace(hub.root.rename(tmp_path / "moved"))

    done = await adopt_scan(catalog, moved)

    assert (done.new, len(done.changed)) == ((), 3)
    model = await catalog.get_model("org/b", "hf")
    assert (model.store_root, model.tags) == (str(moved.root), ("Chat",))
    assert model.local_path.startswith(str(moved.root))
    assert (await adopt_scan(catalog, moved)).changed == ()


async def test_a_model_that_the_user_gives_another_path_leaves_its_store(catalog, hub, tmp_path):
    """
    The model in the store is then recorded as another model.
    """
    await adopt_scan(catalog, hub)
    fill(tmp_path, mine__gguf=GGUF)
    await catalog.update_model("org/b", "hf", local_path=str(tmp_path / "mine.gguf"))

    done = await adopt_scan(catalog, hub)

    mine = await catalog.get_model("org/b", "hf")
    assert (mine.local_path, mine.foreign) == (str(tmp_path / "mine.gguf"), False)
    assert (names(done.new), done.gone) == ([(f"{hub.root}/org/b", C1)], ())


async def test_a_relinked_model_does_not_become_missing(catalog, hub, tmp_path):
    """
    A scan no longer expects a relinked model in the store.
    """
    await adopt_scan(catalog, hub)
    away = hub.repository("org/b").rename(tmp_path / "away")
    await adopt_scan(catalog, hub)
    path = away / "snapshots" / C1
    await relink_model(catalog, "org/b", "hf", path=path)

    done = await adopt_scan(catalog, hub)

    assert (done.gone, done.new) == ((), ())
    model = await catalog.get_model("org/b", "hf")
    assert (model.local_path, model.state) == (str(path), FileState.PRESENT)
    assert model.foreign


async def test_an_alias_that_the_user_sets_during_the_adoption_is_kept(catalog, hub, monkeypatch):
    """
    It belongs to the user from that moment, whatever was read before.
    """
    await catalog.register_model(a_model("org/a", version="mine"))
    read = adoption.load_store_rows

    async def stored(*arguments):
        rows = await read(*arguments)
        await catalog.set_alias("org/a", "hf", "main", "mine")
        return rows

    monkeypatch.setattr(adoption, "load_store_rows", stored)
    await adopt_scan(catalog, hub)

    assert (await catalog.get_model("org/a", "hf", "main")).version == "mine"
