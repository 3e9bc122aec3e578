"""Members as people look at them: a table, changes as they come, who keeps streams to whom."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click
import msgspec

from swarmd.cli.common import Failed, print_json, wants_json
from swarmd.cli.tables import COLUMNS_MAX, GAP, colour, printable, table, time_left
from swarmd.gateway.shapes import MemberInfo
from swarmd.gateway.shapes_members import MembersNews, Rtt, Topology, TopologyNode

if TYPE_CHECKING:
    from swarmd.client import Client

# Fewer columns for tags show too little.
_TAGS_COLUMNS_MIN: Final = 8
_HEADS: Final = ["NAME", "ADDRESS", "STATE", "ROLES", "VERSION", "EXPIRES"]
# Moves to the first line and clears what is below (ECMA-48).
_CLEAR: Final = "\x1b[H\x1b[J"
_SHORT_ID_CHARS: Final = 8


def members_table(found: list[MemberInfo]) -> str:
    names = Counter(one.name for one in found)
    rows = [
        [
            _shown_name(one, names),
            ", ".join(one.addresses[:1]) or "-",
            one.state,
            _roles(one),
            printable(one.version) or "-",
            "-" if one.credential_left_s is None else time_left(one.credential_left_s * 1000),
        ]
        for one in found
    ]
    lines = [table(*_with_tags(found, rows))]
    shared = sorted({printable(one.name) for one in found if one.namesakes})
    lines += [f"{name}: several members carry this name; name one by its id" for name in shared]
    return "\n".join(lines)


def _with_tags(found: list[MemberInfo], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns, and as one more the tags if there are any and enough of the line is left."""
    widths = [max(map(len, column)) for column in zip(_HEADS, *rows, strict=True)]
    left = COLUMNS_MAX - sum(widths) - GAP * len(widths)
    if left < _TAGS_COLUMNS_MIN or not any(one.tags for one in found):
        return _HEADS, rows
    return [*_HEADS, "TAGS"], [
        [*row, _cut(tags_text(one.tags), left)] for row, one in zip(rows, found, strict=True)
    ]


def _cut(text: str, columns_max: int) -> str:
    return text if len(text) <= columns_max else text[: columns_max - 1] + "…"


def tags_table(found: list[MemberInfo]) -> str:
    names = Counter(one.name for one in found)
    rows = [[_shown_name(one, names), one.state, tags_text(one.tags)] for one in found]
    return table(["NAME", "STATE", "TAGS"], rows)


def tags_text(tags: Mapping[str, str]) -> str:
    """The tags on one line."""
    return " ".join(f"{key}={printable(tags[key])}" for key in sorted(tags)) or "-"


def _shown_name(member: MemberInfo, names: Counter[str]) -> str:
    """Its name, and with it the beginning of its id where another has the same name."""
    name = printable(member.name)
    return f"{name} {member.node_id[:_SHORT_ID_CHARS]}" if names[member.name] > 1 else name


def _roles(member: MemberInfo) -> str:
    roles = [role for role in member.roles if role != "voter"]
    if member.coordinator:
        return ",".join(["coordinator", *roles])
    return ",".join(["voter", *roles] if member.voter else roles) or "-"


# ---- as they change -------------------------------------------------------------------------


def watch_members(client: Client) -> None:
    """Show changes until Ctrl-C. Raises Failed: the daemon ended."""
    known: dict[str, MemberInfo] = {}
    for news in client.members_watch():
        if wants_json():
            print_json(news)
        elif sys.stdout.isatty():
            _take(known, news)
            found = sorted(known.values(), key=lambda one: (one.name, one.node_id))
            click.echo(_CLEAR + members_table(found))
            click.echo(f"\n{time.strftime('%H:%M:%S')}, Ctrl-C ends")
        else:
            for line in change_lines(known, news):
                click.echo(f"{time.strftime('%H:%M:%S')}  {line}")
            _take(known, news)
        sys.stdout.flush()
    raise Failed("the daemon ended: watch another one")


def _take(known: dict[str, MemberInfo], news: MembersNews) -> None:
    for node_id in news.gone:
        known.pop(node_id, None)
    for one in news.members:
        known[one.node_id] = one


def change_lines(known: Mapping[str, MemberInfo], news: MembersNews) -> list[str]:
    """What changed, a line for each member."""
    lines = [f"{_name(known, node_id)}  forgotten" for node_id in news.gone]
    for one in news.members:
        before = known.get(one.node_id)
        lines.append(f"{printable(one.name)}  {'; '.join(_changes(before, one))}")
    return lines


def _changes(before: MemberInfo | None, now: MemberInfo) -> list[str]:
    if before is None:
        where = ", ".join(now.addresses) or "no address"
        return [f"{now.state} at {where}, {_roles(now)}, {now.version or 'unknown version'}"]
    found = [] if before.state == now.state else [f"{before.state} -> {now.state}"]
    if before.name != now.name:
        found.append(f"was called {printable(before.name)}")
    if before.addresses != now.addresses:
        found.append(f"at {', '.join(now.addresses) or 'no address'}")
    if _roles(before) != _roles(now):
        found.append(f"{_roles(before)} -> {_roles(now)}")
    if before.namesakes != now.namesakes:
        ids = ", ".join(one[:_SHORT_ID_CHARS] for one in now.namesakes)
        found.append(f"its name is also that of {ids}" if ids else "its name is its own again")
    if before.tags != now.tags:
        found.append(f"tags {tags_text(now.tags)}")
    if before.version != now.version:
        found.append(f"version {now.version}")
    return found or [f"incarnation {now.incarnation}"]


def _name(known: Mapping[str, MemberInfo], node_id: str) -> str:
    one = known.get(node_id)
    return node_id[:_SHORT_ID_CHARS] if one is None else printable(one.name)


# ---- how far they are -----------------------------------------------------------------------

# From here on a coordinate is as good as none (`swim.coordinates`): its node has measured little,
# or its round trips contradict each other.
_UNSURE: Final = 0.5


def rtt_text(found: Rtt) -> str:
    unsure = ", a rough estimate as yet" if found.error > _UNSURE else ""
    return f"{printable(found.a)} - {printable(found.b)}: {found.rtt_ms:g} ms{unsure}"


# ---- who keeps streams to whom --------------------------------------------------------------


def topology_tree(found: Topology) -> str:
    """Each node, and below it the nodes that it has a stream with."""
    names = {one.node_id: printable(one.node) for one in found.nodes}
    told = {one.node_id: set(one.peers) for one in found.nodes if not one.problem}
    lines = []
    for one in sorted(found.nodes, key=lambda one: (one.node, one.node_id)):
        lines.append(_head(one))
        peers = sorted(one.peers, key=lambda peer: names.get(peer, peer))
        below = [(peer, _one_sided(told, one.node_id, peer)) for peer in peers]
        rows = [f"{names.get(peer, peer[:_SHORT_ID_CHARS])}{mark}" for peer, mark in below]
        if one.problem:
            rows = [f"unknown: {printable(one.problem)}"]
        elif not rows:
            rows = ["no streams"]
        lines += [f"├── {row}" for row in rows[:-1]]
        lines.append(f"└── {rows[-1]}")
    return "\n".join(lines)


def _head(one: TopologyNode) -> str:
    more = ", coordinator" if one.coordinator else ""
    return f"{printable(one.node)}  {colour(one.state)}{more}"


def _one_sided(told: Mapping[str, set[str]], node_id: str, peer: str) -> str:
    """What to add where only one side says that there is a stream."""
    return "  (only this side says so)" if peer in told and node_id not in told[peer] else ""


def topology_dot(found: Topology) -> str:
    """A graph in the language of Graphviz; a stream that one side alone tells of is dashed."""
    told = {one.node_id: set(one.peers) for one in found.nodes if not one.problem}
    known = {one.node_id for one in found.nodes}
    lines = [f"graph {_quoted(found.swarm)} {{", "  node [shape=box];"]
    for one in sorted(found.nodes, key=lambda one: (one.node, one.node_id)):
        what = f"{one.state}, coordinator" if one.coordinator else one.state
        label = f"label={_quoted(one.node + chr(10) + what)}"
        style = "" if one.state == "alive" else ", style=dashed"
        lines.append(f"  {_quoted(one.node_id)} [{label}{style}];")
    edges = {(min(a, b), max(a, b)) for a, peers in told.items() for b in peers if b in known}
    for a, b in sorted(edges):
        both = all(x not in told or y in told[x] for x, y in ((a, b), (b, a)))
        lines.append(f"  {_quoted(a)} -- {_quoted(b)}{'' if both else ' [style=dashed]'};")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
