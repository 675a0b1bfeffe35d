"""The service over HTTP, with a real hub, a real database and real workers."""

import json
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from conftest import COMMIT, FILES, Start

TINY = {"model_ref": "hf:TheBloke/TinyLlama"}


def test_a_model_is_downloaded_and_listed(start: Start, tmp_path: Path) -> None:
    """The last check is that of the document of the daemon: a query of the database."""
    client = start()
    downloaded = client.post("/v1/models/download", json=TINY)
    listed = client.get("/v1/models")

    with closing(sqlite3.connect(tmp_path / ".rbee/models/catalog.db")) as database:
        database.row_factory = sqlite3.Row
        (row,) = database.execute("SELECT * FROM models;")
    model = downloaded.json()
    assert downloaded.status_code == 200, downloaded.text
    assert listed.json() == [model]
    assert (row["provider"], row["reference"], row["version"]) == (
        "hf",
        "TheBloke/TinyLlama",
        COMMIT,
    )
    assert row["local_path"] == model["local_path"]
    assert {path.name: path.read_bytes() for path in Path(model["local_path"]).iterdir()} == FILES


def test_a_model_that_many_ask_for_is_downloaded_once(start: Start, hub: Any) -> None:
    """By eight clients of each of two processes that share the database."""
    clients = [start(), start()]

    with ThreadPoolExecutor(16) as threads:
        calls = [
            threads.submit(client.post, "/v1/models/download", json=TINY)
            for client in clients
            for _ in range(8)
        ]
    responses = [call.result() for call in calls]

    assert {response.status_code for response in responses} == {200}
    assert len({response.text for response in responses}) == 1
    assert sorted(hub.downloads) == sorted(FILES)


def test_downloads_are_sent_as_events(start: Start, hub: Any) -> None:
    """A running download has its bytes, and the next event says that it is done."""
    client = start()
    hub.held = {"tiny.gguf"}
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.post, "/v1/models/download", json=TINY)
        assert hub.is_half_sent.wait(60)
        hub.held = set()
        with client.stream("GET", "/v1/downloads") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            events = (
                json.loads(line.removeprefix("data: "))[0]
                for line in stream.iter_lines()
                if line.startswith("data: ")
            )
            running = next(events)
            hub.release.set()
            done = next(event for event in events if event["state"] == "done")
        assert call.result().status_code == 200

    size = sum(map(len, FILES.values()))
    assert (running["ref"], running["state"]) == (TINY["model_ref"], "running")
    assert (done["done_bytes"], done["total_bytes"]) == (size, size)


def test_a_worker_holds_its_model(start: Start) -> None:
    """The model is not removed while the process runs, and can be when it has ended."""
    client = start()
    client.post("/v1/models/download", json=TINY)

    worker = client.post("/v1/workers", json=TINY)
    refused = client.delete(f"/v1/models/{TINY['model_ref']}")
    uses = client.get("/v1/workers").json()
    os.kill(worker.json()["process_id"], signal.SIGTERM)
    while client.get("/v1/workers").json():
        pass
    removed = client.delete(f"/v1/models/{TINY['model_ref']}")

    assert worker.status_code == 201, worker.text
    assert (refused.status_code, removed.status_code) == (409, 204)
    assert "it is used by process" in refused.json()["detail"]
    assert [use["ref"] for use in uses] == [f"{TINY['model_ref']}@{COMMIT}"]


def test_errors_are_explained(start: Start, hub: Any) -> None:
    """The message of the catalog is the detail of the response."""
    client = start()
    unknown = client.post("/v1/workers", json=TINY)
    invalid = client.post("/v1/models/download", json={"model_ref": "tiny"})
    hub.refusal = (403, "GatedRepo")
    gated = client.post("/v1/models/download", json=TINY)

    assert (unknown.status_code, invalid.status_code, gated.status_code) == (404, 422, 502)
    assert "set HF_TOKEN" in gated.json()["detail"]
