"""A hub with one repository, and processes that pull from it."""

import pytest
from hub_pulls import COMMIT, FILES, Puller
from loopback_hub import LoopbackHub


@pytest.fixture
def hub():
    with LoopbackHub(COMMIT, dict(FILES)).serve() as served:
        yield served


@pytest.fixture
def puller(hub, database, tmp_path):
    pytest.importorskip("huggingface_hub")
    return Puller(hub, database.target, tmp_path)
