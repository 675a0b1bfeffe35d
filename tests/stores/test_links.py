"""Links that leave a store: which of them a scan follows, and what it records of such models."""

import os

import pytest
from hostile_entries import GGUF, fifo, link, on_open, recorded_paths
from layouts import C1, HuggingFace, Ollama, fill, sha256, write

from model_catalog.stores.store_kinds import SCANNERS

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
OTHER_USER = 65534


@pytest.fixture
def disk(tmp_path):
    """A folder outside of every store, as on another disk."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def move(path, disk):
    """Move a file or a folder to another disk, and put a link in its place."""
    moved = disk / path.name
    path.rename(moved)
    return link(path, moved)


def give_away(path):
    """Give a file, a folder or a link to another user."""
    os.chown(path, OTHER_USER, OTHER_USER, follow_symlinks=False)
    return path


def content(scan):
    """Return what a move of files does not change: not the time of the last change of status."""
    models = [
        (each.reference, each.version, each.aliases, each.local_path, each.folder, each.reasons)
        for each in scan.found
    ]
    files = [
        (file.path, file.size_bytes, file.digest, file.identity)
        for each in scan.found
        for file in each.files
    ]
    return models, files, scan.problems, scan.leftovers


def make_hub(tmp_path):
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF, "x/y.json": b"{}"}, tree={"m.gguf": GGUF})
    return cache


def make_ollama(tmp_path):
    store = Ollama(tmp_path / "models")
    store.model("m", GGUF)
    return store


HUB_PARTS = {
    "repository": lambda repo: repo,
    "blobs": lambda repo: repo / "blobs",
    "a blob": lambda repo: repo / "blobs" / sha256(GGUF),
    "refs": lambda repo: repo / "refs",
    "trees": lambda repo: repo / "trees",
}


@pytest.mark.parametrize("part", HUB_PARTS.values(), ids=HUB_PARTS)
def test_a_part_of_a_hub_cache_may_be_on_another_disk(tmp_path, disk, part):
    """
    The models are recorded exactly as before the move.
    """
    cache = make_hub(tmp_path)
    before = SCANNERS["huggingface"](cache.root)

    moved = move(part(cache.repository("org/m")), disk)

    assert content(SCANNERS["huggingface"](cache.root)) == content(before)
    assert before.found[0].is_complete
    refused = SCANNERS["huggingface"](cache.root, follow_links=False)
    is_blob = moved.name == sha256(GGUF)
    reported = tmp_path / f"hub/models--org--m/snapshots/{C1}/m.gguf" if is_blob else moved
    assert str(reported) in {problem.path for problem in refused.problems}


def test_a_repository_and_its_blobs_may_be_on_two_disks(tmp_path, disk):
    """
    The second link is in the folder to which the first one leads.
    """
    cache = make_hub(tmp_path)
    before = SCANNERS["huggingface"](cache.root)
    (tmp_path / "second").mkdir()

    move(cache.repository("org/m") / "blobs", tmp_path / "second")
    move(cache.repository("org/m"), disk)

    assert SCANNERS["huggingface"](cache.root) == before


@pytest.mark.parametrize("parts", [["blobs"], ["manifests"], ["blobs", "manifests"]], ids=str)
def test_a_part_of_an_ollama_store_may_be_on_another_disk(tmp_path, disk, parts):
    """
    The models are recorded exactly as before the move.
    """
    store = make_ollama(tmp_path)
    before = SCANNERS["ollama"](store.root)

    for part in parts:
        move(store.root / part, disk)

    assert SCANNERS["ollama"](store.root) == before
    assert SCANNERS["ollama"](store.root, follow_links=False).found == ()


def test_a_blob_of_ollama_may_be_on_another_disk(tmp_path, disk):
    """
    Its digest is still the one in its name.
    """
    store = make_ollama(tmp_path)
    before = SCANNERS["ollama"](store.root)

    move(store.root / f"blobs/sha256-{sha256(GGUF)}", disk)

    assert content(SCANNERS["ollama"](store.root)) == content(before)


@pytest.mark.parametrize("store", ["directory", "lmstudio", "llamacpp"])
def test_a_file_may_be_elsewhere(tmp_path, disk, store):
    """
    `lms import --symbolic-link` makes such a link. The path of the model is that of the link.
    """
    target = write(disk / "data/blob", GGUF)
    folder = tmp_path / "models"
    path = folder / "m.gguf" if store == "llamacpp" else folder / "me/repo/m.gguf"
    path.parent.mkdir(parents=True)
    link(path, target)

    (model,) = SCANNERS[store](folder).found

    assert (model.local_path, model.size_bytes) == (str(path), len(GGUF))
    assert model.files[0].identity == (target.stat().st_dev, target.stat().st_ino)
    assert [each.reason for each in SCANNERS[store](folder, follow_links=False).problems] == [
        "it leads out of the store"
    ]


def test_lm_studio_and_ollama_share_a_blob(tmp_path):
    """
    The bytes are counted once.
    """
    store = make_ollama(tmp_path)
    blob = store.root / f"blobs/sha256-{sha256(GGUF)}"
    fill(tmp_path / "lm/me/repo", README__md=b"")
    link(tmp_path / "lm/me/repo/m.gguf", blob)

    (linked,) = SCANNERS["lmstudio"](tmp_path / "lm").found
    (model,) = SCANNERS["ollama"](store.root).found

    assert linked.files[0].identity in {file.identity for file in model.files}


@pytest.mark.parametrize("files", ["m__gguf", "config__json"])
def test_a_repository_of_lm_studio_may_be_elsewhere(tmp_path, disk, files):
    """
    Its folder is listed, and its subfolders only if it is a model in the format of transformers.
    """
    fill(disk / "m", **{files: GGUF}, model__safetensors=b"", deep___deep__gguf=GGUF)
    (tmp_path / "models/me").mkdir(parents=True)
    path = link(tmp_path / "models/me/repo", disk / "m")

    with recorded_paths() as opened:
        scanned = SCANNERS["lmstudio"](tmp_path / "models")

    assert {model.folder.removesuffix("/deep") for model in scanned.found} == {str(path)}
    assert {model.reference for model in scanned.found} == {"me/repo"}
    assert (str(disk / "m/deep") in opened) == (files == "config__json")


NO_MODELS = {
    "directory": lambda models: models / "x",
    "directory, below": lambda models: models / "org/x",
    "lmstudio": lambda models: models / "x",
    "lmstudio, below": lambda models: models / "org/repo/x",
    "llamacpp": lambda models: models / "models--org--x",
    "huggingface": lambda models: models / "models--org--x",
    "ollama": lambda models: models / "manifests/host",
}


@pytest.mark.parametrize(("store", "place"), NO_MODELS.items(), ids=NO_MODELS)
def test_a_link_to_a_folder_that_is_not_a_model_is_not_followed(tmp_path, disk, store, place):
    """
    The folder is not listed, and the link is a problem.
    """
    fill(disk, **{f"m{number}__gguf": GGUF for number in range(20)}, a___b__gguf=GGUF)
    models = fill(tmp_path / "models", org___repo___m__gguf=GGUF, manifests___x=b"")
    planted = link(place(models), disk)

    with recorded_paths() as opened:
        scanned = SCANNERS[store.partition(",")[0]](models)

    assert [path for path in opened if str(path).startswith(str(disk))] == []
    assert str(planted) in {problem.path for problem in scanned.problems}
    assert [model for model in scanned.found if model.local_path.startswith(str(planted))] == []


def test_other_files_in_a_folder_behind_blobs_are_not_leftovers(tmp_path, disk):
    """
    Only names of blobs and of partial blobs are.
    """
    cache, store = make_hub(tmp_path), make_ollama(tmp_path)
    for number, blobs in enumerate((cache.repository("org/m") / "blobs", store.root / "blobs")):
        (disk / str(number)).mkdir()
        write(move(blobs, disk / str(number)) / "letter.txt", b"private")
        write(blobs / ("d" * 64 if number == 0 else f"sha256-{'d' * 64}"), b"orphan")

    hub, ollama = SCANNERS["huggingface"](cache.root), SCANNERS["ollama"](store.root)

    paths = [leftover.path for scan in (hub, ollama) for leftover in scan.leftovers]
    assert paths == [
        str(cache.repository("org/m") / "blobs" / ("d" * 64)),
        str(store.root / f"blobs/sha256-{'d' * 64}"),
    ]


@pytest.mark.parametrize("part", ["repository", "blobs", "a blob"])
def test_a_disk_that_is_not_mounted_hides_its_models(tmp_path, disk, part):
    """
    A dangling link is a problem, and never a model without files.
    """
    cache = make_hub(tmp_path)
    (model,) = SCANNERS["huggingface"](cache.root).found
    move(HUB_PARTS[part](cache.repository("org/m")), disk)
    disk.rename(tmp_path / "unplugged")

    scanned = SCANNERS["huggingface"](cache.root)

    if part == "a blob":
        assert scanned.found[0].reasons == ("missing: 'm.gguf'", "no weights were found")
    else:
        assert scanned.found == ()
        assert scanned.may_hide(model.reference, model.version, model.local_path)


def as_problem(tmp_path, target):
    """Scan a folder with one link to a path, and return the reason why it is refused."""
    folder = tmp_path / "models"
    folder.mkdir()
    link(folder / "m.gguf", target)
    with recorded_paths() as opened:
        scanned = SCANNERS["directory"](folder)
    assert opened == [str(folder)]
    assert scanned.found == ()
    (problem,) = scanned.problems
    assert problem.path == str(folder / "m.gguf")
    return problem.reason


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/dev/zero", "it is a device"),
        ("/dev", "it leads to a folder, which can be scanned by its own path"),
        ("/proc/self/environ", "it leads to /proc, which has the files of the kernel"),
        ("/proc/self/status", "it leads to /proc, which has the files of the kernel"),
        ("/tmp/../sys/x", "it leads to /sys, which has the files of the kernel"),
        ("/nowhere", "it cannot be read: ENOENT"),
        ("m.gguf", "it cannot be read: ELOOP"),
        ("/" + "x" * 300, "it cannot be read: ENAMETOOLONG"),
    ],
)
def test_a_link_to_no_model_file_is_refused(tmp_path, target, reason):
    """
    Nothing is opened.
    """
    assert as_problem(tmp_path, target) == reason


@AS_ROOT
@pytest.mark.parametrize("given", ["link", "file", "link on the way"])
def test_links_and_files_of_another_user_are_refused(tmp_path, disk, given):
    """
    Another user could otherwise make this user read any file.
    """
    target = write(disk / "m.gguf", GGUF)
    way = link(tmp_path / "way", disk)
    write(tmp_path / "models/other.gguf", GGUF)
    planted = link(tmp_path / "models/m.gguf", way / "m.gguf")
    give_away({"link": planted, "file": target, "link on the way": way}[given])

    with recorded_paths() as opened:
        scanned = SCANNERS["directory"](tmp_path / "models")

    assert opened == [str(tmp_path / "models")]
    assert [model.reference for model in scanned.found] == ["other.gguf"]
    (problem,) = scanned.problems
    assert (problem.path, problem.reason) == (
        str(planted),
        "it is a link to a file of another user"
        if given == "file"
        else "it leads out of the store by a link of another user",
    )


@AS_ROOT
@pytest.mark.parametrize("given", ["link", "folder", "a file in it"])
def test_folders_of_another_user_are_refused(tmp_path, disk, given):
    """
    In a folder of this user, a file of another user is refused.
    """
    store = make_ollama(tmp_path)
    blobs = move(store.root / "blobs", disk)
    blob = disk / f"blobs/sha256-{sha256(GGUF)}"
    give_away({"link": blobs, "folder": disk / "blobs", "a file in it": blob}[given])

    scanned = SCANNERS["ollama"](store.root)

    assert [model for model in scanned.found if model.is_complete] == []
    reasons = {
        "link": "it leads out of the store by a link of another user",
        "folder": "it is a link to a folder of another user",
        "a file in it": "it is a link to a file of another user",
    }
    assert reasons[given] in [problem.reason for problem in scanned.problems]


@AS_ROOT
def test_a_link_of_another_user_inside_the_store_is_followed(tmp_path):
    """
    The service of Ollama has a user of its own, who owns everything in its store.
    """
    cache = make_hub(tmp_path)
    before = SCANNERS["huggingface"](cache.root)
    for path in cache.root.rglob("*"):
        give_away(path)

    assert content(SCANNERS["huggingface"](cache.root)) == content(before)


def test_a_link_that_is_moved_before_it_is_opened_leads_nowhere(tmp_path, disk):
    """
    The file that was checked is opened by its real path, and its last part may not be a link.
    """
    cache = HuggingFace(tmp_path / "hub")
    cache.revision("org/m", C1, {"m.gguf": GGUF})
    ref = link(cache.repository("org/m") / "refs/x", write(disk / "ref", C1))
    secret = write(tmp_path / "secret", C1)

    def replace(path):
        if path == str(disk / "ref"):
            (disk / "ref").unlink()
            link(disk / "ref", secret)

    with on_open(replace):
        scanned = SCANNERS["huggingface"](cache.root)

    assert scanned.found[0].aliases == ("main",)
    (problem,) = scanned.problems
    assert (problem.path, problem.reason) == (str(ref), "it cannot be read: ELOOP")


def test_a_link_to_the_catalog_is_refused(tmp_path, disk):
    """
    Opening the database would drop the locks of this process.
    """
    database = write(disk / "catalog.gguf", GGUF)
    (tmp_path / "models").mkdir()
    link(tmp_path / "models/m.gguf", database)
    status = database.stat()

    scanned = SCANNERS["directory"](tmp_path / "models", protected={(status.st_dev, status.st_ino)})

    assert [each.reason for each in scanned.problems] == ["it is the catalog's own database"]


@pytest.mark.parametrize("kind", ["FIFO", "loop", "file", "repository of this store"])
def test_a_repository_that_links_to_no_folder_is_a_problem(tmp_path, disk, kind):
    """
    A link to another repository of the same store is found under the name of that repository.
    """
    cache = make_hub(tmp_path)
    planted = cache.root / "models--org--x"
    targets = {
        "FIFO": lambda: fifo(disk / "pipe") or disk / "pipe",
        "loop": lambda: "models--org--x",
        "file": lambda: write(disk / "file"),
        "repository of this store": lambda: cache.repository("org/m"),
    }
    link(planted, targets[kind]())

    scanned = SCANNERS["huggingface"](cache.root)

    assert [model.reference for model in scanned.found] == ["org/m"]
    (problem,) = scanned.problems
    assert (problem.path, problem.reason) == (
        str(planted),
        {
            "FIFO": "it is a link to a FIFO and not to a folder",
            "loop": "it cannot be read: ELOOP",
            "file": "it is a link to a file and not to a folder",
            "repository of this store": "it is a link to another folder of the store",
        }[kind],
    )


@pytest.mark.parametrize("part", HUB_PARTS.values(), ids=HUB_PARTS)
def test_huggingface_hub_lists_the_same_revision(tmp_path, disk, part):
    """
    The library (2.4) follows the links too, and counts the same bytes.
    """
    library = pytest.importorskip("huggingface_hub")
    cache = make_hub(tmp_path)
    move(part(cache.repository("org/m")), disk)

    (model,) = SCANNERS["huggingface"](cache.root).found
    (repository,) = library.scan_cache_dir(cache.root).repos

    (revision,) = repository.revisions
    assert (revision.commit_hash, sorted(revision.refs)) == (model.version, list(model.aliases))
    assert revision.size_on_disk == model.size_bytes
