"""One load process: writes values of shared memory over connections that are kept.

    python memory_load.py '{"socket": "...", "namespace": NAMESPACE, "keys": [0, 1000], ...}'

It writes each key of the range once, over as many connections at a time as it is told, and says on
stderr how long that took. What is refused for now is written again; anything else ends it.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAMESPACE = "bench"
PAUSE_S = 0.05
TIMEOUT_S = 60.0


class Connection(http.client.HTTPConnection):
    """To a daemon's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)

    def set(self, namespace: str, key: str, value: str) -> None:
        """Returns once it is acknowledged."""
        body = json.dumps({"value": value}).encode()
        while True:
            self.request("PUT", f"/api/v1/memory/{namespace}/{key}", body)
            answer = self.getresponse()
            said = answer.read()
            if answer.status == 200:
                return
            if answer.status != 503:
                raise RuntimeError(said.decode())
            time.sleep(PAUSE_S)

    def get(self, namespace: str, key: str) -> Any:
        """The value; None where there is none."""
        self.request("GET", f"/api/v1/memory/{namespace}/{key}")
        answer = self.getresponse()
        said = json.loads(answer.read())
        return said["value"] if answer.status == 200 else None


def key_of(number: int) -> str:
    return f"task/{number:07}"


def value_of(number: int, text: str) -> str:
    return f"{text} {number} ".ljust(64, ".")


def write(asked: dict[str, Any]) -> float:
    """Seconds that it took."""
    first, end = asked["keys"]
    step = asked.get("step", 1)
    numbers = range(first, end, step)
    lanes = asked["connections"]

    def lane(start: int) -> None:
        connection = Connection(asked["socket"])
        for number in numbers[start::lanes]:
            connection.set(
                asked["namespace"], key_of(number), value_of(number, asked.get("text", "value"))
            )
        connection.close()

    began = time.perf_counter()
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lane, range(lanes)))
    return time.perf_counter() - began


def write_all(
    sockets: Sequence[Path], keys: Sequence[tuple[int, int]], *, text: str = "value", step: int = 1
) -> None:
    """Have a process for each socket write its range of keys, all at the same time.

    Raises RuntimeError: one of them failed.
    """
    running = []
    for path, span in zip(sockets, keys, strict=True):
        asked = {
            "socket": str(path), "namespace": NAMESPACE, "keys": span, "connections": 32,
            "text": text, "step": step,
        }  # fmt: skip
        running.append(subprocess.Popen([sys.executable, __file__, json.dumps(asked)]))
    codes = [one.wait() for one in running]
    if any(codes):
        raise RuntimeError(f"load processes ended with {codes}")


if __name__ == "__main__":
    print(json.dumps({"took_s": write(json.loads(sys.argv[1]))}), file=sys.stderr)
