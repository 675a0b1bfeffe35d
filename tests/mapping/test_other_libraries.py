"""pydantic and FastAPI read models; docs/embedding.md shows the same class."""

import json

import pytest
from conftest import a_model
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from model_catalog import Model

pydantic = pytest.importorskip("pydantic")


class ModelOut(pydantic.BaseModel):
    """What a service returns about a model."""

    model_config = pydantic.ConfigDict(from_attributes=True)

    provider: str
    reference: str
    version: str
    size_bytes: int | None
    architecture: str | None
    tags: tuple[str, ...]
    pinned: bool


@pytest.fixture
async def models(on_sqlite):
    """The same model from the catalog and from a host's session."""
    await on_sqlite.register_model(a_model("m", size_bytes=7, claimed_architecture="llama"))
    await on_sqlite.tag_model("m", "hf", "chat")
    found = await on_sqlite.pin_model("m", "hf")
    engine = create_async_engine(f"sqlite+aiosqlite:///{on_sqlite.database_files[0]}")
    async with AsyncSession(engine) as session:
        loaded = await session.scalar(select(Model))
    await engine.dispose()
    return [found, loaded]


async def test_pydantic_reads_a_model(models):
    """`from_attributes` reads fields and properties alike."""
    for model in models:
        out = ModelOut.model_validate(model)

        assert out.model_dump() == {
            "provider": "hf",
            "reference": "m",
            "version": "",
            "size_bytes": 7,
            "architecture": "llama",
            "tags": ("chat",),
            "pinned": True,
        }


@pytest.mark.slow
async def test_fastapi_returns_a_model(models):
    """As a declared class, as a dict, and as a dataclass; `Model` itself cannot be declared."""
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    app.get("/declared", response_model=list[ModelOut])(lambda: models)
    app.get("/dict")(lambda: [model.to_dict() for model in models])
    app.get("/plain")(lambda: models)

    declared, dicts, plain = [await get(app, path) for path in ("/declared", "/dict", "/plain")]

    outs = [ModelOut.model_validate(model) for model in models]
    assert declared == [out.model_dump(mode="json") for out in outs]
    assert dicts == [model.to_dict() for model in models]
    assert [each["tags"] for each in plain] == [["chat"], ["chat"]]
    with pytest.raises(fastapi.exceptions.FastAPIError):
        app.get("/model", response_model=Model)(lambda: models[0])


async def get(app, path):
    """The JSON that an ASGI application returns for a GET."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    return json.loads(b"".join(message.get("body", b"") for message in sent))
