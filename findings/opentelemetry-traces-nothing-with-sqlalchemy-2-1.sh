#!/usr/bin/env bash
# opentelemetry-instrumentation-sqlalchemy 0.66b2: with SQLAlchemy 2.1 it traces nothing, and raises nothing.
#
# The package declares SQLAlchemy as an optional extra, "sqlalchemy >= 1.0.0, < 2.1.0", so pip installs both without a
# conflict. At run time `instrument(engine=...)` compares the versions, logs one ERROR and returns normally. A program
# that has not configured logging for it has no traces, and no exception tells it so. With `skip_dep_check=True` the same
# release traces SQLAlchemy 2.1.
#
# Traces one SELECT on SQLite with and without the argument. Prints:
#
#     default: 0 spans of statements, 1 logged error, no exception
#     skip_dep_check=True: 1 span of statements, 0 logged errors, no exception
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'sqlalchemy[asyncio]==2.1.9' 'opentelemetry-sdk==1.45.2' \
  'opentelemetry-instrumentation-sqlalchemy==0.66b2' 2>/dev/null
cat > "$folder/look.py" <<'PY'
import logging
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text

class Counter(logging.Handler):
    errors = 0

    def emit(self, record):
        self.errors += record.levelno >= logging.ERROR

def look(name, **options):
    counter, spans, provider = Counter(), InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    logging.getLogger("opentelemetry").addHandler(counter)
    engine = create_engine("sqlite://")
    instrumentor = SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=engine, tracer_provider=provider, **options)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    logging.getLogger("opentelemetry").removeHandler(counter)
    if options:
        instrumentor.uninstrument()
    found = sum("db.statement" in span.attributes for span in spans.get_finished_spans())
    plural = lambda number, noun: f"{number} {noun}{'' if number == 1 else 's'}"
    return f"{name}: {plural(found, 'span')} of statements, {plural(counter.errors, 'logged error')}, no exception"

print(look("default"))
print(look("skip_dep_check=True", skip_dep_check=True))
PY
"$folder/venv/bin/python" "$folder/look.py" 2>"$folder/errors" | tee "$folder/output" || cat "$folder/errors" >&2
diff "$folder/output" - <<'EXPECTED'
default: 0 spans of statements, 1 logged error, no exception
skip_dep_check=True: 1 span of statements, 0 logged errors, no exception
EXPECTED
