"""A TCP proxy in front of a PostgreSQL server that falls silent, delays or cuts connections."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy import URL

COMMIT = re.compile(rb"COMMIT[;\0]")
"""What a driver sends to commit: asyncpg with a semicolon, psycopg without one."""


class Link:
    """One client's connection through the proxy."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.passes_up = asyncio.Event()
        """While it is not set, what the client sends is held back, as on a paused machine."""
        self.passes_down = asyncio.Event()
        """While it is not set, what the server answers is held back."""
        self.is_cut_by_answer = False
        """Whether the next answer of the server is lost, and both connections with it."""
        self.resume()

    def resume(self) -> None:
        self.passes_up.set()
        self.passes_down.set()

    def silence(self) -> None:
        self.passes_up.clear()
        self.passes_down.clear()

    def hold_answers(self) -> None:
        self.passes_down.clear()

    def cut_by_answer(self) -> None:
        self.is_cut_by_answer = True

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


class FaultProxy:
    """Passes bytes between clients and a server. It runs in the event loop of the test."""

    def __init__(self, server: URL) -> None:
        self._server = server
        self.url = server
        """The URL of the database through the proxy."""
        self.links: set[Link] = set()
        self._new_are_silent = False
        self._fault: tuple[re.Pattern[bytes], Callable[[Link], None]] | None = None
        self.has_struck = asyncio.Event()
        """Set when the fault of `strike_at` has happened."""
        self.delay_s = 0.0
        """The seconds that every packet takes in addition."""

    def silence(self, *, new: bool = True) -> None:
        """Fall silent; with `new=False` only on the connections that exist now."""
        self._new_are_silent = new
        for link in self.links:
            link.silence()

    def resume(self) -> None:
        """Pass on everything again, also what was held back."""
        self._new_are_silent = False
        for link in self.links:
            link.resume()

    def strike_at(self, message: re.Pattern[bytes], fault: Callable[[Link], None]) -> None:
        """Apply a fault, once, to the connection that next sends this message, just before it."""
        self.has_struck.clear()
        self._fault = (message, fault)

    async def connect_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        up, down = await asyncio.open_connection(self._server.host, self._server.port)
        link = Link(writer, down)
        if self._new_are_silent:
            link.silence()
        self.links.add(link)
        pumps = [self._pump_up(reader, down, link), self._pump_down(up, writer, link)]
        await asyncio.gather(*pumps, return_exceptions=True)
        self.links.discard(link)
        link.cut()

    async def _pump_up(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, link: Link
    ) -> None:
        while data := await client.read(65536):
            if self._fault is not None and self._fault[0].search(data):
                self._fault[1](link)
                self._fault = None
                self.has_struck.set()
            await asyncio.sleep(self.delay_s)
            await link.passes_up.wait()
            server.write(data)
            await server.drain()
        server.close()

    async def _pump_down(
        self, server: asyncio.StreamReader, client: asyncio.StreamWriter, link: Link
    ) -> None:
        while data := await server.read(65536):
            if link.is_cut_by_answer:
                link.cut()
            await asyncio.sleep(self.delay_s)
            await link.passes_down.wait()
            client.write(data)
            await client.drain()
        client.close()


@asynccontextmanager
async def fault_proxy(server: URL) -> AsyncIterator[FaultProxy]:
    """Run a proxy in front of the server of a database."""
    proxy = FaultProxy(server)
    listener = await asyncio.start_server(proxy.connect_client, "127.0.0.1", 0)
    proxy.url = server.set(host="127.0.0.1", port=listener.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        listener.close()
        for link in list(proxy.links):
            link.cut()
            link.resume()
        while proxy.links:
            await asyncio.sleep(0)
        await listener.wait_closed()
