"""Reads what every holder keeps of the audit log, and verifies it in this process.

What members' keys are is read from the authority log, which is verified first. Anchors are read
before the copies, so that whatever they name was written before a copy was looked at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import click

from swarmd.audit.records import LIFE_BYTES, STREAMS, ChainId
from swarmd.audit.verify import Verdict, Verification
from swarmd.base.errors import BadRequest, Forbidden, SwarmError, TooLarge, Unauthenticated
from swarmd.base.ids import ID_BYTES, from_text, short
from swarmd.cli.authority_log import read_asked
from swarmd.cli.common import Failed, client_of, open_client
from swarmd.client.calls import Client
from swarmd.gateway.shapes import MemberInfo
from swarmd.identity.authority import AuthorityState

# What one holder may show of one chain, in pages; a page holds up to 256 KiB.
_PAGES_MAX: Final = 8_192
_HELD_PAGES_MAX: Final = 1_000
_LIVING: Final = ("alive", "suspect")

Tell = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What was found, and who could not be asked."""

    state: AuthorityState
    verdicts: list[Verdict]
    holders: list[str]
    missing: list[str] = field(default_factory=list)
    unsigned_anchors: int = 0

    @property
    def sound(self) -> bool:
        """All members showed what they keep, and nothing is wrong with it."""
        return self.unchanged and not self.missing

    @property
    def unchanged(self) -> bool:
        """Nothing is wrong with what was shown."""
        return not self.unsigned_anchors and not any(one.findings for one in self.verdicts)

    def name_of(self, node: bytes) -> str:
        found = next((x for x in self.state.admissions.values() if x.node_id == node), None)
        return found.name if found is not None else short(node)


def verify_all(tell: Tell) -> Report:
    """Ask every member for what it keeps, and check all of it.

    Args:
        tell: told what is going on.

    Raises:
        Failed: nobody could be asked, or the authority log does not verify.
        SwarmError: the caller may not read the audit log, or the store cannot be read.
    """
    head, state = read_asked()
    keys = {bytes(one.node_id): one.public for one in state.admissions.values()}
    with open_client() as client:
        anchors, members = client.audit_anchors(), client.members()
    evicted = {bytes(one.node_id) for one in state.admissions.values() if one.evicted}
    now_ms = int(time.time() * 1_000)
    verification = Verification(head["swarm_id"], keys, anchors, now_ms)
    report = Report(state, [], [])
    for member in members:
        if member.state not in _LIVING:
            if member.state != "left" and from_text(member.node_id) not in evicted:
                report.missing.append(f"{member.name} is {member.state}")
            continue
        tell(f"reading what {member.name} keeps")
        try:
            with client_of(member.node_id) as client:
                _read_holder(client, member, verification)
        except (Forbidden, Unauthenticated):
            raise
        except SwarmError as error:
            verification.forget(from_text(member.node_id))
            report.missing.append(f"{member.name}: {error.message}")
            continue
        report.holders.append(member.name)
    if not report.holders:
        raise Failed("no member showed what it keeps: " + "; ".join(report.missing))
    report.verdicts = verification.judge()
    report.unsigned_anchors = verification.unsigned_anchors
    return report


def _read_holder(client: Client, member: MemberInfo, verification: Verification) -> None:
    holder = from_text(member.node_id)
    after = ""
    for _ in range(_HELD_PAGES_MAX):
        held = client.audit_held(after)
        verification.add_holder(holder, held.floors, held.forks)
        for life in held.lives:
            copy = verification.add_copy(holder, read_chain(life.chain), life.last)
            for raw in _batches(client, life.chain):
                copy.take(raw)
            copy.finish()
        after = held.after
        if not after:
            # What was dropped while the copies were read.
            verification.add_holder(holder, client.audit_held().floors, ())
            return
    raise TooLarge("it keeps more lives than can be read")


def _batches(client: Client, chain: str) -> Iterator[bytes]:
    place = ""
    for _ in range(_PAGES_MAX):
        page = client.audit_raw(chain, place)
        yield from page.batches
        place = page.place
        if not place:
            return
    raise TooLarge("a life of its records has more pages than can be read")


def read_chain(text: str) -> ChainId:
    """A chain as the API names it. Raises BadRequest: the daemon said something else."""
    node, _, rest = text.partition(".")
    stream, _, life = rest.partition(".")
    raw_node, raw_life = from_text(node), from_text(life)
    for known in STREAMS:
        if stream == known and len(raw_node) == ID_BYTES and len(raw_life) == LIFE_BYTES:
            return ChainId(raw_node, known, raw_life)
    raise BadRequest("the daemon named no chain of audit records")


def tell_on_terminal(text: str) -> None:
    """Say it on stderr where somebody looks on; scripts need not hear it."""
    if sys.stderr.isatty():
        click.echo(text, err=True)
