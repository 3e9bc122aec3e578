"""Checks of the other members: whether they are there, what gets through to them, their clocks.

Of each member that was tried, `hindrance` finds the one cause that explains what was seen:

- Datagrams of full size are lost and small ones are not: an MTU on the way is too small.
- It hears this node, or this node hears it, and not the other way round: a firewall lets one
  direction through. Whose it is shows by what its receiver does not get.
- TCP calls end without an answer in one direction while they pass in the other: the same.
- Nothing comes from it and nobody else has it either: it is off, or its daemon does not run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from swarmd.base.limits import DATAGRAM_BYTES_MAX
from swarmd.gateway.doctor.facts import NodeFacts, PeerFacts
from swarmd.gateway.doctor.local import clock_of_kernel, firewall_lines, opening
from swarmd.gateway.doctor.verdicts import fail, listed, ok, warn
from swarmd.gateway.shapes import Check
from swarmd.mesh.reach.service import TRIAL_S, Reach

SKEW_WARN_S: Final = 2.0
SKEW_FAIL_S: Final = 60.0
# IPv4 and UDP headers.
_PACKET_BYTES: Final = DATAGRAM_BYTES_MAX + 28


class Way(Enum):
    """Where what is lost was going."""

    IN = "in"
    OUT = "out"
    BOTH = "both"
    SOME = "some"
    """One, or both."""


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Why a member and this node do not reach each other.

    `kind` is `wall` (a firewall, with the protocols that it stops and in which direction), `mtu`,
    `other` (somebody else is at its address), or `gone`; `finding` adds what else is known.
    """

    kind: str
    way: Way = Way.BOTH
    protocols: str = ""
    finding: str = ""


def peer_checks(facts: NodeFacts) -> list[Check]:
    hindered = {peer.name: found for peer in facts.peers if (found := hindrance(peer)) is not None}
    return [
        _members(facts, hindered),
        *_shared_names(facts),
        *_mtu(facts, hindered),
        _versions(facts),
        _firewall(facts, hindered),
    ]


# ---- what stands between -------------------------------------------------------------------


def hindrance(peer: PeerFacts) -> Hindrance | None:
    """The one cause that explains what was found of a member; None if all is well."""
    reach = peer.reach
    if reach is None or reach.unasked:
        return Hindrance("wall", Way.SOME, "UDP") if peer.stream_only else None
    if reach.is_whole:
        return None
    if reach.small and not reach.full:
        where = "this host itself sends no larger ones" if reach.too_large else ""
        return Hindrance("mtu", finding=where)
    heard = _is_heard(peer, reach)
    datagrams = _datagrams(reach, heard)
    calls = _calls(reach)
    if datagrams is None and calls is None:
        return Hindrance("other") if reach.tcp == "other" else None
    if datagrams is None:
        return Hindrance("wall", calls, "TCP") if calls is not None else None
    if _is_gone(reach, heard):
        return Hindrance("gone", finding=reach.tcp)
    if calls is None:
        return Hindrance("wall", datagrams, "UDP")
    # Whatever stops the datagrams of one direction stops the answers to TCP calls, too.
    way = datagrams if calls in (datagrams, Way.BOTH) else Way.BOTH
    return Hindrance("wall", way, "UDP and TCP")


def _is_heard(peer: PeerFacts, reach: Reach) -> bool:
    """Do packets of it come by now, and not only from before it was missed?"""
    missed_s = peer.state_s if peer.state in ("suspect", "dead") else 0.0
    return reach.called or reach.heard_s < max(missed_s, TRIAL_S)


def _datagrams(reach: Reach, heard: bool) -> Way | None:
    """Which way datagrams are lost; None if they get through."""
    back = reach.answer
    if reach.small:
        return None
    if back is None:
        return Way.OUT if heard else Way.BOTH
    if back.small and not reach.called:
        return Way.IN
    if reach.called and not back.small:
        return Way.OUT
    return None if back.small else Way.BOTH


def _calls(reach: Reach) -> Way | None:
    """Which way calls over TCP are lost; None if they get through, or were answered otherwise."""
    out = reach.tcp in ("silent", "stalled", "refused")
    back = reach.answer
    into = back is not None and back.tcp in ("silent", "stalled", "refused")
    if out and back is not None and not into:
        return Way.OUT
    if out:
        return Way.BOTH
    return Way.IN if into else None


def _is_gone(reach: Reach, heard: bool) -> bool:
    """Does nothing at all show that its daemon runs?"""
    return reach.answer is None and not heard and reach.tcp in ("refused", "silent", "nowhere")


def _firewall(facts: NodeFacts, hindered: dict[str, Hindrance]) -> Check:
    walls = {name: found for name, found in hindered.items() if found.kind == "wall"}
    if not walls:
        return firewall_lines(facts.local)
    findings = []
    for way, protocols in sorted({(x.way.value, x.protocols) for x in walls.values()}):
        names = [n for n, x in walls.items() if (x.way.value, x.protocols) == (way, protocols)]
        findings.append(_WALLS[Way(way)].format(names=listed(names), protocols=protocols))
    where = {
        Way.IN: "on this host, or on the way to it",
        Way.OUT: f"on {listed([n for n, x in walls.items() if x.way is Way.OUT])}, or on the way",
        Way.BOTH: "on both sides",
        Way.SOME: "on both sides",
    }
    ways = [way for way in Way if any(x.way is way for x in walls.values())]
    places = "; ".join(dict.fromkeys(where[way] for way in ways))
    return fail("firewall", "; ".join(findings), f"open {places}:\n{opening(facts.local)}")


_WALLS: Final = {
    Way.IN: "{protocols} from {names} to this host is dropped, and passes the other way: a "
    "firewall lets one direction through",
    Way.OUT: "{protocols} from this host to {names} is dropped, and passes the other way: a "
    "firewall lets one direction through",
    Way.BOTH: "{protocols} between this host and {names} is dropped both ways",
    Way.SOME: "{protocols} between this host and {names} is dropped, at least one way",
}


def _mtu(facts: NodeFacts, hindered: dict[str, Hindrance]) -> list[Check]:
    tried = [peer for peer in facts.peers if peer.reach is not None and peer.reach.small]
    small = [name for name, found in hindered.items() if found.kind == "mtu"]
    if small:
        here = next((x.finding for x in hindered.values() if x.kind == "mtu" and x.finding), "")
        return [
            fail(
                "MTU",
                f"packets of {_PACKET_BYTES} bytes do not get through to {listed(small)}, while "
                f"small ones do{f': {here}' if here else ''}",
                "the MTU of an interface or of the network between is too small, and too large "
                "packets are lost in silence. Find it with `ping -M do -s "
                f"{DATAGRAM_BYTES_MAX} HOST`, and set the MTU of both hosts to what passes, or "
                "raise it on the way (`ip link set IFACE mtu 1500`; VPNs and tunnels often lower "
                "it)",
            )
        ]
    if not tried:
        return []
    names = listed([peer.name for peer in tried])
    return [ok("MTU", f"packets of {_PACKET_BYTES} bytes get through to {names}")]


# ---- who is there --------------------------------------------------------------------------


def _members(facts: NodeFacts, hindered: dict[str, Hindrance]) -> Check:
    alive = sum(peer.state == "alive" for peer in facts.peers)
    others = [peer for peer in facts.peers if _is_missed(peer)]
    explained = [peer for peer in others if _kind(hindered, peer) in ("wall", "mtu")]
    moved = [peer for peer in others if _kind(hindered, peer) == "other"]
    plain = [peer for peer in others if peer not in explained and peer not in moved]
    if moved:
        return fail(
            "members",
            f"another node answers at the address of {_names(moved)}",
            "correct mesh.advertise there: others are told an address that is not its own",
        )
    silent = [peer for peer in plain if peer.state == "alive"]
    if silent:
        return fail(
            "members",
            f"alive but not reached over TCP: {_names(silent)}",
            f"open TCP port {facts.local.port} on those hosts and on this one",
        )
    if plain:
        refused = [peer for peer in plain if _finding(hindered, peer) == "refused"]
        said = f"; nobody listens at the address of {_names(refused)}" if refused else ""
        return warn(
            "members",
            f"{alive} others alive; not heard: {_names(plain)}{said}",
            "see whether they run (`swarmctl doctor` there), and whether UDP and TCP "
            f"port {facts.local.port} are open between the hosts",
        )
    if explained:
        kinds = sorted({_kind(hindered, peer) for peer in explained})
        checks = " and ".join("`MTU`" if kind == "mtu" else "`firewall`" for kind in kinds)
        return warn(
            "members",
            f"{alive} others alive; not reached: {_names(explained)}",
            f"see the check {checks}",
        )
    return ok("members", f"{alive} others alive and reached")


def _is_missed(peer: PeerFacts) -> bool:
    return peer.state in ("dead", "suspect") or (peer.state == "alive" and not peer.answered)


def _kind(hindered: dict[str, Hindrance], peer: PeerFacts) -> str:
    found = hindered.get(peer.name)
    return "" if found is None else found.kind


def _finding(hindered: dict[str, Hindrance], peer: PeerFacts) -> str:
    found = hindered.get(peer.name)
    return "" if found is None else found.finding


def _names(peers: Sequence[PeerFacts]) -> str:
    return listed([peer.name for peer in peers])


def _shared_names(facts: NodeFacts) -> list[Check]:
    if not facts.shared_names:
        return []
    found = [f"{name} ({', '.join(ids)})" for name, ids in facts.shared_names.items()]
    return [
        warn(
            "names",
            f"several living members carry one name: {listed(found)}",
            "give all but one another name, node.name there, and start them anew; until then "
            "commands take their ids only: `swarmctl --node ID status`",
        )
    ]


def _versions(facts: NodeFacts) -> Check:
    """Members that speak another protocol version, and adverts of a form not known here."""
    spoken = [peer for peer in facts.peers if peer.protocol and peer.protocol != facts.protocol]
    unknown = [at for one in facts.mesh.interfaces for at in one.old_at] if facts.mesh else []
    if spoken or unknown:
        found = [f"{peer.name} speaks {peer.protocol} ({peer.version})" for peer in spoken]
        found += [f"the advert at {at} is of another version" for at in unknown]
        return warn(
            "version",
            f"this node speaks protocol version {facts.protocol} ({facts.version}); "
            f"{listed(found)}",
            "upgrade swarmd where it is older, so that all speak one version; then "
            "`swarmctl authority min-version` can shut the older one out",
        )
    releases = sorted({peer.version for peer in facts.peers if peer.version} - {facts.version})
    more = f"; other members run {listed(releases)}" if releases else ""
    return ok("version", f"{facts.version} speaks protocol version {facts.protocol}{more}")


# ---- clocks ------------------------------------------------------------------------------


def clock_check(facts: NodeFacts) -> Check:
    """Whose clock is off: the one that differs from most."""
    answered = [peer for peer in facts.peers if peer.answered]
    if not answered:
        return clock_of_kernel(facts.local)
    worst = max(answered, key=lambda peer: abs(peer.skew_s))
    if abs(worst.skew_s) < SKEW_WARN_S:
        finding = f"at most {abs(worst.skew_s):.1f} s from the other members' ({worst.name})"
        return ok("clock", finding)
    clocks = [0.0, *(peer.skew_s for peer in answered)]
    low, high = statistics.median_low(clocks), statistics.median_high(clocks)
    if high - low >= SKEW_WARN_S:  # Two, or as many here as there: nobody can say who is right.
        which = f"{abs(worst.skew_s):.1f} s {_side(-worst.skew_s)} {worst.name}'s"
        return _off(worst.skew_s, which, "on both")
    if abs(low) >= SKEW_WARN_S:
        which = f"this machine's clock is {abs(low):.1f} s {_side(-low)} the other members'"
        return _off(low, which, "on this host")
    off = [peer for peer in answered if abs(peer.skew_s - low) >= SKEW_WARN_S]
    said = [f"{peer.name}'s is {abs(peer.skew_s):.1f} s {_side(peer.skew_s)}" for peer in off]
    return _off(worst.skew_s, f"{listed(said)} this machine's and most others'", "there")


def _side(ahead_s: float) -> str:
    return "ahead of" if ahead_s > 0 else "behind"


def _off(skew_s: float, finding: str, where: str) -> Check:
    give = fail if abs(skew_s) >= SKEW_FAIL_S else warn
    return give(
        "clock", finding, f"turn on time synchronisation {where}: `timedatectl set-ntp true`"
    )
