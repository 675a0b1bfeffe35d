#!/usr/bin/env bash
# FastAPI 0.165.0: a dependency with `yield` ends after the response was sent.
#
# Many services commit a session in such a dependency: `async with sessions.begin() as session:
# yield session`. The client gets its status 200 before the commit begins. If the commit then fails,
# or the process is killed, the answer was wrong. In releases 0.106 to 0.117 the dependency ended
# before the response. `Depends(..., scope="function")` of release 0.121 asks for that order.
#
# Prints, for the default and for that scope, what happened and the status that the client got:
#
#     default: response sent, commit failed, status 200
#     function: commit failed, response sent, status 500
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'fastapi==0.165.0' 'starlette==1.10.0' 2>/dev/null
cat > "$folder/look.py" <<'PY'
import asyncio
from fastapi import Depends, FastAPI

async def order_of_events(**options):
    events = []

    async def session():
        yield
        events.append("commit failed")
        raise RuntimeError

    app = FastAPI()

    @app.put("/")
    async def write(_=Depends(session, **options)):
        return {}

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        if message["type"] == "http.response.start":
            events.append("response sent")
            events.append(f"status {message['status']}")

    scope = {"type": "http", "method": "PUT", "path": "/", "query_string": b"", "headers": []}
    try:
        await app(scope, receive, send)
    except RuntimeError:
        pass
    return ", ".join(sorted(events, key=lambda event: event.startswith("status")))

print("default:", asyncio.run(order_of_events()))
print("function:", asyncio.run(order_of_events(scope="function")))
PY
found=$("$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$found"
[ "$found" = "default: response sent, commit failed, status 200
function: commit failed, response sent, status 500" ]
