"""Tries to get at what is not its own, and tells how far it came."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(value: dict[str, Any]) -> dict[str, Any]:
    if value.get("write"):
        # Claims to answer another run than its own, on the channel that it inherited.
        for descriptor in range(3, 64):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.write(descriptor, bytes.fromhex(value["write"]))
        return {}
    reached = {}
    for name in value["read"]:
        reached[f"read {name}"] = succeeds(lambda name=name: Path(name).read_bytes())
    for name in value["list"]:
        reached[f"list {name}"] = succeeds(lambda name=name: os.listdir(name))
    for name in value["write_to"]:
        reached[f"write {name}"] = succeeds(lambda name=name: Path(name, "x").write_text("x"))
    reached["socket"] = succeeds(lambda: speak(value["socket"]))
    reached["signal"] = succeeds(lambda: os.kill(value["daemon"], signal.SIGURG))
    reached["environ"] = succeeds(lambda: Path(f"/proc/{value['daemon']}/environ").read_bytes())
    reached["be root"] = succeeds(lambda: os.setuid(0))
    # Another version of this agent runs as the same user.
    for name in ("mem", "environ", "maps"):
        reached[f"own {name} from elsewhere"] = succeeds(lambda name=name: look_at_parent(name))
    reached["own folder"] = succeeds(lambda: Path("mine").write_text("x"))
    status = Path("/proc/self/status").read_text()
    return {
        "reached": sorted(name for name, got in reached.items() if got),
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "no_new_privs": "NoNewPrivs:\t1" in status,
        "capabilities": status.split("CapEff:")[1].split()[0],
        "environ": sorted(os.environ),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
    }


def speak(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)


def look_at_parent(name: str) -> None:
    code = f"import os; open(f'/proc/{{os.getppid()}}/{name}', 'rb').read(0)"
    if subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode:
        raise PermissionError(name)


def succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
