"""OpenTelemetry's instrumentation of SQLAlchemy, over a host's engine and for the own engine."""

import pytest

from model_catalog import Model, ModelCatalog

trace_sdk = pytest.importorskip("opentelemetry.sdk.trace")
instrumentation = pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine


@pytest.fixture
def spans():
    """The exporter of a tracer provider of this test."""
    return InMemorySpanExporter()


@pytest.fixture
async def traced_engine(database, spans):
    """A host's engine whose statements are traced, as the documentation shows."""
    host_engine = create_async_engine(database.target_url)
    provider = trace_sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instrumentor = instrumentation.SQLAlchemyInstrumentor()
    instrumentor.instrument(
        engine=host_engine.sync_engine,
        tracer_provider=provider,
        # Release 0.66b2 names SQLAlchemy below 2.1 as its requirement, and otherwise does nothing.
        skip_dep_check=True,
    )
    yield host_engine
    instrumentor.uninstrument()
    await host_engine.dispose()


async def test_each_statement_of_a_call_is_a_span(traced_engine, spans):
    """
    A registration and a find over the host's sessions have spans with their SQL.
    """
    catalog = ModelCatalog(async_sessionmaker(traced_engine))

    await catalog.register_model(Model(reference="traced", provider="hf", local_path="/m"))
    written = [span.attributes.get("db.statement", "") for span in spans.get_finished_spans()]
    spans.clear()
    await catalog.find_model("traced", "hf")
    read = [span.attributes.get("db.statement", "") for span in spans.get_finished_spans()]

    assert any(statement.startswith("INSERT INTO models") for statement in written)
    assert any("FROM models" in statement for statement in read)


async def test_no_value_of_a_model_is_in_a_span(traced_engine, spans):
    """
    Statements have placeholders: names and paths are sent apart from them.
    """
    catalog = ModelCatalog(async_sessionmaker(traced_engine))

    await catalog.register_model(Model(reference="secret-name", provider="hf", local_path="/m"))

    texts = [str(dict(span.attributes)) for span in spans.get_finished_spans()]
    assert texts
    assert not any("secret-name" in text for text in texts)


async def test_the_span_of_the_host_is_the_parent(traced_engine, spans):
    """
    The statements of a call belong to the trace of the request that made the call.
    """
    provider = trace_sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    catalog = ModelCatalog(async_sessionmaker(traced_engine))

    with provider.get_tracer("host").start_as_current_span("request") as request:
        await catalog.find_model("traced", "hf")

    statements = [s for s in spans.get_finished_spans() if "db.statement" in s.attributes]
    assert {span.context.trace_id for span in statements} == {request.get_span_context().trace_id}
