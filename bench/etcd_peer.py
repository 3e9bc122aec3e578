"""etcd as the peer of `bench raft`: a cluster on loopback, and a client that costs next to nothing.

The client speaks gRPC (HTTP/2, RFC 9113, with HPACK, RFC 7541) by hand: one connection per
process with many calls under way on it, requests as bytes made once but for key and value.
It takes about as much of the machine per operation as swarmd's own does, a tenth of what the
Python gRPC library takes, so that etcd is not held back by who asks it.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hpack import Decoder

PACKAGE: Final = "etcd-server"
PUT: Final = "/etcdserverpb.KV/Put"
RANGE: Final = "/etcdserverpb.KV/Range"
_START_TIMEOUT_S: Final = 30.0


# ---- the cluster ----------------------------------------------------------------------


def installed() -> bool:
    return shutil.which("etcd") is not None


def setup() -> None:
    """Install etcd by its Debian package. Raises CalledProcessError."""
    if not installed():
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", PACKAGE]
        subprocess.run(command, check=True)


class Cluster:
    """Members e1, e2, ...: `etcd` as its package sets it up, every write fsynced."""

    def __init__(self, root: Path, count: int) -> None:
        ports = _free_ports(2 * count)
        self.clients = [("127.0.0.1", port) for port in ports[:count]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[count:]]
        names = [f"e{n}" for n in range(1, count + 1)]
        initial = ",".join(f"{name}={peer}" for name, peer in zip(names, peers, strict=True))
        self._processes = []
        for name, peer, (host, port) in zip(names, peers, self.clients, strict=True):
            url = f"http://{host}:{port}"
            command = ["etcd", "--name", name, "--data-dir", str(root / name)]
            command += ["--listen-client-urls", url, "--advertise-client-urls", url]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", initial, "--initial-cluster-state", "new"]
            log = (root / f"{name}.log").open("ab")
            self._processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.leader() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"etcd: no leader within {_START_TIMEOUT_S:g} s")
            time.sleep(0.1)

    def leader(self) -> tuple[str, int] | None:
        """The address of the leader's clients' port, as the members say."""
        for host, port in self.clients:
            try:
                answer = _post(f"http://{host}:{port}/v3/maintenance/status")
            except (OSError, ValueError):
                continue
            if answer.get("leader") and answer["leader"] == answer["header"]["member_id"]:
                return host, port
        return None

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def cluster(root: Path, count: int) -> Iterator[Cluster]:
    """A running cluster with a leader; ended with the block."""
    running = Cluster(root, count)
    try:
        yield running
    finally:
        running.stop()


def _free_ports(count: int) -> list[int]:
    sockets = []
    for _ in range(count):
        one = socket.socket()
        one.bind(("127.0.0.1", 0))
        sockets.append(one)
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _post(url: str) -> dict[str, dict[str, str]]:
    with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=2) as answer:
        decoded: dict[str, dict[str, str]] = json.load(answer)
    return decoded


# ---- the client -----------------------------------------------------------------------

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_FRAME: Final = struct.Struct(">HBBBI")  # Length in three bytes, type, flags, stream.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW_BYTES: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 255, kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 127
    return bytes([len(raw)]) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, raw: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(raw)) + raw


class EtcdStream:
    """Calls of one method under way at once over one connection; see `KeyStream` for its like."""

    def __init__(self, address: tuple[str, int], method: str, *, timeout_s: float = 30.0) -> None:
        self._socket = socket.create_connection(address, timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Method and scheme are in the static table; the rest enters the dynamic table with
        # the first request, from where every later one names it by index.
        fixed = b"\x83\x86"
        self._first_block = (
            fixed
            + b"\x44" + _literal(method)
            + b"\x41" + _literal(f"{address[0]}:{address[1]}")
            + b"\x5f" + _literal("application/grpc")
            + b"\x40" + _literal("te") + _literal("trailers")
        )  # fmt: skip
        self._block = fixed + bytes([128 | 65, 128 | 64, 128 | 63, 128 | 62])
        settings = struct.pack(">HI", 4, _WINDOW_BYTES)  # SETTINGS_INITIAL_WINDOW_SIZE
        self._out = bytearray(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
        self._out += _frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_BYTES - _FIRST_WINDOW))
        self._number = -1
        self._window = _FIRST_WINDOW
        self._stalled: list[bytes] = []
        self._received = 0
        self._raw = b""
        self._hpack = Decoder()
        self._known: dict[bytes, int | None] = {}  # Header blocks of indexed fields only.
        self._answered: set[int] = set()
        self._done: list[tuple[int, bool]] = []
        self._waiting: set[int] = set()

    def close(self) -> None:
        self._socket.close()

    def put(self, key: str, value: bytes) -> int:
        return self._call(_field(1, key.encode()) + _field(2, value))

    def get(self, key: str) -> int:
        return self._call(_field(1, key.encode()))

    def take(self) -> list[tuple[int, bool]]:
        """Send what was made; (number, was it done) of at least one call."""
        while self._waiting and not self._done:
            if self._out:
                self._socket.sendall(self._out)
                self._out.clear()
            data = self._socket.recv(256 * 1024)
            if not data:
                raise ConnectionError("etcd closed the connection")
            self._feed(data)
        done, self._done = self._done, []
        return done

    def _call(self, message: bytes) -> int:
        self._number += 2
        number = self._number
        block = self._first_block if number == 1 else self._block
        data = b"\0" + struct.pack(">I", len(message)) + message
        head = _frame(_HEADERS, _END_HEADERS, number, block)
        frames = head + _frame(_DATA, _END_STREAM, number, data)
        self._waiting.add(number)
        if self._stalled or self._window < len(data):
            self._stalled.append(frames)
        else:
            self._window -= len(data)
            self._out += frames
        return number

    def _feed(self, data: bytes) -> None:
        raw = self._raw + data if self._raw else data
        at, size = 0, len(raw)
        while at + 9 <= size:
            high, low, kind, flags, stream = _FRAME.unpack_from(raw, at)
            end = at + 9 + (high << 8 | low)
            if end > size:
                break
            self._take_frame(kind, flags, stream, raw[at + 9 : end])
            at = end
        self._raw = raw[at:]

    def _take_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._answered.add(stream)
            self._received += len(payload)
            if self._received > _WINDOW_BYTES // 2:
                self._out += _frame(_WINDOW, 0, 0, struct.pack(">I", self._received))
                self._received = 0
        elif kind == _HEADERS:
            assert flags & _END_HEADERS, "a header block in parts"
            status = self._status(payload)
            if flags & _END_STREAM:
                ok = status == 0 and stream in self._answered
                self._answered.discard(stream)
                self._waiting.discard(stream)
                self._done.append((stream, ok))
        elif kind == _SETTINGS and not flags & _ACK:
            self._out += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._out += _frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW and stream == 0:
            self._window += struct.unpack(">I", payload)[0]
            self._resume()
        elif kind in (_RESET, _GOAWAY, _CONTINUATION):
            raise ConnectionError(f"etcd sent frame {kind} on {stream}: {payload!r}")

    def _resume(self) -> None:
        while self._stalled:
            size = len(self._stalled[0])
            if self._window < size:
                return
            self._window -= size
            self._out += self._stalled.pop(0)

    def _status(self, block: bytes) -> int | None:
        """grpc-status of a header block. Blocks that change no table are remembered."""
        if block in self._known:
            return self._known[block]
        fields = dict(self._hpack.decode(block, raw=False))
        status = fields.get("grpc-status")
        found = None if status is None else int(status)
        if all(byte & 128 for byte in block):
            self._known[block] = found
        else:
            self._known.clear()  # Indices have moved.
        return found
