"""Checks of this machine and of what is on its disk, most of which need no daemon."""

from __future__ import annotations

import time
from typing import Final

from swarmd.base.limits import MIB
from swarmd.gateway.doctor.facts import NodeFacts
from swarmd.gateway.doctor.verdicts import fail, ok, warn
from swarmd.gateway.local_facts import LocalFacts
from swarmd.gateway.shapes import Check
from swarmd.memory.vector.service import IndexFacts
from swarmd.mesh.standing import JoinFailure
from swarmd.wire.version import PROTOCOL_VERSION

FREE_BYTES_WARN: Final = 1024 * MIB
FREE_BYTES_FAIL: Final = 64 * MIB
# A credential is renewed at half of its 30 days: with a quarter left, that has failed.
_DAY_MS: Final = 86_400_000
CREDENTIAL_WARN_MS: Final = 15 * _DAY_MS // 2
NEW_TOKEN: Final = (
    "make a new token with `swarmctl token create` on a member, then `swarmd --join -` here"
)
_JOIN_ADVICE: Final = {
    "token_refused": NEW_TOKEN,
    "outdated": "upgrade swarmd on this host, then join again",
    "unreachable": "see that a member runs, and name it: `swarmd --join - --seed HOST`",
    "unavailable": "try again once a majority of the voters answers there",
    "timeout": "try again once a majority of the voters answers there",
}


def check_daemon(facts: NodeFacts) -> Check:
    if not facts.not_ready:
        return ok("daemon", f"{facts.node} runs and is ready, in swarm {facts.swarm}")
    if not facts.swarm:
        return fail(
            "daemon",
            f"{facts.node} runs but is in no swarm: {facts.not_ready}",
            "stop it, then `swarmd --init NAME` for a new swarm, or `swarmd --join -` "
            "with a token that `swarmctl token create` printed on a member",
        )
    return fail(
        "daemon", f"{facts.node} runs but is not ready: {facts.not_ready}", "see the other checks"
    )


def standing_checks(facts: LocalFacts) -> list[Check]:
    """Why the swarm has this node no more, or has not let it in, as its disk tells."""
    standing = facts.standing
    if standing is None:
        return [] if facts.join_failure is None else [_join(facts.join_failure)]
    if standing.problem:
        return [
            fail(
                "swarm",
                standing.problem,
                "start over with an empty data folder and a new token, or restore the file",
            )
        ]
    if standing.evicted:
        return [
            fail(
                "swarm",
                f"this node was evicted from the swarm {standing.swarm}, and its id is not used "
                "again",
                "to join as a new node, start it with an empty data folder (--data-folder) and a "
                "token that `swarmctl token create` printed on a member",
            )
        ]
    if standing.too_old:
        return [
            fail(
                "version",
                f"the swarm {standing.swarm} takes protocol version {standing.too_old} or above, "
                f"and this swarmd speaks {PROTOCOL_VERSION}",
                "upgrade swarmd on this host, then start it",
            )
        ]
    return [ok("swarm", f"this node is in the swarm {standing.swarm}")]


def _join(failure: JoinFailure) -> Check:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(failure.wall_ms / 1000))
    return fail(
        "join",
        f"the last try to join, at {when}, failed: {failure.message}",
        _JOIN_ADVICE.get(failure.code, "correct that, then `swarmd --join -`"),
    )


def folder_and_port(facts: LocalFacts) -> list[Check]:
    return [_data_folder(facts), _port(facts)]


def _data_folder(facts: LocalFacts) -> Check:
    name = "data folder"
    free = f"{facts.free_bytes // MIB} MiB free"
    if facts.folder_problem:
        return fail(
            name,
            f"{facts.data_folder}: {facts.folder_problem}",
            "correct its owner and mode, or choose another with --data-folder",
        )
    if 0 <= facts.free_bytes < FREE_BYTES_WARN:
        give = fail if facts.free_bytes < FREE_BYTES_FAIL else warn
        return give(
            name,
            f"{facts.data_folder}: only {free}",
            "make room: a full disk ends writes, and the node with them",
        )
    return ok(name, f"{facts.data_folder}: writable, {free}")


def _port(facts: LocalFacts) -> Check:
    if facts.port_problem:
        return fail(
            "port",
            facts.port_problem,
            "end what uses it (`ss -tulpn` names it), or set mesh.port (--port)",
        )
    how = "open here" if facts.port_is_ours else "free"
    return ok("port", f"{facts.port} is {how}, TCP and UDP")


def clock_of_kernel(facts: LocalFacts) -> Check:
    if facts.clock_synchronised is False:
        return warn(
            "clock",
            "this machine's clock is not synchronised",
            "turn on time synchronisation: `timedatectl set-ntp true`",
        )
    said = "synchronised" if facts.clock_synchronised else "not known to be synchronised"
    return ok("clock", f"this machine's clock is {said}")


def credential_checks(left_ms: int | None) -> list[Check]:
    if left_ms is None:
        return []
    name = "credential"
    if left_ms <= 0:
        return [
            fail(
                name,
                "expired: members talk to this node only if it is a voter",
                "it renews itself once it reaches a member, and a majority of the voters "
                "answers there: see the other checks, or name a member with mesh.seeds",
            )
        ]
    finding = f"good for {left_ms / _DAY_MS:.0f} d more"
    if left_ms < CREDENTIAL_WARN_MS:
        return [
            warn(
                name,
                f"{finding}, and should have been renewed by now",
                "it renews itself once a majority of the voters answers: the log of the "
                "daemon says why it does not (`credential ... not renewed`)",
            )
        ]
    return [ok(name, f"{finding}; it is renewed at half of its life")]


def index_checks(facts: IndexFacts | None) -> list[Check]:
    """An index of vectors that is elsewhere, or cannot be used."""
    if facts is None or (facts.engine == "embedded" and not facts.problem):
        return []
    name = "vectors"
    if facts.problem:
        return [
            fail(
                name,
                facts.problem,
                "correct that, or the settings vectors.engine and vectors.pgvector_*; the node "
                "tries again by itself, and searches of vectors fail here until then",
            )
        ]
    filled = "is filled" if facts.entries is None else f"has {facts.entries} entries"
    return [ok(name, f"the database of the index is reached, and {filled}")]


def firewall_lines(facts: LocalFacts) -> Check:
    """The lines that open what the swarm needs, for the tool that is here."""
    return ok(
        "firewall",
        f"needed: TCP and UDP {facts.port} from the members, UDP 5353 (multicast) for mDNS",
        "if a firewall is on, open them:\n" + opening(facts),
    )


def opening(facts: LocalFacts) -> str:
    """Lines to be copied, each indented."""
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
    return "\n".join(f"  {line}" for line in lines[tool])
