"""The partial files of killed downloads."""

import fcntl

from model_catalog.downloads.hub.partial_files import delete_partial_files

BLOB, OTHER = "a" * 64, "b" * 40


def test_partial_files_are_deleted_unless_they_are_locked(tmp_path):
    """Only those of the wanted blobs, and only under their lock."""
    repository, locks = tmp_path / "models--o--m", tmp_path / ".locks" / "models--o--m"
    (repository / "blobs").mkdir(parents=True)
    locks.mkdir(parents=True)
    names = {
        blob: repository / "blobs" / f"{blob}.0123abcd.incomplete"
        for blob in (BLOB, OTHER, "c" * 40, "d" * 64)
    }
    for blob, path in names.items():
        path.touch()
        if blob != "d" * 64:
            (locks / f"{blob}.lock").touch()
    (repository / "blobs" / BLOB).touch()

    with (locks / f"{OTHER}.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        delete_partial_files(str(tmp_path), str(repository), {BLOB, OTHER, "d" * 64})

    left = {path.name for path in (repository / "blobs").iterdir()}
    assert left == {BLOB, *(names[blob].name for blob in (OTHER, "c" * 40, "d" * 64))}


def test_a_repository_without_blobs_has_no_partial_files(tmp_path):
    """Nothing is raised."""
    delete_partial_files(str(tmp_path), str(tmp_path / "models--o--m"), {BLOB})
