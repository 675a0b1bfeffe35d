"""The service over HTTP."""

from fastapi.testclient import TestClient

CHAT = {
    "provider": "hf",
    "reference": "org/chat",
    "version": "v1",
    "local_path": "/models/chat.gguf",
    "size_bytes": 4_000_000_000,
    "architecture": "llama",
}


def place_chat(client: TestClient, host: str) -> int:
    """Record the model, place it, and return the id of the placement."""
    client.put("/models", json=CHAT)
    response = client.post("/placements", json={"model": "hf:org/chat@v1", "host": host})
    assert response.status_code == 201, response.text
    placement_id: int = response.json()["id"]
    return placement_id


def test_a_registered_model_is_returned(client: TestClient) -> None:
    """By its name, and in the list."""
    registered = client.put("/models", json=CHAT).json()

    assert CHAT.items() <= registered.items()
    assert client.get("/models/hf:org/chat@v1").json() == registered
    assert client.get("/models", params={"search": "CHAT"}).json()["models"] == [registered]


def test_models_are_listed_in_pages(client: TestClient) -> None:
    """The token of a page leads to the next one."""
    for number in range(3):
        client.put("/models", json={**CHAT, "version": f"v{number}"})

    first = client.get("/models", params={"limit": 2}).json()
    last = client.get("/models", params={"page_token": first["next_token"]}).json()

    assert len(first["models"]) == 2
    assert len(last["models"]) == 1
    assert last["next_token"] is None


def test_a_placement_contains_its_model(client: TestClient) -> None:
    """The service's own table is joined with the table of the catalog."""
    place_chat(client, "gpu-1")
    place_chat(client, "gpu-2")

    on_second = client.get("/placements", params={"host": "gpu-2"}).json()
    llamas = client.get("/placements", params={"architecture": "llama"}).json()
    others = client.get("/placements", params={"architecture": "bert"}).json()

    assert [placement["model"]["reference"] for placement in on_second] == ["org/chat"]
    assert [placement["host"] for placement in llamas] == ["gpu-1", "gpu-2"]
    assert others == []


def test_a_placed_model_is_not_removed(client: TestClient) -> None:
    """The foreign key of the service protects the record."""
    placement_id = place_chat(client, "gpu-1")

    refused = client.delete("/models/hf:org/chat@v1")
    client.delete(f"/placements/{placement_id}")
    removed = client.delete("/models/hf:org/chat@v1")

    assert refused.status_code == 409
    assert "placements" in refused.json()["detail"]
    assert removed.status_code == 204
    assert client.get("/models/hf:org/chat@v1").status_code == 404


def test_an_unknown_model_is_not_placed(client: TestClient) -> None:
    """Nothing is written."""
    response = client.post("/placements", json={"model": "hf:org/none", "host": "gpu-1"})

    assert response.status_code == 404
    assert client.get("/placements").json() == []


def test_an_invalid_value_is_named(client: TestClient) -> None:
    """The catalog's message is the detail of the response."""
    response = client.put("/models", json={**CHAT, "size_bytes": -1})

    assert response.status_code == 422
    assert "size_bytes -1" in response.json()["detail"]
