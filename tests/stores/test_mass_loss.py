"""A scan does not record most models of a store as missing at once."""

import shutil

import pytest
from adoption_helpers import GGUF, adopt_scan, scan
from layouts import C1, HuggingFace, Ollama

from model_catalog import FileState, TooManyMissingError
from model_catalog.cli import main
from model_catalog.upkeep import adopt


def make_hub(folder, count):
    cache = HuggingFace(folder / "hub")
    for number in range(count):
        cache.revision(f"org/m{number}", C1, {"m.gguf": GGUF})
    return cache


async def count_missing(catalog):
    return await catalog.count_models(state=FileState.MISSING)


async def test_a_store_of_which_most_is_gone_is_not_recorded_as_missing(catalog, tmp_path):
    """
    More than ten models and more than half of the store are gone. Other changes are recorded.
    """
    cache = make_hub(tmp_path, 22)
    await adopt_scan(catalog, cache)
    for number in range(12):
        shutil.rmtree(cache.repository(f"org/m{number}"))
    cache.revision("org/new", C1, {"m.gguf": GGUF})

    with pytest.raises(TooManyMissingError, match="12 of 22 models") as stopped:
        await adopt_scan(catalog, cache)
    before = await count_missing(catalog)
    forced = await adopt_scan(catalog, cache, force=True)

    assert (stopped.value.group, before) == (str(cache.root), 0)
    assert await catalog.find_model("org/new", "hf") is not None
    assert (len(forced.gone), await count_missing(catalog)) == (12, 12)
    assert (await adopt_scan(catalog, cache)).gone == ()


@pytest.mark.parametrize(("total", "deleted"), [(20, 10), (24, 12)], ids=["ten", "half"])
async def test_ten_models_or_half_of_a_store_may_go_missing(on_sqlite, tmp_path, total, deleted):
    """
    Users may delete so many between two scans.
    """
    cache = make_hub(tmp_path, total)
    await adopt_scan(on_sqlite, cache)
    for number in range(deleted):
        shutil.rmtree(cache.repository(f"org/m{number}"))

    done = await adopt_scan(on_sqlite, cache)

    assert (len(done.gone), await count_missing(on_sqlite)) == (deleted, deleted)


async def test_manifests_whose_blobs_are_gone_are_not_recorded_as_missing(on_sqlite, tmp_path):
    """
    The blobs of Ollama can be on another disk than its manifests.
    """
    store = Ollama(tmp_path / "ollama")
    for number in range(11):
        store.model(f"m{number}", b"GGUF%d" % number)
    await adopt(on_sqlite, scan("ollama", store.root))
    files = await on_sqlite.list_files("m0", "ollama")
    for blob in (store.root / "blobs").iterdir():
        blob.unlink()

    with pytest.raises(TooManyMissingError, match="11 of 11 models"):
        await adopt(on_sqlite, scan("ollama", store.root))

    assert await count_missing(on_sqlite) == 0
    assert await on_sqlite.list_files("m0", "ollama") == files


def test_the_command_scans_the_other_stores_and_exits_with_3(tmp_path, monkeypatch, capsys):
    """
    `--force` records the missing models.
    """
    monkeypatch.setenv("MODEL_CATALOG_URL", str(tmp_path / "c.db"))
    cache = make_hub(tmp_path / "one", 12)
    other = HuggingFace(tmp_path / "two/hub")
    other.revision("org/other", C1, {"m.gguf": GGUF})
    assert main(["scan", str(cache.root)]) == 0
    for number in range(11):
        shutil.rmtree(cache.repository(f"org/m{number}"))
    capsys.readouterr()

    code = main(["scan", str(cache.root), str(other.root)])
    out, err = capsys.readouterr()
    alone = main(["scan", str(cache.root)])
    (only_line,) = capsys.readouterr().err.splitlines()
    forced = main(["scan", "--force", str(cache.root)])

    assert (code, alone, forced) == (3, 3, 0)
    assert "11 of 12 models" in only_line
    assert "11 of 12 models" in err
    assert "--force" in err
    assert "new" in out
    assert "11 gone" in capsys.readouterr().err
