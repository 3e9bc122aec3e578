"""Hosts on one machine: each a network, mount and host-name namespace of its own.

The hosts hang on a bridge in a namespace of the harness's own, so nothing reaches the
machine's interfaces. A host's system folders of swarmd are its own, and empty. Everything ends
with the processes that hold the namespaces, which are ended here by their ids.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SUBNET = "10.77.0"
SUBNET6 = "fd77:0:0:1:"
OWN_FOLDERS = ("/var/lib/swarmd", "/etc/swarmd", "/run/swarmd")
_MADE: Final = ".made-for-hosts"
_USED: Final = ".used-by-hosts-"
_TRIES: Final = 100


def missing_tools() -> str:
    """Why hosts cannot be made here; empty if they can."""
    if os.getuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nft", "unshare", "nsenter") if shutil.which(tool) is None]
    return f"missing: {', '.join(missing)}" if missing else ""


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass
class MountPoints:
    """Folders of the machine that are there, for hosts to mount something of their own over.

    Those that were not there are made, and go with the last who uses them: to remove one that
    others have mounted something over would take it from them. So each user leaves an empty file
    in it, as does who made it; hosts see neither.
    """

    folders: Sequence[Path]
    _marks: list[Path] = field(default_factory=list)

    def take(self) -> None:
        """Raises OSError: a folder cannot be made or marked; nothing is left then."""
        try:
            for folder in self.folders:
                self._marks.append(_marked(folder))
        except OSError:
            self.give_back()
            raise

    def give_back(self) -> None:
        while self._marks:
            mark = self._marks.pop()
            with contextlib.suppress(FileNotFoundError):  # Another one removes the folder just now.
                mark.unlink()
                _remove_if_unused(mark.parent)


def _marked(folder: Path) -> Path:
    """The new mark in a folder, which may go at any time until then."""
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True)
            (folder / _MADE).touch()
        except FileExistsError:
            pass
        except FileNotFoundError:
            continue
        with contextlib.suppress(FileNotFoundError):
            handle, name = tempfile.mkstemp(prefix=_USED, dir=folder)
            os.close(handle)
            return Path(name)
    raise OSError(f"{folder} goes whenever it is made")


def _remove_if_unused(folder: Path) -> None:
    """Raises FileNotFoundError: it is gone already."""
    made = folder / _MADE
    while list(folder.iterdir()) == [made]:
        made.unlink()
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            raise
        except OSError:  # Somebody began to use it, and may have ended by now.
            made.touch()


@dataclass
class Host:
    """One namespace, held by `holder`."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]

    @property
    def root(self) -> Path:
        """The host's file system, as seen from outside."""
        return Path(f"/proc/{self.holder.pid}/root")

    def enter(self, *command: str) -> list[str]:
        """`command` as it is run on this host."""
        return ["nsenter", "-t", str(self.holder.pid), "-m", "-u", "-n", "--", *command]

    def do(self, command: str) -> None:
        """Run a command that must succeed, its words divided by spaces."""
        run(*self.enter(*command.split()))

    def drop(self, hook: str, *rules: str) -> None:
        """Have the host's firewall drop what meets one of the rules, in or out."""
        self.do("nft add table inet wall")
        chain = f"{{ type filter hook {hook} priority 0; }}"
        run(*self.enter("nft", "add", "chain", "inet", "wall", hook, chain))
        for rule in rules:
            run(*self.enter("nft", "add", "rule", "inet", "wall", hook, *rule.split(), "drop"))

    def run(
        self, *command: str, cwd: str = "/", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.enter("sh", "-c", 'cd "$0" && exec "$@"', cwd, *command),
            capture_output=True,
            text=True,
            timeout=120,
            env=env,
            check=False,
        )

    def start(
        self,
        *command: str,
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        log: str,
    ) -> subprocess.Popen[bytes]:
        """Start a long-running command; its output goes to the file `log`."""
        with open(log, "ab") as out:
            process = subprocess.Popen(
                self.enter("sh", "-c", 'cd "$0" && exec "$@"', cwd, *command),
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=env,
            )
        if stdin is not None:
            assert process.stdin is not None
            process.stdin.write(stdin.encode())
            process.stdin.close()
        return process


class NetHosts:
    """A bridge with `count` hosts h1, h2, ... at 10.77.0.1, 10.77.0.2, ...

    Args:
        own_folders: folders of which each host has its own, and empty, in place of the machine's.
        families: which IP versions the hosts speak. Over 6 they have fd77:0:0:1::1 and so on, too,
            and every one a link-local address, as hosts have; without it IPv6 is off.
    """

    def __init__(
        self,
        count: int,
        own_folders: Sequence[str] = OWN_FOLDERS,
        families: Sequence[int] = (4,),
    ) -> None:
        self._own_folders, self._families = own_folders, families
        self._mount_points = MountPoints([Path(folder) for folder in own_folders])
        self._mount_points.take()
        self.switch = self._hold(["unshare", "--net", "sleep", "infinity"])
        self._in_switch("ip", "link", "set", "lo", "up")
        self._in_switch("ip", "link", "add", "br0", "type", "bridge")
        self._in_switch("ip", "link", "set", "br0", "up")
        self.hosts = [self._add(number) for number in range(1, count + 1)]

    def __enter__(self) -> NetHosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def close(self) -> None:
        for holder in [*(host.holder for host in self.hosts), self.switch]:
            holder.kill()
            holder.wait()
        self._mount_points.give_back()

    @staticmethod
    def _hold(command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process that holds namespaces; it prints a line once it has them."""
        marked = [*command[:-2], "sh", "-c", "echo ready; exec sleep infinity"]
        holder = subprocess.Popen(marked, stdout=subprocess.PIPE)
        assert holder.stdout is not None
        holder.stdout.readline()
        return holder

    def _in_switch(self, *command: str) -> None:
        run("nsenter", "-t", str(self.switch.pid), "-n", "--", *command)

    def _add(self, number: int) -> Host:
        holder = self._hold(["unshare", "--net", "--mount", "--uts", "sleep", "infinity"])
        host = Host(f"h{number}", f"{SUBNET}.{number}", holder)
        for folder in self._own_folders:
            run(*host.enter(*f"mount -t tmpfs -o mode=0755 none {folder}".split()))
        run(*host.enter("hostname", host.name))
        port = f"port{number}"
        self._in_switch(*f"ip link add {port} type veth peer name eth0 netns {holder.pid}".split())
        self._in_switch("ip", "link", "set", port, "master", "br0", "up")
        host.do("ip link set lo up")
        if 6 not in self._families:
            host.do("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1")
        if 4 in self._families:
            host.do(f"ip addr add {host.address}/24 dev eth0")
        if 6 in self._families:
            host.do(f"ip -6 addr add {SUBNET6}:{number}/64 dev eth0 nodad")
        host.do("ip link set eth0 up multicast on")
        if 4 in self._families:
            host.do("ip route add 224.0.0.0/4 dev eth0")
        return host

    def plug(self, host: Host, interface: str, address: str) -> None:
        """Give a host one more interface on the bridge, with an IPv4 address of its own."""
        port = f"{host.name}{interface}"
        pair = f"ip link add {port} type veth peer name {interface} netns {host.holder.pid}"
        self._in_switch(*pair.split())
        self._in_switch("ip", "link", "set", port, "master", "br0", "up")
        host.do(f"ip addr add {address}/24 dev {interface}")
        host.do(f"ip link set {interface} up multicast on")

    def move(self, host: Host, address: str) -> None:
        """Take the host's IPv4 address away and give it another one."""
        host.do(f"ip addr del {host.address}/24 dev eth0")
        host.do(f"ip addr add {address}/24 dev eth0")
        host.do("ip route replace 224.0.0.0/4 dev eth0")
        host.address = address

    def keep_multicast(self) -> None:
        """The switch passes no multicast any more, as many an access point."""
        for number in range(1, len(self.hosts) + 1):
            self._in_switch(*f"bridge link set dev port{number} mcast_flood off".split())

    def set_mtu(self, host: Host, mtu_bytes: int) -> None:
        """What is larger is lost, without a word, at the switch's side of the host's cable."""
        self._in_switch(*f"ip link set port{host.name[1:]} mtu {mtu_bytes}".split())

    def cut(self, one: Iterable[Host], other: Iterable[Host], *, one_way: bool = False) -> None:
        """Nothing passes from `one` to `other` any more, nor back unless `one_way`."""
        left, right = list(one), list(other)
        pairs = [(a, b) for a in left for b in right]
        if not one_way:
            pairs += [(b, a) for a, b in pairs]
        for source, target in pairs:
            run(*target.enter("nft", "add", "table", "ip", "cut"))
            chain = "{ type filter hook input priority 0; }"
            run(*target.enter("nft", "add", "chain", "ip", "cut", "in", chain))
            rule = f"ip saddr {source.address} drop"
            run(*target.enter("nft", "add", "rule", "ip", "cut", "in", *rule.split()))

    def make_disk(self, host: Host, folder: Path, size_mib: int) -> None:
        """Give `host` a small disk of its own, in memory, at `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={size_mib}m,mode=0700"
        run(*host.enter("mount", "-t", "tmpfs", "-o", options, "none", str(folder)))

    def heal(self) -> None:
        """Everything passes again."""
        for host in self.hosts:
            run(*host.enter("nft", "flush", "ruleset"))
