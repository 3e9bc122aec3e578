"""What `bench swim` makes of logs, of the kernel's table and of packets."""

from __future__ import annotations

import socket
import struct
import subprocess
from pathlib import Path

import pytest
from loopback import Count, Packet, Sent, bound_hosts, parse_packet
from percentiles import at
from serf_peer import agent_command, no_services
from sightings import (
    Record,
    Sighting,
    all_see_all_at,
    doubts,
    known_to_all_at,
    seen_by_serf,
    seen_by_swarmd,
    strangers,
)

NAMES = ("n1", "n2", "n3")
MEMBER = (
    '{"room": "swim", "node": "n2", "id": "k3ab", "was": "alive", "now": "suspect", '
    '"event": "member", "level": "info", "timestamp": "2026-11-26T21:53:09.250000Z"}'
)
UDP_TABLE = """\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  101: 0100007F:1D97 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12 2 0
  102: 0A00007F:1D97 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 13 2 0
  103: 0200007F:1F0A 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 14 2 0
"""


def alive(at: float, by: str, whom: str) -> Sighting:
    return Sighting(at, by, whom, "alive")


def mesh(at: float) -> list[Sighting]:
    return [alive(at, by, whom) for by in NAMES for whom in NAMES if by != whom]


# ---- logs -----------------------------------------------------------------------------


def test_a_daemons_line_tells_whom_it_holds_to_be_what_by_its_own_stamp() -> None:
    found = seen_by_swarmd("n1", MEMBER)
    assert found == Sighting(1795729989.25, "n1", "n2", "suspect")
    assert seen_by_swarmd("n1", MEMBER.replace('"member"', '"ready"')) is None
    for line in ("", "Traceback (most recent call last):", "17", "[]", '{"a": 1}'):
        assert seen_by_swarmd("n1", line) is None


def test_an_agents_line_counts_from_when_it_came() -> None:
    lines = {
        "    2026/11/26 21:53:09 [INFO] serf: EventMemberJoin: n2 127.0.0.2": "alive",
        "    2026/11/26 21:53:09 [INFO] serf: EventMemberFailed: n2 127.0.0.2": "dead",
        "    2026/11/26 21:53:09 [INFO] serf: EventMemberLeave: n2 127.0.0.2": "left",
        "    2026/11/26 21:53:09 [INFO] memberlist: Suspect n2 has failed, no acks received": (
            "accused"
        ),
    }
    for line, state in lines.items():
        assert seen_by_serf("n1", 5.5, line) == Sighting(5.5, "n1", "n2", state)
    others = (
        "    2026/11/26 21:53:09 [INFO] agent: Received event: member-join",
        "    2026/11/26 21:53:09 [INFO] serf: EventMemberUpdate: n2",
    )
    assert [seen_by_serf("n1", 5.5, line) for line in others] == [None, None]


# ---- what is made of them -------------------------------------------------------------


def test_all_see_all_when_the_last_pair_is_there() -> None:
    seen = mesh(3.0)
    assert all_see_all_at(seen, NAMES) == 3.0
    late = [*seen[1:], alive(7.0, seen[0].by, seen[0].whom)]
    assert all_see_all_at(late, NAMES) == 7.0
    assert all_see_all_at(seen[1:], NAMES) is None
    assert all_see_all_at([*seen[1:], alive(1.0, "n1", "n1"), alive(1.0, "n1", "x")], NAMES) is None


def test_who_was_lost_meanwhile_is_not_seen() -> None:
    seen = mesh(3.0)
    lost = Sighting(2.0, "n1", "n2", "dead")
    early = [alive(1.0, "n1", "n2"), lost, *[one for one in seen if one.by != "n1"]]
    assert all_see_all_at([*early, alive(3.0, "n1", "n3")], NAMES) is None
    assert all_see_all_at([*early, alive(3.0, "n1", "n3"), alive(4.0, "n1", "n2")], NAMES) == 4.0


def test_who_is_a_stranger_is_as_the_latest_word_of_each_says() -> None:
    seen = mesh(3.0)
    assert strangers(seen, NAMES) == []
    assert strangers([*seen, Sighting(4.0, "n3", "n1", "suspect")], NAMES) == [("n3", "n1")]
    assert strangers([Sighting(2.0, "n3", "n1", "suspect"), *seen], NAMES) == []
    assert strangers(seen[1:], NAMES) == [(seen[0].by, seen[0].whom)]


def test_an_accusation_that_does_not_tell_its_end_makes_no_stranger() -> None:
    accused = Sighting(4.0, "n3", "n1", "accused")
    assert strangers([*mesh(3.0), accused], NAMES) == []
    assert all_see_all_at([*mesh(5.0), accused], NAMES) == 5.0
    assert doubts([accused], since=0.0) == [accused]


def test_a_death_is_known_when_the_last_other_holds_it() -> None:
    seen = [
        Sighting(1.0, "n3", "n2", "dead"),  # Of an earlier death.
        Sighting(11.0, "n1", "n2", "suspect"),
        Sighting(12.0, "n1", "n2", "dead"),
    ]
    assert known_to_all_at(seen, "n2", "dead", NAMES, since=10.0) is None
    seen += [Sighting(13.0, "n3", "n2", "dead"), Sighting(19.0, "n3", "n2", "dead")]
    assert known_to_all_at(seen, "n2", "dead", NAMES, since=10.0) == 13.0


def test_doubts_are_suspicions_and_deaths_since_then() -> None:
    states = ("alive", "suspect", "accused", "dead", "left", "forgotten")
    seen = [Sighting(5.0, "n1", "n2", state) for state in states]
    assert [one.state for one in doubts(seen, since=5.0)] == ["suspect", "accused", "dead"]
    assert doubts(seen, since=5.1) == []


def test_what_was_seen_in_an_earlier_life_is_kept_apart() -> None:
    record = Record()
    record.add([alive(1.0, "n1", "n2"), None, alive(1.0, "n2", "n1")])
    record.started("n1", 2.0)
    record.add([alive(3.0, "n1", "n3")])
    assert record.current() == [alive(1.0, "n2", "n1"), alive(3.0, "n1", "n3")]
    assert len(record.all()) == 3
    record.clear()
    assert record.all() == []


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(1, 201)]
    assert (at(values, 0.5), at(values, 0.99), at(values, 1.0)) == (100.0, 198.0, 200.0)
    assert at([7.0], 0.99) == 7.0


# ---- the loopback ---------------------------------------------------------------------


def test_who_has_bound_a_port_is_read_from_the_kernels_table() -> None:
    assert bound_hosts(UDP_TABLE, 7575) == {"127.0.0.1", "127.0.0.10"}
    assert bound_hosts(UDP_TABLE, 7946) == {"127.0.0.2"}
    assert bound_hosts(UDP_TABLE, 1) == set()


def packet(protocol: int, payload: bytes = b"12345678", options: bytes = b"") -> bytes:
    hosts = socket.inet_aton("127.0.0.1") + socket.inet_aton("127.0.0.2")
    ports = struct.pack(">HHHH", 7575, 40_000, 8 + len(payload), 0)
    size = 20 + len(options) + len(ports) + len(payload)
    first = 0x40 | (5 + len(options) // 4)
    head = struct.pack(">BBHHHBBH", first, 0, size, 0, 0, 64, protocol, 0) + hosts + options
    return head + ports + payload


def test_a_packet_counts_with_its_headers() -> None:
    ends = ("127.0.0.1", 7575), ("127.0.0.2", 40_000)
    assert parse_packet(packet(17)) == Packet("udp", *ends, 36)
    assert parse_packet(packet(6, options=b"\1\1\1\1")) == Packet("tcp", *ends, 40)
    assert parse_packet(packet(17)[:24]) == Packet("udp", *ends, 36), "the rest is not looked at"
    for raw in (b"", packet(1), b"\x60" + packet(17)[1:], packet(17)[:22]):
        assert parse_packet(raw) is None


def test_what_passes_is_counted_at_the_port_that_is_asked_about() -> None:
    count = Count([7575, 7946])
    ends = ("127.0.0.1", 7575), ("127.0.0.2", 40_000)
    for found in (Packet("tcp", *ends, 40), Packet("tcp", *reversed(ends), 60)):
        count.note(found)
        count.note(found)
    count.note(Packet("udp", ("127.0.0.3", 7946), ("127.0.0.4", 7946), 50))
    count.note(Packet("udp", ("127.0.0.3", 9), ("127.0.0.4", 9), 99))
    assert count.of(7575, "tcp") == Sent(4, 200)
    assert count.of(7575, "udp") == Sent()
    assert count.of(7946, "udp") == Sent(1, 50), "between two such ports it passes once"


# ---- serf -----------------------------------------------------------------------------


def test_an_agent_listens_on_its_loopback_address_and_announces_nothing() -> None:
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    program, verb, *options = agent_command("n2", hosts[1], hosts, 7946, 7373)
    assert (program, verb) == ("serf", "agent")
    assert options == [
        "-node=n2",
        "-bind=127.0.0.2:7946",
        "-rpc-addr=127.0.0.2:7373",
        "-log-level=info",
        "-retry-join=127.0.0.1:7946",
        "-retry-join=127.0.0.3:7946",
    ]


def test_packages_start_no_services_meanwhile_and_the_policy_is_as_before(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with no_services(policy):
        assert subprocess.run([policy], check=False).returncode == 101, "forbidden, as invoke-rc.d"
    assert list(tmp_path.iterdir()) == []
    policy.write_text("#!/bin/sh\nexit 0\n")
    policy.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError), no_services(policy):
        subprocess.run([policy], check=True)  # As where there is no such package.
    assert subprocess.run([policy], check=False).returncode == 0
    assert list(tmp_path.iterdir()) == [policy]
