"""The scan of the cache of huggingface_hub, compared with the scan of that library."""

import os
import shutil
from datetime import UTC, datetime

import pytest
from layouts import C1, C2, C3, HuggingFace, git_sha1, listing, sha256, write

from model_catalog import StoppedError
from model_catalog.files.fingerprint import file_fingerprint
from model_catalog.stores.scanners.huggingface import scan

GGUF = b"GGUF" + bytes(100)


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "hub").mkdir()
    return HuggingFace(tmp_path / "hub")


def only(scanned):
    assert scanned.problems == ()
    (model,) = scanned.found
    return model


def keys(scanned):
    return [(model.reference, model.version) for model in scanned.found]


def test_the_scan_finds_the_same_as_huggingface_hub(cache):
    """
    Repositories, revisions, refs, files and sizes are equal, in every layout that it writes.
    """
    hub = pytest.importorskip("huggingface_hub")
    cache.write_marker_files()
    files = {"m.gguf": GGUF, "config.json": b"{}", "sub/deep/x.txt": b"hi", ".gitattributes": b"g"}
    cache.revision("org/Model", C1, files, refs=("main", "v1.0"), tree=files)
    cache.revision("org/Model", C2, {**files, "config.json": b'{"a":1}'}, refs=("refs/pr/1",))
    cache.revision("org/Model", C3, {"copy.safetensors": GGUF, "m.safetensors": GGUF}, refs=())
    cache.revision("bert-base", C1, {"model.safetensors": b"x" * 10})
    cache.revision("a/b/c", C1, {"m.gguf": GGUF})
    cache.revision("win/dows", C1, {"m.gguf": GGUF, "sub/config.json": b"{}"})
    cache.replace_links_with_files("win/dows")
    cache.revision("org/shared", C1, {"m.gguf": GGUF, "n.txt": b"own"})
    cache.share_blob("org/shared", "m.gguf", GGUF)
    shutil.copytree(cache.repository("org/Model"), cache.root / "datasets--org--Model")
    shutil.copytree(cache.repository("org/Model"), cache.root / "spaces--org--Model")

    theirs = hub.scan_cache_dir(cache.root)
    ours = scan(cache.root)

    assert (theirs.warnings, ours.problems) == ([], ())
    assert {
        (
            model.reference,
            model.version,
            model.aliases,
            model.size_bytes,
            model.local_path,
            tuple((file.path, file.size_bytes) for file in model.files),
        )
        for model in ours.found
    } == {
        (
            repo.repo_id,
            revision.commit_hash,
            tuple(sorted(revision.refs)),
            revision.size_on_disk,
            str(revision.snapshot_path),
            tuple(
                sorted(
                    (
                        str(file.file_path.relative_to(revision.snapshot_path)),
                        file.size_on_disk,
                    )
                    for file in revision.files
                )
            ),
        )
        for repo in theirs.repos
        if repo.repo_type == "model"
        for revision in repo.revisions
    }
    assert len(ours.found) == 7


def test_the_tree_file_of_these_tests_equals_that_of_the_library(cache):
    """
    The bytes are equal.
    """
    pytest.importorskip("huggingface_hub")
    from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

    files = {"m.gguf": GGUF, "config.json": b"{}"}
    entries = {
        "m.gguf": TreeCacheEntry(len(GGUF), git_sha1(GGUF), sha256(GGUF), len(GGUF)),
        "config.json": TreeCacheEntry(2, git_sha1(b"{}")),
    }

    write_tree_cache(str(cache.root), C1, entries)

    assert (cache.root / f"trees/{C1}.json").read_text() == cache.tree(files)


def test_a_commit_is_a_version_and_its_refs_are_aliases(cache):
    """
    A branch, a tag and a pull request can name the same revision.
    """
    snapshot = cache.revision("org/m", C1, {"m.gguf": GGUF}, refs=("main", "refs/pr/1", "v1"))

    model = only(scan(cache.root))

    assert (model.store, model.provider, model.reference) == ("huggingface", "hf", "org/m")
    assert (model.version, model.aliases) == (C1, ("main", "refs/pr/1", "v1"))
    assert (model.local_path, model.folder) == (str(snapshot), str(snapshot))
    assert (model.claims.format, model.is_complete) == ("gguf", True)


def test_a_ref_can_end_with_a_line_feed(cache):
    """
    A user or another program may have written it.
    """
    cache.revision("org/m", C1, {"m.gguf": GGUF}, refs=())
    write(cache.repository("org/m") / "refs/main", f"{C1}\n")

    assert only(scan(cache.root)).aliases == ("main",)


def test_a_blob_name_is_used_as_digest_only_if_it_is_a_sha256(cache):
    """
    Small files are named by the SHA-1 of Git, which is ignored.
    """
    cache.revision("org/m", C1, {"m.gguf": GGUF, "config.json": b"{}"})

    config, weights = only(scan(cache.root)).files

    assert (config.path, config.role, config.digest) == ("config.json", "config", None)
    assert (weights.path, weights.role) == ("m.gguf", "weights")
    assert weights.digest == f"sha256:{sha256(GGUF)}"


def test_a_shared_blob_has_the_digest_of_its_link_in_the_repository(cache):
    """
    The shared blob itself is named by another digest of the same length.
    """
    snapshot = cache.revision("org/m", C1, {"m.gguf": GGUF})
    cache.share_blob("org/m", "m.gguf", GGUF)

    (file,) = only(scan(cache.root)).files

    assert file.digest == f"sha256:{sha256(GGUF)}"
    assert file.fingerprint == file_fingerprint(snapshot / "m.gguf")


def test_an_absolute_link_inside_the_cache_is_followed(cache, tmp_path):
    """
    It is also followed, and its digest is found, if the cache was reached by a link.
    """
    snapshot = cache.revision("org/m", C1, {})
    (tmp_path / "link").symlink_to(cache.root)
    blob = cache.blob("org/m", "m.gguf", GGUF)
    (snapshot / "m.gguf").symlink_to(tmp_path / "link" / blob.relative_to(cache.root))
    (snapshot / "n.txt").symlink_to(blob)

    model = only(scan(tmp_path / "link"))

    assert [file.digest for file in model.files] == [f"sha256:{sha256(GGUF)}"] * 2
    assert model.local_path == str(snapshot)


def test_without_links_the_digests_come_from_the_tree(cache):
    """
    On a system without links the snapshot contains the files themselves.
    """
    files = {"m.gguf": GGUF, "config.json": b"{}"}
    cache.revision("org/m", C1, files, tree=files)
    cache.replace_links_with_files("org/m")

    model = only(scan(cache.root))

    assert [file.digest for file in model.files] == [None, f"sha256:{sha256(GGUF)}"]
    assert model.is_complete


def test_each_blob_of_a_revision_is_counted_once(cache):
    """
    A blob can have several names. Another revision counts it again.
    """
    snapshot = cache.revision("org/m", C1, {"a.bin": GGUF, "b.bin": GGUF})
    cache.revision("org/m", C2, {"a.bin": GGUF, "own.bin": b"GGUF"}, refs=())
    os.link(cache.blob("org/m", "a.bin", GGUF), snapshot / "c.bin")

    sizes = [model.size_bytes for model in scan(cache.root).found]

    assert sizes == [len(GGUF), len(GGUF) + 4]


def test_the_download_time_is_that_of_the_newest_file(cache):
    """
    It is in UTC and whole seconds. The times of the links do not count.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF, "config.json": b"{}"})
    os.utime(cache.blob("org/m", "a.gguf", GGUF), (0, 1_700_000_000))
    os.utime(cache.blob("org/m", "config.json", b"{}"), ns=(0, 1_600_000_000_999_999_999))

    assert only(scan(cache.root)).downloaded_at == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize("seconds", [-1, 300_000_000_000], ids=["before 1970", "after 9999"])
def test_a_file_time_outside_of_the_calendar_is_ignored(cache, seconds):
    """
    A file time can be any number.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    blob = cache.blob("org/m", "a.gguf", GGUF)
    os.utime(blob, (0, seconds))
    if blob.stat().st_mtime != seconds:
        pytest.skip("the file system keeps no such time")

    assert only(scan(cache.root)).downloaded_at is None


def test_files_of_the_tree_that_loading_needs_are_a_reason(cache):
    """
    The tree lists what exists. Users often download one file of a repository with several.
    """
    weights = {"model.safetensors": b"weights"}
    alternatives = {
        "a.gguf": GGUF,
        "b.gguf": GGUF + b"1",
        "pytorch_model.bin": b"x",
        "onnx/model.onnx": b"x",
    }
    others = {"README.md": b"about", ".gitattributes": b"g", "image.png": b"p"}
    needed = {"config.json": b"{}", "tokenizer.json": b"{}"}
    tree = {**weights, **alternatives, **others, **needed}
    cache.revision("org/gguf", C1, {"a.gguf": GGUF}, tree=tree)
    cache.revision("org/half", C1, weights, tree=tree)
    cache.revision("org/whole", C1, {**weights, **needed}, tree=tree)

    reasons = {model.reference: model.reasons for model in scan(cache.root).found}

    assert reasons == {
        "org/gguf": (),
        "org/half": ("not downloaded: 'config.json', 'tokenizer.json'",),
        "org/whole": (),
    }


def test_a_file_that_is_shorter_than_in_the_tree_is_a_reason(cache):
    """
    The expected digest is still known from its name.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF}, tree={"a.gguf": GGUF})
    os.truncate(cache.blob("org/m", "a.gguf", GGUF), 10)

    model = only(scan(cache.root))

    assert model.reasons == (f"'a.gguf' has 10 bytes: {len(GGUF)} are needed",)
    assert model.files[0].digest == f"sha256:{sha256(GGUF)}"


def test_a_tree_of_another_version_is_ignored(cache):
    """
    Its meaning is unknown, and it is not damaged.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    write(cache.repository("org/m") / f"trees/{C1}.json", '{"format_version":2,"files":{"b":{}}}')

    assert only(scan(cache.root)).is_complete


@pytest.mark.parametrize("name", ["{}.incomplete", "{}.0a1b2c3d.incomplete"])
def test_an_unfinished_download_is_a_reason(cache, name):
    """
    The name of its blob may contain the id of the downloading process.
    """
    blob = sha256(b"later")
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    write(cache.repository("org/m") / "blobs" / name.format(blob), b"lat")

    assert only(scan(cache.root)).reasons == (f"unfinished downloads: {blob!r}",)


def test_an_unfinished_download_for_another_revision_is_not_a_reason(cache):
    """
    The trees tell which files belong to each revision.
    """
    files = {"a.safetensors": b"a"}
    cache.revision("org/m", C1, files, tree=files)
    cache.revision("org/m", C2, files, tree={**files, "b.safetensors": b"later"})
    write(cache.repository("org/m") / f"blobs/{sha256(b'later')}.incomplete", b"lat")

    one, two = scan(cache.root).found

    assert one.is_complete
    assert two.reasons == ("unfinished downloads: 'b.safetensors'",)


def test_missing_shards_are_found_without_a_tree(cache):
    """
    The names of the other shards in the same folder tell which are missing.
    """
    files = {"m-00002-of-00005.safetensors": GGUF, "sub/m-00001-of-00002.safetensors": GGUF}
    cache.revision("org/m", C1, files)

    (reason,) = only(scan(cache.root)).reasons

    assert reason == (
        "missing: 'm-00001-of-00005.safetensors', 'm-00003-of-00005.safetensors', "
        "'m-00004-of-00005.safetensors' and 2 more"
    )


def test_a_repository_without_weights_is_incomplete(cache):
    """
    The tokenizer of a model is often downloaded alone.
    """
    cache.revision("org/m", C1, {"tokenizer.json": b"{}"})

    assert only(scan(cache.root)).reasons == ("no weights were found",)


def test_a_shard_with_a_broken_link_is_listed_once(cache):
    """
    Both the link and the other shards name it.
    """
    files = {f"m-0000{number}-of-00003.gguf": b"GGUF%d" % number for number in (1, 2)}
    cache.revision("org/m", C1, files)
    cache.blob("org/m", "x.gguf", b"GGUF2").unlink()

    (model,) = scan(cache.root).found

    assert model.reasons == ("missing: 'm-00002-of-00003.gguf', 'm-00003-of-00003.gguf'",)


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._main", "._m.gguf"])
def test_files_of_operating_systems_are_ignored(cache, name):
    """
    They are created in any folder. Other hidden files belong to a repository.
    """
    snapshot = cache.revision("org/m", C1, {"m.gguf": GGUF, ".gitattributes": b"g"})
    for folder in (snapshot, snapshot.parent, cache.repository("org/m") / "refs", cache.root):
        write(folder / name, b"Bud1")

    assert [file.path for file in only(scan(cache.root)).files] == [".gitattributes", "m.gguf"]


def test_a_broken_link_only_hides_its_own_file(cache):
    """
    huggingface_hub drops the whole repository. This scan finds the other files.
    """
    hub = pytest.importorskip("huggingface_hub")
    snapshot = cache.revision("org/m", C1, {"a.gguf": GGUF, "b.gguf": b"GGUF"})
    cache.blob("org/m", "b.gguf", b"GGUF").unlink()

    scanned = scan(cache.root)

    assert hub.scan_cache_dir(cache.root).repos == frozenset()
    (model,), (problem,) = scanned.found, scanned.problems
    assert [file.path for file in model.files] == ["a.gguf"]
    assert model.reasons == ("missing: 'b.gguf'",)
    assert problem.path == str(snapshot / "b.gguf")


def test_a_ref_to_a_missing_snapshot_is_a_problem(cache):
    """
    A user may have deleted the snapshot. The other revisions are found.
    """
    hub = pytest.importorskip("huggingface_hub")
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    ref = write(cache.repository("org/m") / "refs/old", C2)

    scanned = scan(cache.root)

    assert hub.scan_cache_dir(cache.root).repos == frozenset()
    assert keys(scanned) == [("org/m", C1)]
    assert [problem.path for problem in scanned.problems] == [str(ref)]


@pytest.mark.parametrize("folders", [(), ("blobs", "snapshots"), ("refs",)])
def test_an_empty_repository_is_a_problem(cache, folders):
    """
    A download that stopped before its first file leaves one.
    """
    for folder in ("", *folders):
        (cache.repository("org/empty") / folder).mkdir(parents=True, exist_ok=True)
    cache.revision("org/m", C1, {"a.gguf": GGUF})

    scanned = scan(cache.root)

    assert keys(scanned) == [("org/m", C1)]
    (problem,) = scanned.problems
    assert problem.path == str(cache.repository("org/empty"))
    assert problem.reason == "it contains no revision"


def test_a_repository_with_only_an_unfinished_download_is_a_problem(cache):
    """
    The reason mentions the download.
    """
    write(cache.repository("org/m") / f"blobs/{sha256(GGUF)}.incomplete", b"GG")

    (problem,) = scan(cache.root).problems

    assert problem.reason == "it contains no revision, and a download is unfinished"


def test_the_result_is_sorted_by_names(cache):
    """
    Two scans of a cache are equal, whatever the order on disk is.
    """
    for name in ("b/x", "a/x", "B/x", "a/x-2"):
        for commit in (C2, C1):
            files = {"z.gguf": GGUF, "a.txt": b"1", "sub/b.txt": b"2"}
            cache.revision(name, commit, files, refs=("z", "a"))
    write(cache.repository("b/x") / "refs/none", C3)
    write(cache.repository("a/x") / "refs/none", C3)

    scanned = scan(cache.root)

    assert keys(scanned) == sorted(keys(scanned))
    assert list(scanned.problems) == sorted(scanned.problems, key=lambda each: each.path)
    assert [file.path for file in scanned.found[0].files] == ["a.txt", "sub/b.txt", "z.gguf"]
    assert scan(cache.root) == scanned


def test_a_problem_can_hide_a_model_that_was_not_found(cache, tmp_path):
    """
    A model that no problem can hide is no longer in the store.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    odd = write(cache.root / "models--org--odd")

    scanned = scan(cache.root)

    assert scanned.may_hide("org/odd", C1, f"{odd}/snapshots/{C1}")
    assert not scanned.may_hide("org/odder", C1, f"{odd}er/snapshots/{C1}")
    assert not scanned.may_hide("org/m", C2, str(cache.repository("org/m") / "snapshots" / C2))
    offline = scan(tmp_path / "nowhere")
    assert offline.found == ()
    assert offline.may_hide("org/m", C1, str(tmp_path / "nowhere/models--org--m/snapshots" / C1))


def test_a_scan_can_be_stopped(cache):
    """
    `stop` is called before each folder, and no result is returned.
    """
    for number in range(9):
        cache.revision(f"org/m{number}", C1, {"a.gguf": GGUF})
    counts = []

    with pytest.raises(StoppedError):
        scan(cache.root, stop=lambda: len(counts) == 3, progress=counts.append)

    assert counts == [1, 2, 3]


def test_the_database_of_the_catalog_is_skipped(cache):
    """
    It is not opened under any of its names, and is not a file of a model.
    """
    snapshot = cache.revision("org/m", C1, {"a.gguf": GGUF})
    database = write(cache.root / "catalog.db", C1)
    os.link(database, snapshot / "b.gguf")
    os.link(database, cache.repository("org/m") / "refs/stable")
    status = database.stat()

    scanned = scan(cache.root, protected={(status.st_dev, status.st_ino)})

    assert [file.path for file in scanned.found[0].files] == ["a.gguf"]
    assert scanned.found[0].aliases == ("main",)
    assert {problem.reason for problem in scanned.problems} == {"it is the catalog's own database"}


def test_a_scan_writes_nothing(cache):
    """
    No byte, time stamp or name differs afterwards.
    """
    cache.write_marker_files()
    cache.revision("org/m", C1, {"a.gguf": GGUF, "config.json": b"{}"}, tree={"a.gguf": GGUF})
    before = listing(cache.root)

    scan(cache.root)

    assert listing(cache.root) == before
