"""The README's block for three hosts, typed verbatim on three hosts of one LAN."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from localswarm import wait_until
from nethosts import Host, NetHosts

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.hosts


def readme_block() -> list[tuple[int, str]]:
    """(host number, command) of each line a person types."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- block: hands -->\n```\n(.*?)```", text, re.DOTALL)
    assert block is not None
    lines = re.findall(r"^host(\d)\$ (.+)$", block[1], re.MULTILINE)
    assert len(lines) >= 8
    return [(int(number), command) for number, command in lines]


class Person:
    """Types commands on the hosts, each from an empty folder, with the wheel on the PATH."""

    def __init__(self, hosts: NetHosts, environments: list[Path], folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.daemons: dict[int, subprocess.Popen[bytes]] = {}
        self.homes = {}
        self.environs = {}
        for number, path in enumerate(environments, 1):
            home = folder / f"empty{number}"
            home.mkdir()
            self.homes[number] = home
            self.environs[number] = {
                "PATH": f"{path / 'bin'}:{os.environ['PATH']}",
                "HOME": str(home),
                "LANG": "C.UTF-8",
            }

    def host(self, number: int) -> Host:
        return self.hosts[number - 1]

    def log(self, number: int) -> str:
        path = self.folder / f"log{number}"
        return path.read_text() if path.exists() else ""

    def start(self, number: int, command: str, stdin: str | None = None) -> None:
        self.daemons[number] = self.host(number).start(
            *shlex.split(command),
            cwd=str(self.homes[number]),
            env=self.environs[number],
            stdin=stdin,
            log=str(self.folder / f"log{number}"),
        )

    def type(self, number: int, command: str) -> subprocess.CompletedProcess[str]:
        return self.host(number).run(
            *shlex.split(command), cwd=str(self.homes[number]), env=self.environs[number]
        )

    def ask(self, number: int, command: str) -> Any:
        done = self.type(number, f"{command} --json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def sees(self, number: int, alive: int) -> bool:
        status = self.ask(number, "swarmctl status")
        return bool(status and status["alive"] == alive and status["coordinator"])

    def token(self) -> str:
        def printed() -> str:
            found = re.search(r"^([a-z2-7]{100,})$", self.log(1), re.MULTILINE)
            return found[1] if found else ""

        return str(wait_until("the join token is printed", printed))

    def end(self) -> None:
        for process in self.daemons.values():
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_the_readme_block_works_verbatim_and_survives_a_cut(
    three_hosts: NetHosts, environments: list[Path], folder: Path
) -> None:
    person = Person(three_hosts, environments, folder)
    try:
        _follow_the_readme(person)
        _cut_one_off_and_heal(person)
    except BaseException:
        for number in (1, 2, 3):
            print(f"---- host {number}\n{person.log(number)[-4_000:]}")
        raise
    finally:
        person.end()


def _follow_the_readme(person: Person) -> None:
    outputs: dict[str, str] = {}
    whole = False
    for number, command in readme_block():
        if command.startswith("swarmd --init"):
            person.start(number, command)
        elif command.startswith("swarmd"):
            person.start(number, command, stdin=person.token() + "\n")
        else:
            if not whole:
                for each in (1, 2, 3):
                    wait_until(
                        f"host {each} sees three", lambda n=each: person.sees(n, 3), timeout_s=40
                    )
                whole = True
            if command == "swarmctl leave":
                wait_until("three voters", lambda: voters(person) == 3)
            done = person.type(number, command)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            outputs[command] = done.stdout
    assert outputs["swarmctl kv get colour"] == "blue\n"
    assert "h1" in outputs["swarmctl members"]
    assert "succeeded" in outputs["swarmctl task list"]
    assert person.daemons[3].wait(15) == 0
    wait_until("host 3 left", lambda: person.sees(1, 2))


def voters(person: Person) -> int:
    status = person.ask(1, "swarmctl status")
    return len(status["store"]["voters"]) if status and status["store"] else 0


def _cut_one_off_and_heal(person: Person) -> None:
    person.start(3, "swarmd")
    for number in (1, 2, 3):
        wait_until(f"host {number} sees three", lambda n=number: person.sees(n, 3), timeout_s=40)
    wait_until("three voters", lambda: voters(person) == 3, timeout_s=30)
    h1, h2, h3 = person.hosts.hosts
    person.hosts.cut([h3], [h1, h2])
    wait_until("h3 is missed", lambda: person.sees(1, 2) and person.sees(2, 2), timeout_s=40)
    assert person.type(1, "swarmctl kv put during cut").returncode == 0
    alone = person.type(3, "swarmctl kv put alone x")
    assert alone.returncode == 4, alone.stderr
    ran = person.type(2, 'swarmctl run extractor --input \'{"text": "while cut"}\'')
    assert ran.returncode == 0, ran.stderr
    person.hosts.heal()
    for number in (1, 2, 3):
        wait_until(f"host {number} sees three", lambda n=number: person.sees(n, 3), timeout_s=60)
    assert person.type(3, "swarmctl kv get during").stdout == "cut\n"
    assert person.type(3, "swarmctl kv get alone").returncode == 1
