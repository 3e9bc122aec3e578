"""Checks of how nodes find each other: multicast, seeds, the addresses that others are told."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from swarmd.gateway.doctor.facts import NodeFacts, PeerFacts
from swarmd.gateway.doctor.local import opening
from swarmd.gateway.doctor.verdicts import fail, listed, ok, warn
from swarmd.gateway.shapes import Check
from swarmd.mesh.addresses import format_address
from swarmd.mesh.discovery.adverts import OTHER_SWARM, OTHER_VERSION, OWN_ECHO, InterfaceFacts
from swarmd.mesh.facts import HOST_NAME, MeshFacts, NameFacts

_REASONS: Final = {
    "malformed": "malformed",
    "no_answer": "without an answer",
    "too_many": "beyond what is looked at",
    OTHER_SWARM: "of another swarm",
    OTHER_VERSION: "of another version",
}


def discovery_checks(facts: NodeFacts, mesh: MeshFacts) -> list[Check]:
    return [
        _addresses(mesh),
        *_multicast(facts, mesh),
        *_other_swarms(facts, mesh),
        *_seeds(facts, mesh),
    ]


# ---- what others are told -----------------------------------------------------------------


def _addresses(mesh: MeshFacts) -> Check:
    name = "addresses"
    told = ", ".join(format_address(one) for one in mesh.told)
    if mesh.missing_binds:
        return fail(
            name,
            f"mesh.bind names {listed(mesh.missing_binds)}, which no interface of this host has "
            "now",
            "bring the interface up, or name an address that this host has in mesh.bind (--bind); "
            "left out, all are used",
        )
    wrong = [one for one in mesh.loopback_names if one.setting == "mesh.advertise"]
    if wrong:
        return fail(name, _resolved(wrong), _CORRECT_HOSTS.format(setting="mesh.advertise"))
    seeds = [one for one in mesh.loopback_names if one.setting == "mesh.seeds"]
    if seeds:
        return warn(name, _resolved(seeds), _CORRECT_HOSTS.format(setting="mesh.seeds"))
    if not told:
        return warn(
            name,
            "others are told no address: no interface has one that they could use",
            "give an interface an address, or name one with mesh.advertise",
        )
    own = [one for one in mesh.loopback_names if one.setting == HOST_NAME]
    remark = f"; this host calls itself {own[0].name} at {own[0].address}: no seed" if own else ""
    return ok(name, f"others are told {told}{remark}")


_CORRECT_HOSTS: Final = (
    "correct the name in /etc/hosts (or in the name server), or write the address that other "
    "hosts use instead of the name in {setting}"
)


def _resolved(names: Sequence[NameFacts]) -> str:
    shown = [f"{one.setting} names {one.name}, which is {one.address} here" for one in names]
    return f"{listed(shown)}: that is each host itself, and no way to reach this or another one"


# ---- multicast ----------------------------------------------------------------------------


def _multicast(facts: NodeFacts, mesh: MeshFacts) -> list[Check]:
    if not mesh.mdns:
        seeds = ", ".join(one.seed for one in mesh.seeds)
        if not mesh.seeds and facts.is_alone:
            return [
                warn(
                    "mDNS",
                    "off, and there are no seeds: nobody can be found",
                    "set mesh.mdns = true, or name a member with mesh.seeds (--seed)",
                )
            ]
        return [ok("mDNS", f"off; seeds: {seeds or 'none'}")]
    if not mesh.interfaces:
        give = fail if facts.is_alone else warn
        return [
            give(
                "mDNS",
                "no interface to announce on",
                "bring an interface up, name it in mesh.interfaces, or use mesh.seeds",
            )
        ]
    return [_interface(one, facts) for one in mesh.interfaces]


def _interface(one: InterfaceFacts, facts: NodeFacts) -> Check:
    name = f"mDNS {one.interface}"
    give = fail if facts.is_alone else warn
    if one.problem:
        return give(
            name,
            one.problem,
            "check that the interface is up and allows multicast (`ip link`), or use "
            "mesh.seeds (--seed HOST:PORT)",
        )
    if one.hearing is not None and not one.hearing.own:
        why = f" ({one.hearing.problem})" if one.hearing.problem else ""
        return give(
            name,
            f"multicast is blocked on this host{why}: what it sends to the group does not come "
            "back to it",
            "open UDP 5353 for multicast here, or use mesh.seeds (--seed HOST:PORT):\n"
            + opening(facts.local),
        )
    if not one.announced:
        return warn(
            name,
            "not announced yet",
            "ask again in a few seconds; then check that the interface has an address that others "
            "are told",
        )
    refused = _refused(one)
    finding = f"announced, {one.heard} other nodes heard{refused}"
    near = _near(one, facts.peers)
    if one.heard or (not facts.is_alone and not near):
        return ok(name, finding)
    if near:
        return warn(
            name,
            f"{finding}, though {listed([peer.name for peer in near])} "
            f"{'is' if len(near) == 1 else 'are'} on this network: multicast is blocked between "
            "the hosts, or multicast DNS is off there",
            "nodes are found by other ways for now; open UDP 5353 there, check that the switch or "
            "access point passes multicast, or use mesh.seeds on every host",
        )
    return warn(
        name,
        f"{finding}; this host hears itself",
        "if others should be there: open UDP 5353 on both sides, check that the switch "
        "or access point passes multicast, or use mesh.seeds (--seed HOST:PORT)",
    )


def _refused(one: InterfaceFacts) -> str:
    kinds = [
        f"{count} {_REASONS.get(reason, reason)}"
        for reason, count in sorted(one.refused.items())
        if reason != OWN_ECHO and count
    ]
    return f", adverts refused: {', '.join(kinds)}" if kinds else ""


def _near(one: InterfaceFacts, peers: Sequence[PeerFacts]) -> list[PeerFacts]:
    """Living members at an address of a network that the interface is in."""
    networks = [ipaddress.ip_network(network) for network in one.networks]

    def holds(host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:  # Members say of themselves what they like.
            return False
        return any(address in network for network in networks)

    return [peer for peer in peers if peer.state == "alive" and any(map(holds, peer.hosts))]


def _other_swarms(facts: NodeFacts, mesh: MeshFacts) -> list[Check]:
    name = "other swarms"
    foreign = [f"{one.seed}: {one.swarm}" for one in mesh.seeds if one.swarm]
    if foreign:
        return [
            warn(
                name,
                f"nodes of another swarm answer at seeds of this one: {listed(foreign)}",
                f"name members of {facts.swarm} in mesh.seeds; if the two should be one swarm, one "
                "of them was made with --init by mistake: join there with a token and an empty "
                "data folder",
            )
        ]
    others = [other for one in mesh.interfaces for other in one.others]
    if not others:
        return []
    finding = f"nodes of another swarm are announced: {listed(others)}"
    if not facts.is_alone:
        return [ok(name, f"{finding}; they are left alone")]
    return [
        warn(
            name,
            f"{finding}, and none of {facts.swarm}",
            f"if they should be one swarm with this node, one of them was made with --init by "
            f"mistake: join {facts.swarm} there, or the other swarm here, with a token and an "
            "empty data folder; else there is nothing to do",
        )
    ]


# ---- seeds --------------------------------------------------------------------------------


def _seeds(facts: NodeFacts, mesh: MeshFacts) -> list[Check]:
    if not mesh.seeds:
        return []
    # Names that mean this host are told of above.
    known = {one.name for one in mesh.loopback_names}
    found = [one for one in mesh.seeds if one.seed not in known and not one.own and not one.swarm]
    wrong = [one for one in found if one.problem]
    if not found:
        if any(one.swarm for one in mesh.seeds):
            return []  # Told of above.
        return [ok("seeds", f"none but this node itself ({listed([x.seed for x in mesh.seeds])})")]
    if not wrong:
        return [ok("seeds", f"answered: {', '.join(one.seed for one in found)}")]
    all_silent = len(wrong) == len(found)
    give = fail if all_silent and not mesh.mdns else warn
    return [
        give(
            "seeds",
            "; ".join(f"{one.seed}: {one.problem}" for one in wrong),
            "check the names and ports in mesh.seeds, and that UDP and TCP port "
            f"{facts.local.port} are open there",
        )
    ]
