"""A file copied between two processes over TLS by trio alone: what a blob's transfer is held to.

It reads, sends, receives, writes and syncs, in pieces of 256 KiB, and checks nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import trio

from swarmd.identity.keys import SigningKey
from swarmd.identity.tls import client_context, server_context

PIECE_BYTES: Final = 256 * 1024
_ALPN: Final = "copy/1"
# Both sides know both keys: they keep nobody out here.
SERVER, CLIENT = (SigningKey.from_seed(bytes([number]) * 32) for number in (1, 2))
ADMITTED: Any = [
    SimpleNamespace(certificate_der=key.certificate, evicted=False) for key in (SERVER, CLIENT)
]


async def receive(out: Path) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    tcp = await listener.accept()
    stream = trio.SSLStream(tcp, server_context(SERVER, ADMITTED, [_ALPN]), server_side=True)
    with out.open("wb", buffering=0) as file:
        size = int.from_bytes(await stream.receive_some(8), "big")
        while size:
            piece = await stream.receive_some(min(size, PIECE_BYTES))
            assert piece, "it broke off"
            file.write(piece)
            size -= len(piece)
        os.fsync(file.fileno())
    await stream.send_all(b".")


async def send(path: Path, port: int) -> None:
    size = (await trio.Path(path).stat()).st_size
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(tcp, client_context(CLIENT, ADMITTED, [_ALPN]))
    await stream.do_handshake()
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        await stream.send_all(size.to_bytes(8, "big"))
        while piece := file.read(PIECE_BYTES):
            await stream.send_all(piece)
    assert await stream.receive_some(1) == b"."
    print(time.perf_counter() - began)


def copy_s(source: Path, out: Path) -> float:
    """Seconds that a copy took, from the first byte read to the last one synced."""
    command = [sys.executable, __file__]
    with subprocess.Popen(
        [*command, "receive", str(out)], stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None
        port = receiver.stdout.readline().strip()
        sender = subprocess.run(
            [*command, "send", str(source), port], capture_output=True, text=True, check=True
        )
    assert out.stat().st_size == source.stat().st_size
    return float(sender.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        trio.run(receive, Path(sys.argv[2]))
    else:
        trio.run(send, Path(sys.argv[2]), int(sys.argv[3]))
