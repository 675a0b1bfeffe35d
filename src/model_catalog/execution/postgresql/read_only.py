"""Why a PostgreSQL server does not write."""

from __future__ import annotations

from sqlalchemy import Connection

_STANDBY = (
    "name the primary; or list all servers, and add target_session_attrs=read-write to the URL"
)
_SETTING = "let an administrator set it to off for this role, this database or the server"


def reason_for_read_only(connection: Connection, _value: None) -> tuple[str, str] | None:
    """
    Return why the server of a connection does not write, and the way out.

    None means that it writes by now.
    """
    row = connection.exec_driver_sql(
        "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'"
    ).one()
    if row[0]:
        return "the server is a standby, which replays what another one writes", _STANDBY
    return ("default_transaction_read_only is on", _SETTING) if row[1] else None
