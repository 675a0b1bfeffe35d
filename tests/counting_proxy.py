"""A proxy between a client and PostgreSQL that counts round trips."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CountingProxy:
    """Passes bytes between a client and PostgreSQL; counts the answers that end a round trip."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self.round_trip_count = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1")
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._address)
        sending = asyncio.create_task(self._send(reader, server_writer))
        try:
            while True:
                header = await server_reader.readexactly(5)
                body = await server_reader.readexactly(int.from_bytes(header[1:]) - 4)
                # ReadyForQuery, the last message of each answer:
                # https://www.postgresql.org/docs/current/protocol-message-formats.html
                self.round_trip_count += header[:1] == b"Z"
                writer.write(header + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            sending.cancel()
            writer.close()
            server_writer.close()

    async def _send(self, reader, server_writer) -> None:
        while data := await reader.read(65536):
            server_writer.write(data)
        server_writer.close()
