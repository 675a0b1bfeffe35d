"""The cache of huggingface_hub: what is found in it, and what that library finds."""

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


def test_it_finds_what_huggingface_hub_finds(cache):
    """
    The same repositories, revisions, refs, files and sizes, in every layout that it writes.
    """
    hub = pytest.importorskip("huggingface_hub")
    cache.mark()
    whole = {"m.gguf": GGUF, "config.json": b"{}", "sub/deep/x.txt": b"hi", ".gitattributes": b"g"}
    cache.revision("org/Model", C1, whole, refs=("main", "v1.0"), tree=whole)
    cache.revision("org/Model", C2, {**whole, "config.json": b'{"a":1}'}, refs=("refs/pr/1",))
    cache.revision("org/Model", C3, {"copy.gguf": GGUF, "m.gguf": GGUF}, refs=())
    cache.revision("bert-base", C1, {"model.safetensors": b"x" * 10})
    cache.revision("a/b/c", C1, {"m.gguf": GGUF})
    cache.revision("win/dows", C1, {"m.gguf": GGUF, "sub/config.json": b"{}"})
    cache.unlink("win/dows")
    cache.revision("org/shared", C1, {"m.gguf": GGUF, "n.gguf": b"own"})
    cache.share("org/shared", "m.gguf", GGUF)
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


def test_the_tree_of_these_tests_is_the_librarys(cache):
    """
    What the builder writes is what huggingface_hub writes, to the byte.
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
    A branch, a tag and a pull request may all be one revision.
    """
    snapshot = cache.revision("org/m", C1, {"m.gguf": GGUF}, refs=("main", "refs/pr/1", "v1"))

    model = only(scan(cache.root))

    assert (model.store, model.provider, model.reference) == ("huggingface", "hf", "org/m")
    assert (model.version, model.aliases) == (C1, ("main", "refs/pr/1", "v1"))
    assert (model.local_path, model.folder) == (str(snapshot), str(snapshot))
    assert (model.claims.format, model.is_complete) == ("gguf", True)


def test_a_ref_may_end_its_line(cache):
    """
    A hand or another program may have written it.
    """
    cache.revision("org/m", C1, {"m.gguf": GGUF}, refs=())
    write(cache.repository("org/m") / "refs/main", f"{C1}\n")

    assert only(scan(cache.root)).aliases == ("main",)


def test_the_name_of_a_blob_is_its_digest_only_where_it_is_a_sha256(cache):
    """
    Git calls a small file by a SHA-1 of its own, which is taken for nothing.
    """
    cache.revision("org/m", C1, {"m.gguf": GGUF, "config.json": b"{}"})

    config, weights = only(scan(cache.root)).files

    assert (config.path, config.role, config.digest) == ("config.json", "config", None)
    assert (weights.path, weights.role) == ("m.gguf", "weights")
    assert weights.digest == f"sha256:{sha256(GGUF)}"


def test_a_shared_blob_has_the_digest_of_the_repositorys_own_name(cache):
    """
    In the store that repositories share it has the name of another digest, just as long.
    """
    snapshot = cache.revision("org/m", C1, {"m.gguf": GGUF})
    cache.share("org/m", "m.gguf", GGUF)

    (file,) = only(scan(cache.root)).files

    assert file.digest == f"sha256:{sha256(GGUF)}"
    assert file.fingerprint == file_fingerprint(snapshot / "m.gguf")


def test_a_link_by_a_whole_path_is_followed_inside_of_the_cache(cache, tmp_path):
    """
    Also where the cache itself was reached by a link, and the digest is not lost on the way.
    """
    snapshot = cache.revision("org/m", C1, {})
    (tmp_path / "link").symlink_to(cache.root)
    blob = cache.blob("org/m", "m.gguf", GGUF)
    (snapshot / "m.gguf").symlink_to(tmp_path / "link" / blob.relative_to(cache.root))
    (snapshot / "n.gguf").symlink_to(blob)

    model = only(scan(tmp_path / "link"))

    assert [file.digest for file in model.files] == [f"sha256:{sha256(GGUF)}"] * 2
    assert model.local_path == str(snapshot)


def test_without_links_the_tree_knows_the_digests(cache):
    """
    Where the system has no links, the snapshot holds the files themselves.
    """
    files = {"m.gguf": GGUF, "config.json": b"{}"}
    cache.revision("org/m", C1, files, tree=files)
    cache.unlink("org/m")

    model = only(scan(cache.root))

    assert [file.digest for file in model.files] == [None, f"sha256:{sha256(GGUF)}"]
    assert model.is_complete


def test_the_bytes_of_a_revision_are_counted_once(cache):
    """
    By however many names a blob is there; the next revision counts it again.
    """
    snapshot = cache.revision("org/m", C1, {"a.gguf": GGUF, "b.gguf": GGUF})
    cache.revision("org/m", C2, {"a.gguf": GGUF, "own.gguf": b"GGUF"}, refs=())
    os.link(cache.blob("org/m", "a.gguf", GGUF), snapshot / "c.gguf")

    sizes = [model.size_bytes for model in scan(cache.root).found]

    assert sizes == [len(GGUF), len(GGUF) + 4]


def test_it_was_downloaded_when_its_newest_file_was_written(cache):
    """
    In UTC and whole seconds; the links themselves are not asked.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF, "config.json": b"{}"})
    os.utime(cache.blob("org/m", "a.gguf", GGUF), (0, 1_700_000_000))
    os.utime(cache.blob("org/m", "config.json", b"{}"), ns=(0, 1_600_000_000_999_999_999))

    assert only(scan(cache.root)).downloaded_at == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize("seconds", [-1, 300_000_000_000], ids=["before 1970", "after 9999"])
def test_a_time_that_no_calendar_has_is_not_told(cache, seconds):
    """
    A time of a file may be any number.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    blob = cache.blob("org/m", "a.gguf", GGUF)
    os.utime(blob, (0, seconds))
    if blob.stat().st_mtime != seconds:
        pytest.skip("the file system keeps no such time")

    assert only(scan(cache.root)).downloaded_at is None


def test_a_tree_tells_what_is_not_here(cache):
    """
    Of many repositories one file of several is downloaded; the reasons say so.
    """
    tree = {"a.gguf": GGUF, "b.gguf": GGUF + b"1", "c.gguf": b"3", "d.gguf": b"4", "e.gguf": b"5"}
    cache.revision("org/m", C1, {"a.gguf": GGUF}, tree=tree)

    model = only(scan(cache.root))

    assert model.reasons == ("not here, of 5 files: 'b.gguf', 'c.gguf', 'd.gguf' and 1 more",)


def test_a_tree_tells_of_a_file_that_was_cut_short(cache):
    """
    Its name still says what its digest ought to be.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF}, tree={"a.gguf": GGUF})
    os.truncate(cache.blob("org/m", "a.gguf", GGUF), 10)

    model = only(scan(cache.root))

    assert model.reasons == (f"'a.gguf' has 10 bytes: {len(GGUF)} are needed",)
    assert model.files[0].digest == f"sha256:{sha256(GGUF)}"


def test_a_tree_of_another_version_is_passed_over(cache):
    """
    What it means is not known, and it is no damage.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    write(cache.repository("org/m") / f"trees/{C1}.json", '{"format_version":2,"files":{"b":{}}}')

    assert only(scan(cache.root)).is_complete


@pytest.mark.parametrize("name", ["{}.incomplete", "{}.0a1b2c3d.incomplete"])
def test_a_download_that_has_not_ended_is_a_reason(cache, name):
    """
    By the name of its blob with or without the number of who downloads it.
    """
    blob = sha256(b"later")
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    write(cache.repository("org/m") / "blobs" / name.format(blob), b"lat")

    assert only(scan(cache.root)).reasons == (f"downloads that have not ended: {blob!r}",)


def test_a_download_for_another_revision_is_no_reason(cache):
    """
    Where a tree says what belongs to each of them.
    """
    cache.revision("org/m", C1, {"a.gguf": GGUF}, tree={"a.gguf": GGUF})
    tree = {"a.gguf": GGUF, "b.gguf": b"later"}
    cache.revision("org/m", C2, {"a.gguf": GGUF}, tree=tree)
    write(cache.repository("org/m") / f"blobs/{sha256(b'later')}.incomplete", b"lat")

    one, two = scan(cache.root).found

    assert one.is_complete
    assert two.reasons == (
        "not here, of 2 files: 'b.gguf'",
        f"downloads that have not ended: {sha256(b'later')!r}",
    )


def test_shards_that_are_not_there_are_missing(cache):
    """
    Also without a tree, by the names of the others; in each folder by itself.
    """
    files = {"m-00002-of-00005.gguf": GGUF, "sub/m-00001-of-00002.safetensors": GGUF}
    cache.revision("org/m", C1, files)

    (reason,) = only(scan(cache.root)).reasons

    assert reason == (
        "missing: 'm-00001-of-00005.gguf', 'm-00003-of-00005.gguf', "
        "'m-00004-of-00005.gguf' and 2 more"
    )


def test_a_repository_of_words_alone_has_no_weights(cache):
    """
    The tokenizer of a model is downloaded by itself as often as not.
    """
    cache.revision("org/m", C1, {"tokenizer.json": b"{}"})

    assert only(scan(cache.root)).reasons == ("there are no weights",)


def test_a_shard_that_a_broken_link_names_is_missing_once(cache):
    """
    Its name is known by the link and by the other shards.
    """
    files = {f"m-0000{number}-of-00003.gguf": b"GGUF%d" % number for number in (1, 2)}
    cache.revision("org/m", C1, files)
    cache.blob("org/m", "x.gguf", b"GGUF2").unlink()

    (model,) = scan(cache.root).found

    assert model.reasons == ("missing: 'm-00002-of-00003.gguf', 'm-00003-of-00003.gguf'",)


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini"])
def test_what_the_desktop_leaves_behind_is_passed_over(cache, name):
    """
    Wherever somebody has looked; other hidden files belong to a repository.
    """
    snapshot = cache.revision("org/m", C1, {"m.gguf": GGUF, ".gitattributes": b"g"})
    for folder in (snapshot, snapshot.parent, cache.repository("org/m") / "refs", cache.root):
        write(folder / name, b"Bud1")

    assert [file.path for file in only(scan(cache.root)).files] == [".gitattributes", "m.gguf"]


def test_a_broken_link_costs_nothing_but_itself(cache):
    """
    Where huggingface_hub drops the whole repository, the rest of it is found.
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


def test_a_ref_to_nothing_is_a_problem_and_the_rest_is_found(cache):
    """
    Somebody has deleted the snapshot by hand.
    """
    hub = pytest.importorskip("huggingface_hub")
    cache.revision("org/m", C1, {"a.gguf": GGUF})
    ref = write(cache.repository("org/m") / "refs/old", C2)

    scanned = scan(cache.root)

    assert hub.scan_cache_dir(cache.root).repos == frozenset()
    assert keys(scanned) == [("org/m", C1)]
    assert [problem.path for problem in scanned.problems] == [str(ref)]


@pytest.mark.parametrize("folders", [(), ("blobs", "snapshots"), ("refs",)])
def test_a_repository_with_nothing_in_it_is_a_problem(cache, folders):
    """
    A download that ended before its first file leaves one.
    """
    for folder in ("", *folders):
        (cache.repository("org/empty") / folder).mkdir(parents=True, exist_ok=True)
    cache.revision("org/m", C1, {"a.gguf": GGUF})

    scanned = scan(cache.root)

    assert keys(scanned) == [("org/m", C1)]
    (problem,) = scanned.problems
    assert problem.path == str(cache.repository("org/empty"))
    assert problem.reason == "no revision is in it"


def test_a_repository_of_half_a_file_is_a_problem_that_says_so(cache):
    """
    Its first download has not ended.
    """
    write(cache.repository("org/m") / f"blobs/{sha256(GGUF)}.incomplete", b"GG")

    (problem,) = scan(cache.root).problems

    assert problem.reason == "no revision is in it, and a download that has not ended"


def test_the_order_is_that_of_names_and_nothing_else(cache):
    """
    Two scans of one cache are equal, in whatever order the system lists it.
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


def test_what_is_not_there_may_be_hidden_by_a_problem_or_has_gone(cache, tmp_path):
    """
    Only what no problem hides has gone.
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


def test_it_stops_when_it_is_asked(cache):
    """
    Between one folder and the next; nothing comes of it.
    """
    for number in range(9):
        cache.revision(f"org/m{number}", C1, {"a.gguf": GGUF})
    found = []

    with pytest.raises(StoppedError):
        scan(cache.root, stop=lambda: len(found) == 3, progress=found.append)

    assert found == [1, 2, 3]


def test_the_catalogs_own_database_is_stepped_over(cache):
    """
    By whatever name it is there; it is neither opened nor told to be a file of a model.
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


def test_nothing_is_written(cache):
    """
    Not a byte, not a time and not a name is another afterwards.
    """
    cache.mark()
    cache.revision("org/m", C1, {"a.gguf": GGUF, "config.json": b"{}"}, tree={"a.gguf": GGUF})
    before = listing(cache.root)

    scan(cache.root)

    assert listing(cache.root) == before
