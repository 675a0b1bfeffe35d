"""`pull` and `prune` with `--scope fleet`: two hosts and one cache on a disk that both share."""

import json

import pytest
from hub_pulls import COMMIT, FILES, Puller
from loopback_hub import LoopbackHub

from model_catalog.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("backend", ["sqlite", "asyncpg"])]


@pytest.fixture
def puller(database, tmp_path):
    pytest.importorskip("huggingface_hub")
    with LoopbackHub(COMMIT, dict(FILES)).serve() as hub:
        yield Puller(hub, database.target, tmp_path)


def rows(database):
    return database.run(
        "SELECT host, version, local_path, managed_root, size_bytes, digest FROM models"
        " ORDER BY host"
    )


def test_a_second_host_records_the_files_of_the_first_one(puller, database):
    """It downloads nothing, and its record has the same files, aliases and folder."""
    first = puller.pull("hf:o/m", "--host", "gpu-01", "--scope", "fleet")
    downloaded = list(puller.hub.downloads)
    second = puller.pull("hf:o/m", "--host", "gpu-02", "--scope", "fleet")

    one, two = rows(database)
    assert (first[0], second[0]) == (0, 0)
    assert sorted(downloaded) == sorted(FILES)
    assert puller.hub.downloads == downloaded
    assert (one[0], two[0]) == ("gpu-01", "gpu-02")
    assert one[1:] == two[1:]
    assert one[3] == str(puller.repository)
    assert database.run("SELECT host, alias FROM model_aliases ORDER BY host") == [
        ("gpu-01", "main"),
        ("gpu-02", "main"),
    ]
    files = (
        "SELECT path, model_files.digest FROM model_files JOIN models ON id = model_id"
        " WHERE host = ?"
    )
    found = [database.run(f"{files} ORDER BY path", host) for host in ("gpu-01", "gpu-02")]
    assert found[0] == found[1]
    assert len(found[0]) == len(FILES)


def test_a_prune_keeps_what_another_host_has(puller, database, capsys):
    """When the other host has forgotten the model, it is deleted."""
    for host in ("gpu-01", "gpu-02"):
        assert puller.pull("hf:o/m", "--host", host, "--scope", "fleet")[0] == 0
    prune = ["prune", "--free", "1GB", "-y", "--scope", "fleet", "--host", "gpu-01", "--json"]

    code, kept = main([*prune, "--db", database.target]), capsys.readouterr().out
    names = [model["host"] for model in _models(database, capsys)]
    main(["rm", "hf:o/m", "-y", "--host", "gpu-02", "--db", database.target])
    capsys.readouterr()
    main([*prune, "--db", database.target])
    freed = capsys.readouterr().out

    assert code in (0, 1)
    assert json.loads(kept)["models"] == []
    assert names == ["gpu-01", "gpu-02"]
    assert [model["model"] for model in json.loads(freed)["models"]] == [f"hf:o/m@{COMMIT}"]
    assert rows(database) == []
    assert not list(puller.repository.rglob("*.gguf"))


def _models(database, capsys):
    main(["ls", "--fleet", "--json", "--db", database.target])
    return json.loads(capsys.readouterr().out)
