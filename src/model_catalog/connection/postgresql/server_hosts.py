"""The hosts in the URL of a PostgreSQL database, in one form for both drivers."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import URL

_DEFAULT_PORT: Final = "5432"

# driver://user:password@host:port,host:port/database?parameters, as libpq writes it.
_LIST_OF_HOSTS: Final = (
    r"(?s)(?P<before>[\w+]+://(?:[^/?@]*@)?)(?P<hosts>[^/?@]*,[^/?@]*)(?P<after>(?:[/?].*)?)"
)


def split_hosts(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a URL without a list of hosts, and these hosts; none if it has no list."""
    match = re.fullmatch(_LIST_OF_HOSTS, text)
    if match is None:
        return text, ()
    return match["before"] + match["after"], tuple(match["hosts"].split(","))


def normalize_hosts(url: URL, hosts: tuple[str, ...] = ()) -> URL:
    """
    Return a URL whose hosts, if it has several, are `host=a:5432&host=b:5433`.

    That is SQLAlchemy's form. libpq writes `host=a,b&port=5432,5433` as well. SQLAlchemy has no
    form with ports for addresses of IPv6, which stay in that of libpq. Raises ValueError.
    """
    found = [_split_port(each) for each in hosts] if hosts else _hosts_of_query(url)
    if len(found) < 2:  # noqa: PLR2004 - one host has no list
        return url
    url = url.difference_update_query(["port"]).set(host=None, port=None)
    if any(":" in host for host, _ in found):
        names, ports = zip(*found, strict=True)
        return url.update_query_dict({"host": ",".join(names), "port": ",".join(ports)})
    return url.update_query_dict({"host": tuple(f"{host}:{port}" for host, port in found)})


def _hosts_of_query(url: URL) -> list[tuple[str, str]]:
    hosts, ports = url.query.get("host", ""), url.query.get("port", "")
    if isinstance(hosts, tuple):
        # SQLAlchemy raises an error for ports beside them.
        return [] if ports else [_split_port(each) for each in hosts]
    names = hosts.split(",")
    if len(names) == 1:
        return []
    numbers = (ports or str(url.port or _DEFAULT_PORT)) if isinstance(ports, str) else ""
    found = numbers.split(",")
    if len(found) == 1:
        # One port is that of all hosts.
        found *= len(names)
    if len(found) != len(names):
        raise ValueError(f"it has {len(names)} hosts, and {len(found)} ports")
    return [(name, port or _DEFAULT_PORT) for name, port in zip(names, found, strict=True)]


def _split_port(text: str) -> tuple[str, str]:
    """Return the host and the port of `host`, `host:port` or `[address]:port`."""
    match = re.fullmatch(r"(?:\[(?P<address>[^\]]*)\]|(?P<host>[^:]*))(?::(?P<port>\d*))?", text)
    if match is None:
        raise ValueError("a host of it is not of the form host:port")
    return match["address"] or match["host"], match["port"] or _DEFAULT_PORT
