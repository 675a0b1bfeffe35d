#!/usr/bin/env bash
# SQLAlchemy 2.1.9: a session on SQLite commits the second half of a transaction without the first.
#
# SQLite rolls back the whole transaction when a statement that writes is interrupted, or finds the
# disk full (https://www.sqlite.org/lang_transaction.html, section 3). The statement raises an
# OperationalError, and neither sqlite3 nor SQLAlchemy notices that the transaction has ended. A
# program that catches the error and goes on, for example after its own timeout, loses what it
# wrote before and keeps what it writes after. With `autocommit=False` of Python 3.12, which
# SQLAlchemy's documentation recommends, the later rows are even kept without a commit, and commit()
# and rollback() raise "no transaction is active".
#
# Inserts `before`, has an INSERT interrupted, inserts `after`, and reads the file before and after
# the commit, for three ways to begin transactions. Prints:
#
#     default: before the commit [], commit succeeded, then ['after']
#     own BEGIN: before the commit ['after'], commit succeeded, then ['after']
#     autocommit=False: before the commit ['after'], commit raised OperationalError, then ['after']
#
# Exits with 1 if that changes. Needs Python 3.12 or newer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for python in python3.13 python3.12 "$HOME"/.pyenv/versions/3.1[23]*/bin/python; do
  "$python" -c '' 2>/dev/null && break
done
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'sqlalchemy==2.1.9' 2>/dev/null
cat > "$folder/look.py" <<'PY'
import sqlite3, sys
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

def stored(path):
    with sqlite3.connect(path) as other:
        return [name for (name,) in other.execute("SELECT name FROM t")]

def look(name, path, own_begin=False, **connect_args):
    engine = create_engine(f"sqlite:///{path}", connect_args=connect_args)
    if own_begin:
        @event.listens_for(engine, "connect")
        def connected(connection, _): connection.isolation_level = None
        @event.listens_for(engine, "begin")
        def begun(connection): connection.exec_driver_sql("BEGIN")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (name TEXT)"))
    with Session(engine) as session:
        session.execute(text("INSERT INTO t VALUES ('before')"))
        driver = session.connection().connection.driver_connection
        # SQLite's documented way to interrupt: the handler returns a value that is not 0.
        driver.set_progress_handler(lambda: 1, 1)
        try:
            session.execute(text("INSERT INTO t VALUES ('interrupted')"))
        except OperationalError:
            driver.set_progress_handler(None, 0)
        session.execute(text("INSERT INTO t VALUES ('after')"))
        before = stored(path)
        try:
            session.commit()
            outcome = "commit succeeded"
        except OperationalError:
            outcome = "commit raised OperationalError"
        print(f"{name}: before the commit {before}, {outcome}, then {stored(path)}")

folder = sys.argv[1]
look("default", folder + "/default.db")
look("own BEGIN", folder + "/own.db", own_begin=True)
look("autocommit=False", folder + "/off.db", autocommit=False)
PY
found=$("$folder/venv/bin/python" -W ignore "$folder/look.py" "$folder" 2>/dev/null || true)
printf '%s\n' "$found"
[ "$found" = "default: before the commit [], commit succeeded, then ['after']
own BEGIN: before the commit ['after'], commit succeeded, then ['after']
autocommit=False: before the commit ['after'], commit raised OperationalError, then ['after']" ]
