"""Two swarms of one name on one link: each stays what it is, whoever is heard or called first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until
from nethosts import NetHosts, missing_tools

from swarmd.client import Client

TOGETHER_S = 15.0
SETTLE_S = 5.0
HEARD_S = 2.0

pytestmark = pytest.mark.hosts


@pytest.fixture
def link() -> Iterator[NetHosts]:
    """Three hosts for each swarm, and two for who comes late."""
    reason = missing_tools()
    if reason:
        pytest.skip(reason)
    with NetHosts(8, own_folders=()) as hosts:
        yield hosts


def ids(daemon: Daemon, state: str = "alive") -> set[str]:
    return {x["node_id"] for x in daemon.try_json("members") or [] if x["state"] == state}


def own_id(daemon: Daemon) -> str:
    [found] = [x["node_id"] for x in daemon.json("members") if x["itself"]]
    return str(found)


def tells_of_others(daemon: Daemon) -> bool:
    """Whether the doctor says how many adverts were its swarm's, and how many the other's."""
    [heard] = [x for x in daemon.json("doctor")["checks"] if x["name"] == "mDNS eth0"]
    return "2 other nodes heard, adverts refused: 3 of another swarm" in heard["finding"]


def refused_as_others(daemon: Daemon) -> float:
    """How many packets of another swarm a daemon has thrown away."""
    with Client(daemon.socket) as client:
        lines = client.metrics().splitlines()
    wanted = 'swarmd_dropped_total{reason="other_swarm",where="udp"} '
    return sum(float(x.removeprefix(wanted)) for x in lines if x.startswith(wanted))


def form_both(a: LocalSwarm, b: LocalSwarm) -> tuple[str, str]:
    """Both are called `lab`, and their nodes start in turn; the tokens of each."""
    tokens = []
    for swarm in (a, b):
        swarm[0].start("--init", "lab")
    for swarm in (a, b):
        wait_until("ready", lambda s=swarm: (s[0].try_json("status") or {}).get("ready"))
        tokens.append(swarm[0].json("token", "create", "--uses", "20")["token"])
    for number in (1, 2):
        for swarm, token in zip((a, b), tokens, strict=True):
            swarm[number].start("--join", "-", stdin=token)
    for swarm in (a, b):
        swarm.wait_whole(voters=3)
    return tokens[0], tokens[1]


def stays(swarm: LocalSwarm, members: set[str]) -> bool:
    """Every daemon knows these as alive, and nobody else in any state."""
    return all(
        {x["node_id"] for x in daemon.json("members")} == ids(daemon) == members
        for daemon in swarm.daemons
    )


def late(name: str, number: int, root: Path, hosts: NetHosts, **mesh: object) -> Daemon:
    host = hosts[number - 1]
    daemon = Daemon(name, root / name, host.address, 7575, place=host)
    daemon.write_config(mesh=mesh)
    return daemon


def test_two_swarms_of_one_name_on_one_lan(folder: Path, link: NetHosts) -> None:
    """They start in turn, hear each other's adverts, and later sit at each other's addresses."""
    first = LocalSwarm(folder / "a", 3, static=False, places=link.hosts[:3])
    second = LocalSwarm(folder / "b", 3, static=False, places=link.hosts[3:6])
    with first as a, second as b:
        token, _ = form_both(a, b)
        whole_at = time.monotonic()
        in_a, in_b = ({own_id(d) for d in swarm.daemons} for swarm in (a, b))
        assert a[0].json("authority", "verify")["swarm"] == "lab"
        assert b[0].json("authority", "verify")["swarm"] == "lab"
        swarm_ids = {d.json("authority", "verify")["swarm_id"] for d in (a[0], b[0])}
        assert len(swarm_ids) == 2
        time.sleep(max(0.0, whole_at + TOGETHER_S - time.monotonic()))
        assert stays(a, in_a)
        assert stays(b, in_b)
        for swarm in (a, b):
            wait_until("doctor tells of the others", lambda s=swarm: tells_of_others(s[0]))

        # Who has a token of A hears nobody but B at first, or is sent to B.
        unlucky = late("late", 7, folder, link, mdns=True)
        misled = late("misled", 8, folder, link, seeds=[b[0].address, a[0].address], mdns=False)
        a.daemons += [unlucky, misled]
        link.cut(link.hosts[:3], [link.hosts[6]])
        unlucky.start("--join", "-", stdin=token)
        looks = "looking for the swarm by mDNS"
        wait_until("it looks for its swarm", lambda: looks in unlucky.log.read_text())
        time.sleep(HEARD_S)
        assert "joined" not in unlucky.log.read_text()
        link.heal()
        misled.start("--join", "-", stdin=token)
        a.wait_whole(voters=3)
        in_a |= {own_id(unlucky), own_id(misled)}
        assert len(in_a) == 5
        assert stays(a, in_a)
        assert stays(b, in_b)

        # What each remembers of its own is where the other is now.
        for one in [*a.daemons, *b.daemons]:
            assert one.terminate() == 0
        for mine, theirs in zip(a.daemons, b.daemons, strict=False):
            mine.place, theirs.place = theirs.place, mine.place
            mine.address, theirs.address = theirs.address, mine.address
            for one in (mine, theirs):
                one.write_config(mesh={"mdns": True})
        for one in [*a.daemons, *b.daemons]:
            one.start()
        for swarm in (a, b):
            swarm.wait_whole(voters=3)
        assert sum(refused_as_others(one) for one in (*a.daemons, *b.daemons)) > 0
        time.sleep(SETTLE_S)
        assert stays(a, in_a)
        assert stays(b, in_b)
        assert {d.json("authority", "verify")["swarm_id"] for d in (a[0], b[0])} == swarm_ids
        assert a[0].ctl("kv", "put", "of", "a").returncode == 0
        assert b[0].ctl("kv", "get", "of").returncode == 1
