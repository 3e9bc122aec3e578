"""Checks of the doctor: facts in, findings and advice out. Pure.

Each check says what it found in one sentence and, unless all is well, what to do. `warn` is
what may be meant so or may hurt later; `fail` is what keeps the node from its work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarmd.base.limits import MIB
from swarmd.gateway.local_facts import LocalFacts
from swarmd.gateway.shapes import Check

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

FREE_BYTES_WARN: Final = 1024 * MIB
FREE_BYTES_FAIL: Final = 64 * MIB
SKEW_WARN_S: Final = 2.0
SKEW_FAIL_S: Final = 60.0
# A credential is renewed at half of its 30 days: with a quarter left, that has failed.
_DAY_MS: Final = 86_400_000
CREDENTIAL_WARN_MS: Final = 15 * _DAY_MS // 2


@dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """Multicast DNS on one interface."""

    interface: str
    announced: bool
    heard: int
    refused: int
    problem: str


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """One other member: its state here, and its clock if it answered.

    `stream_only`: it answers over TCP, and not over UDP.
    """

    name: str
    state: str
    answered: bool
    skew_s: float
    stream_only: bool = False


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a running daemon knows. `not_ready` is empty if it takes work."""

    node: str
    not_ready: str
    swarm: str
    local: LocalFacts
    mdns: bool
    interfaces: tuple[InterfaceFacts, ...]
    seeds: tuple[str, ...]
    seed_problems: tuple[str, ...]
    """"SEED: what is wrong", of those where nobody answers."""
    peers: tuple[PeerFacts, ...]
    store_state: str
    voters: tuple[str, ...]
    coordinator: str
    may_lose: int
    next_loss: str
    credential_left_ms: int | None = None
    """In store time; None if it is unknown."""


def examine(facts: NodeFacts) -> list[Check]:
    """All checks of a running daemon."""
    if not facts.swarm:  # Nothing was asked of anybody yet.
        return [_daemon(facts), *examine_local(facts.local)]
    return [
        _daemon(facts),
        *_local(facts.local),
        _clock(facts),
        *_discovery(facts),
        *_seeds(facts),
        _peers(facts),
        _quorum(facts),
        *_credential(facts),
        firewall(facts.local),
    ]


def examine_local(facts: LocalFacts) -> list[Check]:
    """The checks that need no daemon."""
    return [*_local(facts), _clock_of_kernel(facts), firewall(facts)]


def check_daemon_down(problem: str) -> Check:
    return Check(
        name="daemon",
        verdict=FAIL,
        finding=problem,
        advice="start it with `swarmd` (first host: `swarmd --init NAME`; other hosts: "
        "`swarmd --join -`); if it runs, name its socket with --socket",
    )


def check_config_wrong(problem: str) -> Check:
    return Check(
        name="config", verdict=FAIL, finding=problem, advice="correct it, then start `swarmd`"
    )


def _daemon(facts: NodeFacts) -> Check:
    if not facts.not_ready:
        finding = f"{facts.node} runs and is ready, in swarm {facts.swarm}"
        return Check(name="daemon", verdict=OK, finding=finding)
    if not facts.swarm:
        return Check(
            name="daemon",
            verdict=FAIL,
            finding=f"{facts.node} runs but is in no swarm: {facts.not_ready}",
            advice="stop it, then `swarmd --init NAME` for a new swarm, or `swarmd --join -` "
            "with a token that `swarmctl token create` printed on a member",
        )
    return Check(
        name="daemon",
        verdict=FAIL,
        finding=f"{facts.node} runs but is not ready: {facts.not_ready}",
        advice="see the other checks",
    )


def _local(facts: LocalFacts) -> list[Check]:
    return [_data_folder(facts), _port(facts)]


def _data_folder(facts: LocalFacts) -> Check:
    name = "data folder"
    free = f"{facts.free_bytes // MIB} MiB free"
    if facts.folder_problem:
        return Check(
            name=name,
            verdict=FAIL,
            finding=f"{facts.data_folder}: {facts.folder_problem}",
            advice="correct its owner and mode, or choose another with --data-folder",
        )
    if 0 <= facts.free_bytes < FREE_BYTES_WARN:
        verdict = FAIL if facts.free_bytes < FREE_BYTES_FAIL else WARN
        return Check(
            name=name,
            verdict=verdict,
            finding=f"{facts.data_folder}: only {free}",
            advice="make room: a full disk ends writes, and the node with them",
        )
    return Check(name=name, verdict=OK, finding=f"{facts.data_folder}: writable, {free}")


def _port(facts: LocalFacts) -> Check:
    if facts.port_problem:
        return Check(
            name="port",
            verdict=FAIL,
            finding=facts.port_problem,
            advice="end what uses it (`ss -tulpn` names it), or set mesh.port (--port)",
        )
    how = "open here" if facts.port_is_ours else "free"
    return Check(name="port", verdict=OK, finding=f"{facts.port} is {how}, TCP and UDP")


def _clock_of_kernel(facts: LocalFacts) -> Check:
    if facts.clock_synchronised is False:
        return Check(
            name="clock",
            verdict=WARN,
            finding="this machine's clock is not synchronised",
            advice="turn on time synchronisation: `timedatectl set-ntp true`",
        )
    said = "synchronised" if facts.clock_synchronised else "not known to be synchronised"
    return Check(name="clock", verdict=OK, finding=f"this machine's clock is {said}")


def _clock(facts: NodeFacts) -> Check:
    answered = [peer for peer in facts.peers if peer.answered]
    if not answered:
        return _clock_of_kernel(facts.local)
    worst = max(answered, key=lambda peer: abs(peer.skew_s))
    skew_s = abs(worst.skew_s)
    finding = f"at most {skew_s:.1f} s from the other members' ({worst.name})"
    if skew_s < SKEW_WARN_S:
        return Check(name="clock", verdict=OK, finding=finding)
    return Check(
        name="clock",
        verdict=FAIL if skew_s >= SKEW_FAIL_S else WARN,
        finding=f"{skew_s:.1f} s {'ahead of' if worst.skew_s < 0 else 'behind'} {worst.name}'s",
        advice="turn on time synchronisation on both: `timedatectl set-ntp true`",
    )


def _discovery(facts: NodeFacts) -> list[Check]:
    alone = not any(peer.state == "alive" for peer in facts.peers)
    if not facts.mdns:
        seeds = ", ".join(facts.seeds)
        if not facts.seeds and alone:
            return [
                Check(
                    name="mDNS",
                    verdict=WARN,
                    finding="off, and there are no seeds: nobody can be found",
                    advice="set mesh.mdns = true, or name a member with mesh.seeds (--seed)",
                )
            ]
        return [Check(name="mDNS", verdict=OK, finding=f"off; seeds: {seeds or 'none'}")]
    if not facts.interfaces:
        return [
            Check(
                name="mDNS",
                verdict=FAIL if alone else WARN,
                finding="no interface to announce on",
                advice="bring an interface up, name it in mesh.interfaces, or use mesh.seeds",
            )
        ]
    return [_interface(one, alone) for one in facts.interfaces]


def _seeds(facts: NodeFacts) -> list[Check]:
    if not facts.seeds:
        return []
    if not facts.seed_problems:
        return [Check(name="seeds", verdict=OK, finding=f"answered: {', '.join(facts.seeds)}")]
    all_silent = len(facts.seed_problems) == len(facts.seeds)
    return [
        Check(
            name="seeds",
            verdict=FAIL if all_silent and not facts.mdns else WARN,
            finding="; ".join(facts.seed_problems),
            advice="check the names and ports in mesh.seeds, and that UDP and TCP port "
            f"{facts.local.port} are open there",
        )
    ]


def _interface(one: InterfaceFacts, alone: bool) -> Check:
    name = f"mDNS {one.interface}"
    if one.problem or not one.announced:
        return Check(
            name=name,
            verdict=FAIL if alone else WARN,
            finding=one.problem or "not announced yet",
            advice="check that the interface is up and allows multicast (`ip link`), or use "
            "mesh.seeds (--seed HOST:PORT)",
        )
    refused = f", {one.refused} adverts refused" if one.refused else ""
    finding = f"announced, {one.heard} other nodes heard{refused}"
    if one.heard or not alone:
        return Check(name=name, verdict=OK, finding=finding)
    return Check(
        name=name,
        verdict=WARN,
        finding=finding,
        advice="if others should be there: open UDP 5353 on both sides, check that the switch "
        "or access point passes multicast, or use mesh.seeds (--seed HOST:PORT)",
    )


def _peers(facts: NodeFacts) -> Check:
    away = [peer for peer in facts.peers if peer.state in ("dead", "suspect")]
    silent = [peer for peer in facts.peers if peer.state == "alive" and not peer.answered]
    alive = sum(peer.state == "alive" for peer in facts.peers)
    if silent:
        return Check(
            name="members",
            verdict=FAIL,
            finding=f"alive but not reached over TCP: {_names(silent)}",
            advice=f"open TCP port {facts.local.port} on those hosts and on this one",
        )
    deaf = [peer for peer in facts.peers if peer.stream_only]
    if deaf:
        return Check(
            name="members",
            verdict=WARN,
            finding=f"reached over TCP and not over UDP: {_names(deaf)}",
            advice=f"open UDP port {facts.local.port} on those hosts and on this one, in both "
            "directions; membership works meanwhile, but slower and at the cost of connections",
        )
    if away:
        return Check(
            name="members",
            verdict=WARN,
            finding=f"{alive} others alive; not heard: {_names(away)}",
            advice="see whether they run (`swarmctl doctor` there), and whether UDP and TCP "
            f"port {facts.local.port} are open between the hosts",
        )
    return Check(name="members", verdict=OK, finding=f"{alive} others alive and reached")


def _names(peers: list[PeerFacts]) -> str:
    shown = [peer.name for peer in peers[:5]]
    more = len(peers) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _quorum(facts: NodeFacts) -> Check:
    voters = ", ".join(facts.voters) or "unknown"
    if facts.store_state == "no_quorum" or not facts.coordinator:
        return Check(
            name="quorum",
            verdict=FAIL,
            finding=f"no majority of the voters ({voters}) answers",
            advice="start the voters that are away; nothing acknowledged is lost meanwhile",
        )
    finding = f"voters {voters}, coordinator {facts.coordinator}; {facts.next_loss}"
    if facts.may_lose < 1:
        return Check(
            name="quorum",
            verdict=WARN,
            finding=finding,
            advice="from three nodes on, any one may be lost",
        )
    return Check(name="quorum", verdict=OK, finding=finding)


def _credential(facts: NodeFacts) -> list[Check]:
    left_ms = facts.credential_left_ms
    if left_ms is None:
        return []
    name = "credential"
    if left_ms <= 0:
        return [
            Check(
                name=name,
                verdict=FAIL,
                finding="expired: members talk to this node only if it is a voter",
                advice="it renews itself once it reaches a member, and a majority of the voters "
                "answers there: see the other checks, or name a member with mesh.seeds",
            )
        ]
    finding = f"good for {left_ms / _DAY_MS:.0f} d more"
    if left_ms < CREDENTIAL_WARN_MS:
        return [
            Check(
                name=name,
                verdict=WARN,
                finding=f"{finding}, and should have been renewed by now",
                advice="it renews itself once a majority of the voters answers: the log of the "
                "daemon says why it does not (`credential ... not renewed`)",
            )
        ]
    return [Check(name=name, verdict=OK, finding=f"{finding}; it is renewed at half of its life")]


def firewall(facts: LocalFacts) -> Check:
    """The lines that open what the swarm needs, for the tool that is here."""
    port = facts.port
    lines = {
        "ufw": [f"ufw allow {port}", "ufw allow 5353/udp"],
        "firewall-cmd": [
            f"firewall-cmd --permanent --add-port={port}/tcp --add-port={port}/udp",
            "firewall-cmd --permanent --add-service=mdns && firewall-cmd --reload",
        ],
        "nft": [
            f"nft add rule inet filter input tcp dport {port} accept",
            f"nft add rule inet filter input udp dport '{{ {port}, 5353 }}' accept",
        ],
        "iptables": [
            f"iptables -I INPUT -p tcp --dport {port} -j ACCEPT",
            f"iptables -I INPUT -p udp -m multiport --dports {port},5353 -j ACCEPT",
        ],
    }
    tool = facts.firewalls[0] if facts.firewalls else "nft"
    return Check(
        name="firewall",
        verdict=OK,
        finding=f"needed: TCP and UDP {port} from the members, UDP 5353 (multicast) for mDNS",
        advice="if a firewall is on, open them:\n" + "\n".join(f"  {x}" for x in lines[tool]),
    )
