"""Scans of a folder above a store or of one repository in it, and repositories without models."""

import json
import os
import shutil

import pytest
from adoption_helpers import names
from hostile_entries import GGUF, fifo, link, recorded_paths
from layouts import C1, C2, HuggingFace, Ollama, fill, write
from new_layouts import KaggleHub, ModelScope

from model_catalog import FileState, TooManyMissingError, open_catalog
from model_catalog.cli import main
from model_catalog.stores import detect_store
from model_catalog.stores.store_kinds import SCANNERS, locate_store
from model_catalog.upkeep import adopt, check_models, scan_store

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture
async def catalog(tmp_path):
    async with open_catalog(tmp_path / "catalog.db") as opened:
        yield opened


async def adopt_store(catalog, store, root):
    return await adopt(catalog, await scan_store(catalog, store, root))


def make_hub(root, *repositories):
    cache = HuggingFace(root)
    for name in repositories:
        cache.revision(name, C1, {"m.gguf": GGUF})
    return cache


def lm_studio(folder):
    fill(folder / "models", me___repo___m__gguf=GGUF)
    (folder / ".internal").mkdir()


def moved_lm_studio(folder):
    fill(folder.parent / "downloads", me___repo___m__gguf=GGUF)
    settings = json.dumps({"downloadsFolder": str(folder.parent / "downloads")})
    write(folder / "settings.json", settings)


FOLDERS_ABOVE = {
    "huggingface": (lambda folder: make_hub(folder / "hub", "org/m"), "hub"),
    "huggingface, only links": (
        lambda folder: (
            make_hub(folder / "disk", "org/m"),
            (folder / "hub").mkdir(),
            link(folder / "hub/models--org--m", folder / "disk/models--org--m"),
        ),
        "hub",
    ),
    "ollama": (lambda folder: Ollama(folder / "models").model("m", GGUF), "models"),
    "ollama, blobs elsewhere": (
        lambda folder: (
            Ollama(folder / "models").model("m", GGUF),
            (folder / "models/blobs").rename(folder / "big"),
            link(folder / "models/blobs", folder / "big"),
        ),
        "models",
    ),
    "lmstudio": (lm_studio, "models"),
    "lmstudio, downloads elsewhere": (moved_lm_studio, "../downloads"),
}


@pytest.mark.parametrize(("name", "case"), FOLDERS_ABOVE.items(), ids=FOLDERS_ABOVE)
async def test_a_folder_above_a_store_is_understood(tmp_path, catalog, name, case):
    """
    The store in it is scanned, also if the caller names the kind.
    """
    (make, below), store = case, name.partition(",")[0]
    folder = tmp_path / "program"
    folder.mkdir()
    make(folder)

    scans = [await scan_store(catalog, store, path) for path in (folder, folder / below)]

    assert detect_store(folder) == store
    assert locate_store(folder).path == os.path.normpath(folder / below)
    assert scans[0] == scans[1]
    assert [model.reference for model in scans[0].found] in (["org/m"], ["m"], ["me/repo"])


@pytest.mark.parametrize("store", ["huggingface", "ollama"])
def test_a_folder_with_another_content_is_no_store(tmp_path, store):
    """
    Only the kind that the caller names is looked for.
    """
    fill(tmp_path / "plain", hub___m__gguf=GGUF, models___m__gguf=GGUF)
    lm_studio(tmp_path / "lm")

    assert detect_store(tmp_path / "plain") == "directory"
    assert locate_store(tmp_path / "lm", store).path == str(tmp_path / "lm")
    assert locate_store(tmp_path / "lm", "directory").path == str(tmp_path / "lm")


@pytest.mark.parametrize("path", ["huggingface/hub", "models"])
def test_a_repository_of_the_hub_is_not_taken_for_one_of_another_program(tmp_path, path):
    """
    RamaLama has `huggingface/NAME` with refs, snapshots and blobs, and ModelScope has
    `models/OWNER--NAME` with snapshots.
    """
    make_hub(tmp_path / path, "org/m")

    assert detect_store(tmp_path) == "directory"


@AS_ROOT
def test_a_folder_of_another_user_does_not_lead_elsewhere(tmp_path):
    """
    A link and the settings of LM Studio count only if this user or root owns them.
    """
    hub = make_hub(tmp_path / "cache", "org/m").root
    (tmp_path / "above").mkdir()
    planted = link(tmp_path / "above/hub", hub)
    moved_lm_studio(tmp_path / "lm")
    folders = (tmp_path / "above", tmp_path / "lm")
    assert [detect_store(folder) for folder in folders] == ["huggingface", "lmstudio"]

    for path in (planted, tmp_path / "lm/settings.json"):
        os.chown(path, 65534, 65534, follow_symlinks=False)

    assert [detect_store(folder) for folder in folders] == ["directory"] * 2


async def test_one_repository_is_scanned_as_a_part_of_its_cache(tmp_path, catalog):
    """
    The other repositories of the cache are neither listed nor recorded as missing.
    """
    cache = make_hub(tmp_path / "hub", "org/a", "org/b")
    before = await adopt_store(catalog, "huggingface", cache.root)
    cache.revision("org/a", C2, {"m.gguf": GGUF + b"2"}, refs=())
    shutil.rmtree(cache.repository("org/b"))

    with recorded_paths() as opened:
        scanned = await scan_store(catalog, "huggingface", cache.repository("org/a"))
    report = await adopt(catalog, scanned)

    assert len(before.new) == 2
    assert (scanned.root, scanned.folder) == (str(cache.root), str(cache.repository("org/a")))
    assert [path for path in opened if "org--b" in str(path)] == []
    assert (names(report.new), report.gone) == ([("org/a", C2)], ())
    states = {(each.reference, each.state) for each in await catalog.list_models()}
    assert states == {("org/a", FileState.PRESENT), ("org/b", FileState.PRESENT)}
    assert {model.store_root for model in await catalog.list_models()} == {str(cache.root)}


async def test_a_revision_that_left_the_repository_is_missing(tmp_path, catalog):
    """
    Within the repository, the scan is as strict as that of the cache.
    """
    cache = make_hub(tmp_path / "hub", "org/a", "org/b")
    cache.revision("org/a", C2, {"m.gguf": GGUF + b"2"}, refs=())
    await adopt_store(catalog, "huggingface", cache.root)
    shutil.rmtree(cache.repository("org/a") / "snapshots" / C2)

    report = await adopt_store(catalog, "huggingface", cache.repository("org/a"))

    assert names(report.gone) == [("org/a", C2)]


async def test_the_guard_counts_the_models_of_the_scanned_repository(tmp_path, catalog):
    """
    A few lost revisions are not hidden by the many models of the cache, and many are guarded.
    """
    cache = make_hub(tmp_path / "hub", *(f"org/m{number}" for number in range(30)))
    for number in range(12):
        commit = f"{number:040x}"
        cache.revision("org/m0", commit, {"m.gguf": GGUF + b"%d" % number}, refs=())
    await adopt_store(catalog, "huggingface", cache.root)
    for number in range(12):
        shutil.rmtree(cache.repository("org/m0") / "snapshots" / f"{number:040x}")

    with pytest.raises(TooManyMissingError):
        await adopt_store(catalog, "huggingface", cache.repository("org/m0"))
    await adopt_store(catalog, "huggingface", cache.root)

    assert (await check_models(catalog, state=FileState.MISSING)).model_count == 12


@pytest.mark.parametrize("linked", [False, True], ids=["folder", "link"])
def test_a_repository_of_llama_cpp_keeps_its_provider(tmp_path, monkeypatch, capsys, linked):
    """
    The command knows the caches of the programs, so that no model is recorded twice.
    """
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE_", "LLAMA_", "OLLAMA_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    repository = make_hub(tmp_path / "llama", "org/m").repository("org/m")
    if linked:
        repository.rename(tmp_path / "disk")
        link(repository, tmp_path / "disk")

    database = ["--db", str(tmp_path / "c.db"), "--json"]
    assert main(["scan", *database, str(repository)]) == 0
    (store,) = json.loads(capsys.readouterr().out)["stores"]
    assert main(["ls", *database]) == 0
    (model,) = json.loads(capsys.readouterr().out)

    assert store["root"] == str(tmp_path / "llama")
    assert (model["provider"], model["reference"]) == ("llamacpp", "org/m")
    assert model["local_path"] == f"{repository}/snapshots/{C1}"


def fill_lm_studio(folder):
    fill(folder / ".lmstudio/models", me___a___m__gguf=GGUF, you___b___m__gguf=GGUF)
    return folder / ".lmstudio/models", "me/a", "you"


def fill_modelscope(folder):
    cache = ModelScope(folder / ".cache/modelscope")
    for name in ("me/a", "you/b"):
        cache.old_model(name, m__gguf=GGUF)
    return cache.root, "hub/models/me/a", "hub/models/you"


def fill_kagglehub(folder):
    cache = KaggleHub(folder / ".cache/kagglehub")
    for handle in ("me/a/gguf/small/1", "you/b/gguf/small/1"):
        cache.version(handle, m__gguf=GGUF)
    return cache.root, "models/me/a", "models/you"


PROGRAMS = {"LM Studio": fill_lm_studio, "ModelScope": fill_modelscope, "kagglehub": fill_kagglehub}


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_a_folder_in_a_default_store_is_scanned_as_a_part_of_it(
    tmp_path, monkeypatch, capsys, make
):
    """
    The models get the names that the program shows, and the others stay as they are.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MODELSCOPE_CACHE", "MS_CACHE_HOME", "KAGGLEHUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    store, scope, removed = make(tmp_path)
    database = ["--db", str(tmp_path / "c.db"), "--json"]
    main(["scan", *database, str(store)])
    (whole,) = json.loads(capsys.readouterr().out)["stores"]
    shutil.rmtree(store / removed)

    assert main(["scan", *database, str(store / scope)]) == 0

    (part,) = json.loads(capsys.readouterr().out)["stores"]
    assert (part["store"], part["root"]) == (whole["store"], str(store))
    assert part["folder"] == str(store / scope)
    assert len(whole["new"]) == 2
    assert (part["new"], part["changed"], part["gone"]) == ([], [], [])
    assert part["unchanged"] == [
        each["model"] for each in whole["new"] if each["local_path"].startswith(part["folder"])
    ]


def test_a_linked_repository_of_lm_studio_can_be_scanned_alone(tmp_path, monkeypatch, capsys):
    """
    The path of the link is in the store, whatever it leads to.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    store, scope, _ = fill_lm_studio(tmp_path)
    (store / scope).rename(tmp_path / "disk")
    link(store / scope, tmp_path / "disk")

    main(["scan", "--db", str(tmp_path / "c.db"), "--json", str(store / scope)])

    (part,) = json.loads(capsys.readouterr().out)["stores"]
    assert [each["model"] for each in part["new"]] == ["lmstudio:me/a@m.gguf"]


def test_the_summary_names_the_folder_that_was_scanned(tmp_path, capsys):
    """
    So do the JSON output and the counts of datasets.
    """
    cache = make_hub(tmp_path / "home/hub", "org/a", "org/b")
    write(cache.root / "datasets--org--d/blobs" / ("d" * 64), bytes(5000))
    database = ["--db", str(tmp_path / "c.db")]

    main(["scan", *database, str(tmp_path / "home")])
    above = capsys.readouterr()
    main(["scan", *database, "--json", str(cache.repository("org/a"))])
    (store,) = json.loads(capsys.readouterr().out)["stores"]

    assert f"huggingface, {cache.root}: 2 new" in above.err
    assert "1 dataset, 8.2 kB: not models" in above.err
    assert (store["root"], store["folder"]) == (str(cache.root), str(cache.repository("org/a")))
    assert store["other_repositories"] == []


def test_repositories_that_are_not_models_are_counted_apart(tmp_path):
    """
    They are neither models nor problems nor leftovers, and their bytes are not those of models.
    """
    cache = make_hub(tmp_path / "hub", "org/m")
    plain = SCANNERS["huggingface"](cache.root)
    for kind in ("datasets", "datasets", "spaces", "kernels"):
        repository = cache.root / f"{kind}--org--{len(list(cache.root.iterdir()))}"
        blob = write(repository / "blobs/x", bytes(5000))
        (repository / "snapshots/c").mkdir(parents=True)
        link(repository / "snapshots/c/x.parquet", "../../blobs/x")
        os.link(blob, repository / "snapshots/c/y.parquet")
        write(repository / "snapshots/c/model.safetensors", b"1")

    scanned = SCANNERS["huggingface"](cache.root)

    counts = [(each.kind, each.count, each.size_bytes) for each in scanned.other_repositories]
    assert counts == [("dataset", 2, 10002), ("kernel", 1, 5001), ("space", 1, 5001)]
    blocks = sum(path.stat().st_blocks for path in repository.rglob("*") if path.is_file()) * 512
    assert scanned.other_repositories[-2].disk_bytes < blocks
    assert (scanned.found, scanned.problems, scanned.leftovers) == (plain.found, (), ())
    assert scanned.disk_bytes == plain.disk_bytes


HOSTILE_REPOSITORIES = {
    "a file": lambda path, _: write(path),
    "a FIFO": lambda path, _: fifo(path),
    "a loop": lambda path, _: link(path, path),
    "a link to a device": lambda path, _: link(path, "/dev/zero"),
    "a link to the files of the kernel": lambda path, _: link(path, "/proc/self"),
    "a link to itself in it": lambda path, _: link(fill(path, x=b"") / "blobs", "."),
    "a link to a large folder": link,
    "a link to a large folder in it": lambda path, disk: link(
        write(path / "x/y").parent / "z", disk
    ),
}


@pytest.mark.parametrize("plant", HOSTILE_REPOSITORIES.values(), ids=HOSTILE_REPOSITORIES)
def test_a_hostile_dataset_is_only_counted(tmp_path, plant):
    """
    Nothing outside is listed, and nothing is opened.
    """
    cache = make_hub(tmp_path / "hub", "org/m")
    fill(tmp_path / "disk", **{f"f{number}": b"private" for number in range(50)})
    plant(cache.root / "datasets--org--x", tmp_path / "disk")

    with recorded_paths() as opened:
        scanned = SCANNERS["huggingface"](cache.root)

    assert [path for path in opened if not str(path).startswith(str(cache.root))] == []
    assert [(each.count, each.size_bytes) for each in scanned.other_repositories] == [(1, 0)]
    assert (len(scanned.found), scanned.problems) == (1, ())


def test_blobs_of_a_dataset_may_be_on_another_disk(tmp_path):
    """
    Of the folder behind the link, only names of blobs count, and no subfolder is listed.
    """
    cache = make_hub(tmp_path / "hub", "org/m")
    fill(tmp_path / "disk", letter__txt=b"private", deep___x=b"private")
    write(tmp_path / "disk" / ("d" * 64), b"12345")
    write(cache.root / "datasets--org--x/refs/main", b"")
    link(cache.root / "datasets--org--x/blobs", tmp_path / "disk")

    with recorded_paths() as opened:
        scanned = SCANNERS["huggingface"](cache.root)

    assert [each.size_bytes for each in scanned.other_repositories] == [5]
    assert [path for path in opened if not str(path).startswith(str(cache.root))] == [
        str(tmp_path / "disk")
    ]


def test_a_cache_with_only_datasets_is_detected(tmp_path):
    """
    A dataset itself is a part of a cache too.
    """
    write(tmp_path / "hub/datasets--org--d/blobs/x", b"1")

    assert detect_store(tmp_path / "hub") == "huggingface"
    assert detect_store(tmp_path / "hub/datasets--org--d") == "huggingface"
    scanned = SCANNERS["huggingface"](tmp_path / "hub/datasets--org--d")
    assert [each.count for each in scanned.other_repositories] == [1]
