"""A server that answers as S3 does to HEAD and GET, at a given bandwidth and latency: a wire of known speed.

``python -m benchmarks.wire <folder> <bytes a second> <seconds of latency>`` prints its port and serves until killed.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import urllib.parse
from pathlib import Path

_PIECE = 64 << 10


class Wire:
    """All answers together go at *rate* bytes a second; each begins *latency* seconds after its request."""

    def __init__(self, folder: Path, rate: float, latency: float) -> None:
        self.folder, self.rate, self.latency = folder, rate, latency
        self._free = 0.0

    async def _paced(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self._free = max(self._free, loop.time() - 0.02) + count / self.rate
        if (wait := self._free - loop.time()) > 0.002:
            await asyncio.sleep(wait)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while line := await reader.readline():
                method, target, _ = line.decode().split(" ")
                headers = {}
                while (row := (await reader.readline()).decode().strip()) != "":
                    name, _, value = row.partition(":")
                    headers[name.lower()] = value.strip()
                await asyncio.sleep(self.latency)
                await self._file(method, target, headers.get("range", ""), writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _file(self, method: str, target: str, wanted: str, writer: asyncio.StreamWriter) -> None:
        path = self.folder / urllib.parse.unquote(target.partition("?")[0]).lstrip("/").partition("/")[2]
        if not path.is_file():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        size = os.path.getsize(path)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        start, end = (int(match[1]), min(int(match[2] or size) + 1, size)) if match else (0, size)
        head = f"HTTP/1.1 {'206 Partial Content' if match else '200 OK'}\r\nContent-Length: {end - start}\r\n"
        head += f'ETag: "{size}"\r\nLast-Modified: Mon, 01 Jun 2026 10:00:00 GMT\r\n'
        if match:
            head += f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
        writer.write(head.encode() + b"\r\n")
        if method == "GET":
            with open(path, "rb") as file:
                file.seek(start)
                while start < end and (piece := file.read(min(_PIECE, end - start))):
                    await self._paced(len(piece))
                    writer.write(piece)
                    await writer.drain()
                    start += len(piece)
        await writer.drain()


async def main(folder: str, rate: str, latency: str) -> None:
    """Serve."""
    wire = Wire(Path(folder), float(rate), float(latency))
    server = await asyncio.start_server(wire.answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
