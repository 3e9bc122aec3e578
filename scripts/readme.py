"""Keeps the README's blocks equal to what the commands really print.

A block stands between `<!-- block: NAME -->` and `<!-- end -->`. Comparing masks what differs
from run to run: numbers, ids, and how often words are used.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from localswarm import LocalSwarm, wait_until

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
# The by-hand block is recorded on loopback daemons called host1, host2, host3; these lines
# run in the foreground and print nothing but their log.
_DAEMON = "swarmd"


def block_of(text: str, name: str) -> str:
    found = re.search(rf"<!-- block: {name} -->\n```\n(.*?)```\n<!-- end -->", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"README.md has no block {name}")
    return found[1]


def with_block(text: str, name: str, body: str) -> str:
    before = f"<!-- block: {name} -->\n```\n"
    start = text.index(before) + len(before)
    end = text.index("```\n<!-- end -->", start)
    return text[:start] + body + text[end:]


def masked(body: str) -> str:
    """What must not change: words, order and shape. Who coordinates may: voters elect."""
    body = re.sub(r"(?:coordinator|voter),worker", "ROLES", body)
    body = re.sub(r"\b[a-z2-7]{26}\b", "ID", body)
    body = re.sub(r"\(([a-z2-7]{8})\)", "(ID)", body)
    body = re.sub(r"(?m)^fingerprint[^(]*\([^)]*\)$", "FINGERPRINT", body)
    body = re.sub(r"(?m)^  [a-z]+ #.*$", "  TERMS", re.sub(r"[\d.,]+", "#", body))
    body = re.sub(r"\b(?:n|host)#", "NODE", body)
    return re.sub(r"[ \t]+", " ", body)


def record_demo() -> str:
    done = subprocess.run(
        [str(ROOT / "scripts" / "demo")], stdout=subprocess.PIPE, text=True, check=True
    )
    return f"$ ./scripts/demo\n{done.stdout.lstrip()}"


def record_hands() -> str:
    """Type the by-hand block on three daemons and take down what is printed."""
    typed = re.findall(r"(?m)^(host\d)\$ (.+)$", block_of(README.read_text(), "hands"))
    lines = []
    with tempfile.TemporaryDirectory(prefix="swarmd-") as folder:
        swarm = LocalSwarm(Path(folder) / "s", 3)
        by_host = {}
        for number, daemon in enumerate(swarm.daemons, 1):
            daemon.name = f"host{number}"
            daemon.write_config(node={"name": daemon.name}, mesh=_mesh_of(swarm, number))
            by_host[daemon.name] = daemon
        with swarm:
            swarm.form()
            for host, command in typed:
                lines.append(f"{host}$ {command}")
                words = shlex.split(command)
                if words[0] == _DAEMON:
                    continue
                daemon = by_host[host]
                wait_until("three voters", lambda d=daemon: _voters(d) == 3)
                done = subprocess.run(
                    [str(Path(sys.executable).parent / words[0]), *words[1:]],
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    env={"SWARMCTL_SOCKET": str(daemon.socket), "NO_COLOR": "1", "HOME": folder},
                    check=False,
                )
                if done.returncode != 0:
                    raise SystemExit(f"{command}: {done.stderr}")
                lines += done.stdout.splitlines()
    return "\n".join(lines) + "\n"


def _mesh_of(swarm: LocalSwarm, number: int) -> dict[str, object]:
    others = [d for n, d in enumerate(swarm.daemons, 1) if n != number]
    return {"mdns": False, "seeds": [f"{d.address}:{d.port}" for d in others]}


def _voters(daemon: object) -> int:
    status = daemon.try_json("status")  # type: ignore[attr-defined]
    return len(status["store"]["voters"]) if status and status["store"] else 0


BLOCKS: dict[str, Callable[[], str]] = {"demo": record_demo, "hands": record_hands}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", choices=sorted(BLOCKS))
    arguments = parser.parse_args()
    wrong = []
    for name in [arguments.only] if arguments.only else list(BLOCKS):
        fresh = BLOCKS[name]()
        text = README.read_text()
        if not arguments.check:
            README.write_text(with_block(text, name, fresh))
        elif masked(fresh) != masked(block_of(text, name)):
            wrong.append(name)
            print(f"README.md: the block {name} is not what the commands print now:\n{fresh}")
    if wrong:
        print("run ./scripts/readme to bring it up to date", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
