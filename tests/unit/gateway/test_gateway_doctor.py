"""Each check of the doctor, made to speak."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import member, node_id

from swarmd.base.limits import MIB
from swarmd.gateway import doctor, local_facts, shapes
from swarmd.gateway.doctor.facts import NodeFacts, PeerFacts
from swarmd.gateway.doctor.local import CREDENTIAL_WARN_MS, firewall_lines
from swarmd.gateway.local_facts import LocalFacts
from swarmd.gateway.status import next_loss
from swarmd.identity.authority import CREDENTIAL_MS
from swarmd.memory.vector.service import IndexFacts
from swarmd.mesh.discovery.adverts import InterfaceFacts
from swarmd.mesh.discovery.hearing import Hearing
from swarmd.mesh.facts import HOST_NAME, MeshFacts, NameFacts, SeedFacts
from swarmd.mesh.reach.messages import Answer
from swarmd.mesh.reach.service import Reach
from swarmd.mesh.standing import JoinFailure, Standing
from swarmd.mesh.swim.messages import MemberState

LOCAL = LocalFacts(
    data_folder="/var/lib/swarmd",
    folder_problem="",
    free_bytes=9_000 * MIB,
    port=7575,
    port_problem="",
    port_is_ours=True,
    clock_synchronised=True,
    firewalls=(),
)
WHOLE = Reach("ok", True, True, called=True, heard_s=0.1, answer=Answer(2, 2, "ok"))
ETH0 = InterfaceFacts(
    "eth0",
    ("10.0.0.1",),
    ("10.0.0.1:7575",),
    heard=2,
    hearing=Hearing(True, ("10.0.0.2", "10.0.0.3")),
    networks=("10.0.0.0/24",),
)
MESH = MeshFacts(
    mdns=True, interfaces=[ETH0], seeds=[], told=[("10.0.0.1", 7575)], loopback_names=[]
)


def peer(
    name: str, state: str = "alive", answered: bool = True, skew_s: float = 0.0, **more: Any
) -> PeerFacts:
    wanted = {"hosts": (f"10.0.0.{name[1:]}",), "version": "0.1.0", "protocol": 1, "reach": WHOLE}
    return PeerFacts(name, state, answered, skew_s, **(wanted | more))


HEALTHY = NodeFacts(
    node="n1",
    not_ready="",
    swarm="lab",
    local=LOCAL,
    mesh=MESH,
    peers=(peer("n2", skew_s=0.01), peer("n3", skew_s=-0.02)),
    store_state="ok",
    voters=("n1", "n2", "n3"),
    coordinator="n1",
    may_lose=1,
    next_loss="any one node may be lost",
    version="0.1.0",
    protocol=1,
)


def mesh(**changes: Any) -> MeshFacts:
    return replace(MESH, **changes)


def eth0(**changes: Any) -> MeshFacts:
    return mesh(interfaces=[replace(ETH0, **changes)])


def seeds(*problems: str) -> list[SeedFacts]:
    return [SeedFacts(f"h{n}", None, problem) for n, problem in enumerate(problems, 1)]


def check(name: str, **changes: Any) -> shapes.Check:
    facts = replace(HEALTHY, **changes)
    return next(one for one in doctor.examine(facts) if one.name == name)


def complaints(**changes: Any) -> dict[str, shapes.Check]:
    found = doctor.examine(replace(HEALTHY, **changes))
    return {one.name: one for one in found if one.verdict != "ok"}


def test_a_healthy_node_has_nothing_to_complain_about() -> None:
    found = doctor.examine(HEALTHY)
    assert {one.verdict for one in found} == {"ok"}
    wanted = "daemon,data folder,port,clock,addresses,mDNS eth0,members,MTU,version,firewall,quorum"
    assert [one.name for one in found] == wanted.split(",")


@pytest.mark.parametrize(
    ("name", "changes", "verdict", "finding", "advice"),
    [
        ("daemon", {"not_ready": "no quorum"}, "fail", "not ready: no quorum", "other checks"),
        ("daemon", {"not_ready": "x", "swarm": ""}, "fail", "in no swarm", "swarmd --join -"),
        (
            "data folder",
            {"local": replace(LOCAL, folder_problem="this user may not write to /var/lib")},
            "fail", "may not write", "--data-folder",
        ),
        ("data folder", {"local": replace(LOCAL, free_bytes=500 * MIB)}, "warn", "500 MiB", "room"),
        ("data folder", {"local": replace(LOCAL, free_bytes=5 * MIB)}, "fail", "5 MiB", "room"),
        (
            "port",
            {"local": replace(LOCAL, port_problem="UDP port 7575 on 0.0.0.0: in use")},
            "fail", "UDP port 7575", "mesh.port",
        ),
        ("clock", {"peers": (peer("n2", skew_s=3),)}, "warn", "behind n2", "ntp"),
        ("clock", {"peers": (peer("n2", skew_s=-90),)}, "fail", "ahead of n2", "ntp"),
        (
            "clock",
            {"peers": (), "local": replace(LOCAL, clock_synchronised=False)},
            "warn", "not synchronised", "set-ntp",
        ),
        (
            "mDNS eth0",
            {"mesh": eth0(problem="no multicast"), "peers": ()},
            "fail", "no multicast", "mesh.seeds",
        ),
        (
            "mDNS eth0",
            {"mesh": eth0(heard=0, refused={"malformed": 3, "own_echo": 1}), "peers": ()},
            "warn", "adverts refused: 3 malformed; this host hears itself", "UDP 5353",
        ),
        (
            "mDNS", {"mesh": mesh(interfaces=[]), "peers": ()},
            "fail", "no interface", "mesh.interfaces",
        ),
        ("mDNS", {"mesh": mesh(mdns=False), "peers": ()}, "warn", "no seeds", "mesh.seeds"),
        (
            "members",
            {"peers": (peer("n2", answered=False, reach=None), peer("n3"))},
            "fail", "not reached over TCP: n2", "TCP port 7575",
        ),
        (
            "members", {"peers": (peer("n2", "dead", False, reach=None),)},
            "warn", "heard: n2", "UDP",
        ),
        (
            "seeds",
            {"mesh": mesh(seeds=seeds("", "unknown host"))},
            "warn", "h2: unknown host", "mesh.seeds",
        ),
        (
            "seeds",
            {"mesh": mesh(seeds=seeds("no member"), mdns=False)},
            "fail", "h1: no member", "port 7575",
        ),
        ("quorum", {"store_state": "no_quorum"}, "fail", "no majority", "start the voters"),
        ("quorum", {"coordinator": ""}, "fail", "no majority", "start the voters"),
        ("quorum", {"may_lose": 0}, "warn", "any one node", "from three nodes on"),
    ],
)  # fmt: skip
def test_each_trouble_is_found_and_answered(
    name: str, changes: dict[str, Any], verdict: str, finding: str, advice: str
) -> None:
    found = check(name, **changes)
    assert found.verdict == verdict
    assert finding in found.finding
    assert advice in found.advice


def test_a_node_in_no_swarm_is_checked_for_what_it_can_be() -> None:
    """Nobody was asked yet: not a word of seeds that answered, members or voters."""
    found = doctor.examine(replace(HEALTHY, swarm="", not_ready="x", peers=()))
    names = [one.name for one in found]
    assert names == ["daemon", "data folder", "port", "clock", "firewall"]


def test_a_seed_that_is_the_node_itself_is_nothing_to_complain_about() -> None:
    own = SeedFacts("h1", None, "this is the node itself", own=True)
    assert complaints(mesh=mesh(seeds=[own])) == {}
    found = check("seeds", mesh=mesh(seeds=[own, SeedFacts("h2", None, "")]))
    assert (found.verdict, found.finding) == ("ok", "answered: h2")


def test_seeds_are_enough_without_mdns() -> None:
    found = check("mDNS", mesh=mesh(mdns=False, seeds=seeds("")))
    assert (found.verdict, found.finding) == ("ok", "off; seeds: h1")


@pytest.mark.parametrize(
    ("tool", "line"),
    [
        ("ufw", "ufw allow 7575"),
        ("firewall-cmd", "--add-port=7575/udp"),
        ("nft", "tcp dport 7575 accept"),
        ("iptables", "-p tcp --dport 7575"),
    ],
)
def test_firewall_lines_fit_the_tool_that_is_here(tool: str, line: str) -> None:
    found = firewall_lines(replace(LOCAL, firewalls=(tool,)))
    assert line in found.advice
    assert "5353" in found.advice or "mdns" in found.advice


# ---- this machine ---------------------------------------------------------------------


def test_a_taken_port_is_found_over_tcp_and_udp() -> None:
    host = "127.77.0.1"  # Nobody else's, so that no port there is in use by chance.
    for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind((host, 0))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            port = taken.getsockname()[1]
            assert f"{name} port {port}" in local_facts.port_problem(port, [host])
        assert local_facts.port_problem(port, [host]) == ""


def test_folders_that_cannot_keep_data_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "not a folder" in local_facts.folder_problem(tmp_path / "file" / "data")
    assert local_facts.folder_problem(tmp_path / "new" / "data") == ""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    assert "other users may read it" in local_facts.folder_problem(shared)


def test_facts_are_gathered_without_a_daemon(tmp_path: Path) -> None:
    facts = local_facts.gather(
        data_folder=tmp_path / "data", port=0, bind=["127.0.0.1", "::1"], port_is_ours=False
    )
    assert facts.folder_problem == ""
    assert facts.port_problem == ""
    assert facts.free_bytes > 0
    names = [one.name for one in doctor.examine_local(facts)]
    assert names == ["data folder", "port", "clock", "firewall"]


# ---- what the next loss costs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("alive", "dead", "voters", "state", "may_lose", "says"),
    [
        (["a"], [], ["a"], "ok", 0, "this is the only node"),
        (["a", "b"], [], ["a"], "ok", 0, "losing a, the only voter, stops the swarm"),
        (["a", "b"], [], ["a"], "ok", 0, "losing b costs only the attempts it runs"),
        (["a", "b", "c"], [], ["a", "b", "c"], "ok", 1, "any one node may be lost"),
        (list("abcde"), [], list("abcde"), "ok", 2, "any 2 nodes may be lost"),
        (["a", "b"], ["c"], ["a", "b", "c"], "ok", 0, "c is away: losing one more voter stops"),
        (["a"], ["b", "c"], ["a", "b", "c"], "no_quorum", 0, "until b and c are back"),
    ],
)
def test_the_next_loss_is_told(
    alive: list[str], dead: list[str], voters: list[str], state: str, may_lose: int, says: str
) -> None:
    present = [*map(member, alive), *(member(one, MemberState.DEAD) for one in dead)]
    store = shapes.StoreStatus(state=state, voters=voters, may_lose=may_lose)
    assert says in next_loss(present, [node_id(one) for one in voters], store)


def test_a_credential_is_told_of_before_it_ends() -> None:
    """A quarter of a life is what the doctor calls late."""
    assert CREDENTIAL_WARN_MS == CREDENTIAL_MS // 4
    good = check("credential", credential_left_ms=CREDENTIAL_MS // 2)
    assert (good.verdict, good.finding) == (
        "ok",
        "good for 15 d more; it is renewed at half of its life",
    )
    late = check("credential", credential_left_ms=CREDENTIAL_MS // 5)
    assert late.verdict == "warn"
    assert "6 d more" in late.finding
    assert "the log of the daemon says why" in late.advice
    over = check("credential", credential_left_ms=0)
    assert over.verdict == "fail"
    assert "expired" in over.finding


# ---- the one cause of what is seen ----------------------------------------------------

SILENT = Reach("silent")


def blocked(**changes: Any) -> tuple[PeerFacts, ...]:
    return (peer("n2", **({"answered": False} | changes)), peer("n3"))


@pytest.mark.parametrize(
    ("reach", "says", "where"),
    [
        # What comes from n2 is dropped here: it hears us, also over TCP we hear nothing of it.
        (
            Reach("silent", heard_s=60, answer=Answer(4, 4, "silent"), relayed=True),
            "UDP and TCP from n2 to this host is dropped", "on this host",
        ),
        # The same seen from there, with and without somebody to ask.
        (
            Reach("silent", called=True, heard_s=1, answer=Answer(0, 0, "silent"), relayed=True),
            "UDP and TCP from this host to n2 is dropped", "on n2",
        ),
        (
            Reach("ok", True, True, heard_s=1, answer=Answer(4, 4, "silent")),
            "TCP from n2 to this host is dropped", "on this host",
        ),
        (
            Reach("silent", True, True, called=True, heard_s=1, answer=Answer(4, 4, "ok")),
            "TCP from this host to n2 is dropped", "on n2",
        ),
        (
            Reach("ok", heard_s=60, answer=Answer(4, 4, "ok")),
            "UDP from n2 to this host is dropped", "on this host",
        ),
        (
            Reach("ok", called=True, heard_s=1, answer=Answer(0, 0, "ok")),
            "UDP from this host to n2 is dropped", "on n2",
        ),
        (
            Reach("ok", heard_s=60, answer=Answer(0, 0, "ok")),
            "UDP between this host and n2 is dropped both ways", "on both sides",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("state", ["alive", "suspect", "dead"])
def test_a_wall_is_named_with_its_direction_and_nothing_else_is_blamed(
    reach: Reach, says: str, where: str, state: str
) -> None:
    found = complaints(peers=blocked(reach=reach, state=state))
    wall = found.pop("firewall")
    assert wall.verdict == "fail"
    assert says in wall.finding
    assert f"open {where}" in wall.advice
    assert "tcp dport 7575 accept" in wall.advice
    members = found.pop("members")
    assert members.advice == "see the check `firewall`"
    assert not found


@pytest.mark.parametrize(
    "reach",
    [
        Reach("ok", True, False, heard_s=1, answer=Answer(4, 0, "ok")),
        Reach("stalled", True, False, heard_s=1),
        Reach("stalled", True, False, heard_s=1, answer=Answer(4, 0, "stalled"), relayed=True),
    ],
)
def test_large_packets_that_are_lost_are_the_mtu_s_fault_alone(reach: Reach) -> None:
    found = complaints(peers=blocked(reach=reach))
    assert "1228 bytes do not get through to n2" in found["MTU"].finding
    assert "ping -M do" in found["MTU"].advice
    assert found["members"].advice == "see the check `MTU`"
    assert set(found) == {"MTU", "members"}
    own = complaints(peers=blocked(reach=replace(reach, too_large=True)))
    assert "this host itself sends no larger ones" in own["MTU"].finding


def test_who_was_not_tried_is_blamed_on_what_membership_knows() -> None:
    """More members than are tried at once: that one answers over streams alone is known anyway."""
    deaf = peer("n2", reach=None, stream_only=True)
    found = complaints(peers=(deaf, peer("n3")))
    wall = found["firewall"]
    assert wall.finding == "UDP between this host and n2 is dropped, at least one way"
    assert "udp dport" in wall.advice
    assert complaints(peers=(peer("n2", reach=None), peer("n3"))) == {}
    assert complaints(peers=(peer("n2", stream_only=True), peer("n3"))) == {}


def test_who_is_heard_since_it_was_missed_does_not_hear_this_node() -> None:
    """With nobody to ask: a host that is off was heard before, and not since."""
    heard = peer("n2", "dead", False, reach=Reach("silent", heard_s=3), state_s=20)
    found = complaints(peers=(heard, peer("n3")))
    assert "UDP and TCP from this host to n2 is dropped" in found["firewall"].finding
    off = peer("n2", "dead", False, reach=Reach("silent", heard_s=23), state_s=20)
    assert set(complaints(peers=(off, peer("n3")))) == {"members"}


def test_a_build_that_knows_no_probes_is_blamed_on_no_firewall() -> None:
    assert complaints(peers=(peer("n2", reach=Reach("ok", heard_s=1, unasked=True)),)) == {}


def test_who_is_off_is_blamed_on_no_firewall() -> None:
    found = complaints(peers=(peer("n2", "dead", False, reach=SILENT), peer("n3")))
    assert set(found) == {"members"}
    assert "not heard: n2" in found["members"].finding
    ended = Reach("refused", heard_s=60)
    found = complaints(peers=(peer("n2", "dead", False, reach=ended), peer("n3")))
    assert set(found) == {"members"}
    assert "nobody listens at the address of n2" in found["members"].finding


def test_another_node_at_a_member_s_address_is_named() -> None:
    reach = Reach("other", True, True, heard_s=1, answer=Answer(4, 4, "ok"))
    found = complaints(peers=blocked(reach=reach))
    assert "another node answers at the address of n2" in found["members"].finding
    assert "mesh.advertise" in found["members"].advice
    assert set(found) == {"members"}


# ---- multicast and names --------------------------------------------------------------


def test_multicast_that_is_blocked_here_differs_from_blocked_beyond() -> None:
    deaf = Hearing(False, sent=False, problem="Operation not permitted")
    found = complaints(mesh=eth0(heard=0, hearing=deaf))
    assert "blocked on this host (Operation not permitted)" in found["mDNS eth0"].finding
    assert "udp dport '{ 7575, 5353 }'" in found["mDNS eth0"].advice
    assert found["mDNS eth0"].verdict == "warn", "others are there all the same"
    assert complaints(mesh=eth0(heard=0, hearing=deaf), peers=())["mDNS eth0"].verdict == "fail"
    found = complaints(mesh=eth0(heard=0, hearing=Hearing(True)))
    assert "n2, n3 are on this network" in found["mDNS eth0"].finding
    assert "blocked between the hosts" in found["mDNS eth0"].finding
    far = tuple(peer(name, hosts=("10.9.9.9",)) for name in ("n2", "n3"))
    assert complaints(mesh=eth0(heard=0, hearing=Hearing(True)), peers=far) == {}


def test_another_swarm_on_the_link_is_named() -> None:
    other = eth0(heard=0, refused={"other_swarm": 1}, others=("5fe2 at 10.0.0.9:7575",))
    found = complaints(mesh=other, peers=())
    assert "5fe2 at 10.0.0.9:7575, and none of lab" in found["other swarms"].finding
    assert "with a token" in found["other swarms"].advice
    assert "1 of another swarm" in found["mDNS eth0"].finding
    beside = check(
        "other swarms", mesh=replace(other, interfaces=[replace(other.interfaces[0], heard=2)])
    )
    assert beside.verdict == "ok"


def test_a_seed_of_another_swarm_is_named_as_such() -> None:
    other = SeedFacts("h1", None, "no member has answered there", swarm="attic")
    found = complaints(mesh=mesh(seeds=[other]), peers=())
    assert "answer at seeds of this one: h1: attic" in found["other swarms"].finding
    assert "name members of lab in mesh.seeds" in found["other swarms"].advice
    assert set(found) == {"other swarms"}
    found = complaints(mesh=mesh(seeds=[other, SeedFacts("h2", None, "no member")]))
    assert found["seeds"].finding == "h2: no member"


def test_a_member_may_say_that_it_is_anywhere() -> None:
    odd = (peer("n2", hosts=("no address", "")), peer("n3", hosts=("10.9.9.9",)))
    assert complaints(mesh=eth0(heard=0, hearing=Hearing(True)), peers=odd) == {}


def test_names_that_mean_each_host_itself_are_named() -> None:
    name = NameFacts("mesh.advertise", "host1", "127.0.1.1")
    found = complaints(mesh=mesh(loopback_names=[name], told=[("127.0.1.1", 7575)]))
    assert found["addresses"].verdict == "fail"
    assert "mesh.advertise names host1, which is 127.0.1.1 here" in found["addresses"].finding
    assert "/etc/hosts" in found["addresses"].advice
    name = NameFacts("mesh.seeds", "h1", "127.0.1.1")
    found = complaints(mesh=mesh(loopback_names=[name], seeds=seeds("no member has answered")))
    assert set(found) == {"addresses"}, "the seed is not blamed twice"
    own = check("addresses", mesh=mesh(loopback_names=[NameFacts(HOST_NAME, "h1", "127.0.1.1")]))
    assert own.verdict == "ok"
    assert "calls itself h1 at 127.0.1.1" in own.finding
    assert complaints(mesh=mesh(told=[]))["addresses"].verdict == "warn"
    gone = complaints(mesh=mesh(missing_binds=["10.0.0.1"]))
    assert (
        "mesh.bind names 10.0.0.1, which no interface of this host has" in gone["addresses"].finding
    )


# ---- versions and clocks --------------------------------------------------------------


def test_versions_that_differ_are_named() -> None:
    found = complaints(peers=(peer("n2", protocol=2, version="0.9"), peer("n3")))
    assert (
        "this node speaks protocol version 1 (0.1.0); n2 speaks 2 (0.9)" in found["version"].finding
    )
    assert set(found) == {"version"}
    found = complaints(mesh=eth0(old_at=("10.0.0.9:7575",)))
    assert "the advert at 10.0.0.9:7575 is of another version" in found["version"].finding
    fine = check("version", peers=(peer("n2", version="0.2.0"),))
    assert (fine.verdict, "other members run 0.2.0" in fine.finding) == ("ok", True)


def test_a_name_of_several_members_is_told_with_their_ids() -> None:
    found = complaints(shared_names={"n2": ["1a2b3c4d", "5e6f7a8b"]})
    assert set(found) == {"names"}
    assert found["names"].verdict == "warn"
    assert "carry one name: n2 (1a2b3c4d, 5e6f7a8b)" in found["names"].finding
    assert "node.name" in found["names"].advice


@pytest.mark.parametrize(
    ("skews", "says", "where"),
    [
        ((90, 90), "this machine's clock is 90.0 s behind the other members'", "on this host"),
        ((-5, -5, -5.2), "this machine's clock is 5.0 s ahead of", "on this host"),
        ((0, 90), "n3's is 90.0 s ahead of this machine's and most others'", "there"),
        ((-90, 0, 0), "n2's is 90.0 s behind this machine's", "there"),
        ((90,), "90.0 s behind n2's", "on both"),
        ((0, 90, 90), "90.0 s behind n3's", "on both"),
    ],
)
def test_whose_clock_is_off_is_for_the_most_to_say(
    skews: tuple[float, ...], says: str, where: str
) -> None:
    peers = tuple(peer(f"n{n}", skew_s=skew_s) for n, skew_s in enumerate(skews, 2))
    found = complaints(peers=peers)
    assert says in found["clock"].finding
    assert f"time synchronisation {where}" in found["clock"].advice
    assert set(found) == {"clock"}


# ---- what the disk says of a node that does not run -----------------------------------


def local(**changes: Any) -> dict[str, shapes.Check]:
    found = doctor.examine_local(replace(LOCAL, **changes))
    return {one.name: one for one in found if one.verdict != "ok"}


def test_why_a_node_does_not_run_is_read_from_its_disk() -> None:
    found = local(standing=Standing("lab", evicted=True))
    assert "was evicted from the swarm lab" in found["swarm"].finding
    assert "empty data folder" in found["swarm"].advice
    found = local(standing=Standing("lab", too_old=4))
    assert "takes protocol version 4 or above" in found["version"].finding
    assert "upgrade" in found["version"].advice
    found = local(standing=Standing(problem="authority is damaged"))
    assert found["swarm"].finding == "authority is damaged"
    assert local(standing=Standing("lab"), join_failure=JoinFailure("x", "y", 1)) == {}
    found = local(join_failure=JoinFailure("token_refused", "the join token has expired", 1))
    assert "failed: the join token has expired" in found["join"].finding
    assert "swarmctl token create" in found["join"].advice


def test_an_index_of_vectors_that_is_elsewhere_is_told_of() -> None:
    problem = "the vector database swarmd on db.lan:5432 cannot be used: connection refused"
    found = check("vectors", index=IndexFacts("pgvector", None, problem))
    assert (found.verdict, found.finding) == ("fail", problem)
    assert "vectors.pgvector_*" in found.advice
    well = check("vectors", index=IndexFacts("pgvector", 12, ""))
    assert (well.verdict, "12 entries" in well.finding) == ("ok", True)
    filling = check("vectors", index=IndexFacts("pgvector", None, ""))
    assert (filling.verdict, "is filled" in filling.finding) == ("ok", True)
    # One that is here needs no word unless it is unwell.
    assert not complaints(index=IndexFacts("embedded", 12, ""))
    assert complaints(index=IndexFacts("embedded", None, "no room"))["vectors"].verdict == "fail"
