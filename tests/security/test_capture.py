"""What a busy swarm says to itself, as somebody on the wire sees it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from localswarm import LocalSwarm, wait_until

from swarmd.client import Client, TaskInput

CANARY = "kanari7vogel"
_ETH_P_ALL = 3

AGENT = f'''name = "{CANARY}-agent"
version = "1.0.0"
runtime = "python"
entry = "{CANARY}:run"
'''
CODE = f'''
def run(value, context):
    context.log("{CANARY} prints")
    with context.lock("{CANARY}-lock", ttl_s=5):
        context.counter("{CANARY}-counter").add()
    return {{"{CANARY}-result": value}}
'''


class Capture:
    """Every packet of one interface, until it is closed."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024 * 1024)
        self._socket.bind((interface, 0))
        self._socket.settimeout(0.2)
        self._closing = False
        self.packets: list[bytes] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            try:
                self.packets.append(self._socket.recv(65_536))
            except TimeoutError:
                continue

    def close(self) -> None:
        self._closing = True
        self._thread.join()
        self._socket.close()


@contextmanager
def captured(interface: str) -> Iterator[Capture]:
    capture = Capture(interface)
    try:
        yield capture
    finally:
        capture.close()


def written(text: str) -> list[bytes]:
    """The text in every way in which it may have been passed on unhidden."""
    raw = text.encode()
    return [raw, raw.hex().encode(), text.encode("utf-16-le"), raw[::-1]]


@pytest.mark.skipif(os.getuid() != 0, reason="only root sees packets")
def test_a_capture_of_a_busy_swarm_holds_nothing_in_clear() -> None:
    """No payload, key, task, lock or agent's name, code or log line: neither in TCP nor in UDP."""
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    code = root / "code"
    code.mkdir()
    (code / "agent.toml").write_text(AGENT)
    (code / f"{CANARY}.py").write_text(CODE)
    with captured("lo") as capture:
        # It sees what goes by: else nothing that it does not find would prove anything.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            # No canary, which may be caught once more on its way in, when all else begins.
            plain.sendto(b"seen: in clear", ("127.0.0.1", 9))
        wait_until("the capture runs", lambda: any(b"seen: " in p for p in capture.packets))
        capture.packets.clear()
        with LocalSwarm(root / "s", 3) as swarm:
            swarm.form()
            for daemon in swarm.daemons:
                wait_until("workers are there", lambda d=daemon: d.try_json("status"))
            swarm[0].json("agent", "deploy", str(code / "agent.toml"))
            with Client(str(swarm[1].socket)) as client:
                for number in range(50):
                    client.kv_put(f"{CANARY}/{number}", f"{CANARY} value {number}".encode())
                tasks = [
                    TaskInput(agent=f"{CANARY}-agent", name=f"{CANARY}-{n}", input=f"{CANARY} {n}")
                    for n in range(60)
                ]
                ids = [one.id for one in client.submit(tasks)]
                large = TaskInput(agent=f"{CANARY}-agent", input=f"{CANARY} " * 30_000)
                ids += [one.id for one in client.submit([large])]
                done = list(client.results(ids))
                assert [one.state for one in done] == ["succeeded"] * 61
            with Client(str(swarm[2].socket), node="n1") as other:
                assert other.kv_get(f"{CANARY}/7").value.startswith(CANARY.encode())
                other.tasks(agent=f"{CANARY}-agent")
            assert CANARY in swarm[2].ctl("agent", "logs", f"{CANARY}-agent").stdout
        port = swarm[0].port.to_bytes(2, "big")
    shutil.rmtree(root)
    # Behind 14 bytes of Ethernet and 20 of IP come the ports.
    ours = [p for p in capture.packets if port in (p[34:36], p[36:38])]
    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        assert sum(p[23] == protocol for p in ours) > 100
    assert sum(map(len, ours)) > 500_000
    seen = b"".join(capture.packets)
    found = [one for one in written(CANARY) if one in seen]
    assert not found
