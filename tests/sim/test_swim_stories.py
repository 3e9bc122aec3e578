"""Membership told as stories: what is done to some members, and what they do then.

A file holds commands; after each, between dashes and a blank line, what happened. Times are
virtual seconds since the last command. `python tests/sim/test_swim_stories.py` writes the
outcome anew: read the difference before you believe it.

    nodes a b c          start these members, the first is everyone's seed, and let them meet
    show packets|changes what to tell: packets too, or only changes and what crosses streams
    run 2.5              let time pass
    until a b dead       let time pass until a sees b so
    kill b | unplug b    the process dies (a stream of a's is reset and refused) | the host does
    pause b | resume b   freeze, go on
    restart b [moved]    start anew with an empty memory, at another address; all others are seeds
    find b               start anew knowing nobody
    call c b             c gives itself the name b from its next start on
    leave b              say goodbye
    says b 10            b closes its streams and says that it restarts within 10 s
    refused a b          b's host refuses a connection of a's
    cut a b | heal       cut these off from the others | undo it
    deaf a b             what a sends does not reach the others named; one way
    block a b            no datagram of a's reaches b, but streams do
    view a               whom a holds how
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Send
from swarmd.mesh.swim.events import Changed, NameConflict, StreamProbe, SyncWith
from swarmd.mesh.swim.messages import PACKETS, Ack, Nack, Ping, PingFor, decode_rumour
from swarmd.sim.network import LinkFaults
from swarmd.sim.swim import SwimWorld

STORIES = Path(__file__).parent / "stories"
FILES = sorted(STORIES.glob("swim_*.txt"))


class Story:
    def __init__(self) -> None:
        self.sim = SwimWorld(0, [])
        self.packets = False
        self.said: list[str] = []
        self.began_at = 0.0
        self.names: dict[bytes, str] = {}
        self.sequences: dict[int, int] = {}
        self.incarnations: dict[int, int] = {}

    def tell(self, line: str) -> list[str]:
        """Do one command; what happened, a line each."""
        self.said = []
        self.began_at = self.sim.world.now
        verb, *rest = shlex.split(line)
        getattr(self, f"do_{verb}")(*rest)
        return self.said or ["(nothing)"]

    # ---- commands ---------------------------------------------------------------------

    def do_nodes(self, *names: str) -> None:
        quiet = LinkFaults(delay_min_s=0.001, delay_max_s=0.001)
        self.sim = SwimWorld(1, names, faults=quiet, watch=self.watch)
        self.names = {node.node_id: name for name, node in self.sim.nodes.items()}
        self.sim.start_all()
        self.sim.run_for(5.0)
        self.said = [f"{len(names)} members: {', '.join(names)}"]

    def do_show(self, what: str) -> None:
        self.packets = what == "packets"
        self.said = [what]

    def do_run(self, seconds: str) -> None:
        self.sim.run_for(float(seconds))

    def do_until(self, watcher: str, name: str, state: str) -> None:
        for _ in range(6_000):
            if self.sim.view(watcher).get(name) == state:
                return
            self.sim.run_for(0.01)
        self.said.append(f"{watcher} never saw {name} {state}")

    def do_kill(self, name: str) -> None:
        self.sim.crash(name)
        first = self.sim.running()[0].name
        self.sim.hint(first, name, "reset")
        self.sim.hint(first, name, "refused")

    def do_unplug(self, name: str) -> None:
        self.sim.crash(name)

    def do_pause(self, name: str) -> None:
        self.sim.pause(name)

    def do_resume(self, name: str) -> None:
        self.sim.resume(name)

    def do_restart(self, name: str, moved: str = "") -> None:
        others = [other for other in self.sim.nodes if other != name]
        self.sim.start(name, *others, moved=bool(moved))

    def do_find(self, name: str) -> None:
        self.sim.start(name)

    def do_call(self, host: str, name: str) -> None:
        self.sim.nodes[host].called = name

    def do_leave(self, name: str) -> None:
        self.sim.leave(name)

    def do_says(self, name: str, quiet_s: str) -> None:
        for other in self.sim.running():
            if other.name != name:
                self.sim.hint(other.name, name, "restarting", float(quiet_s))

    def do_refused(self, witness: str, name: str) -> None:
        self.sim.hint(witness, name, "refused")

    def do_cut(self, *names: str) -> None:
        self.sim.cut(names)

    def do_deaf(self, source: str, *targets: str) -> None:
        self.sim.network.cut([source], targets, one_way=True)

    def do_block(self, source: str, target: str) -> None:
        self.sim.block_datagrams(source, target)

    def do_heal(self) -> None:
        self.sim.heal()

    def do_view(self, name: str) -> None:
        self.said = [f"{other} {state}" for other, state in sorted(self.sim.view(name).items())]

    # ---- telling ----------------------------------------------------------------------

    def watch(self, name: str, effect: Effect) -> None:
        text = ""
        if isinstance(effect, Changed):
            text = self.change(effect)
        elif isinstance(effect, NameConflict):
            hosts = ", ".join(sorted(self.names[one] for one in effect.holders))
            text = (
                f"{'finds only' if effect.over else 'finds several'} called {effect.name}: {hosts}"
            )
        elif isinstance(effect, SyncWith):
            text = f"exchanges views with {self.names[effect.peer]}"
        elif isinstance(effect, StreamProbe):
            text = f"asks {self.names[effect.peer]} over a stream"
        elif isinstance(effect, Send) and self.packets:
            text = f"-> {self.names[effect.peer]} {self.packet(PACKETS.decode(effect.message))}"
        if text:
            self.said.append(f"{self.sim.world.now - self.began_at:6.3f} {name} {text}")

    def change(self, effect: Changed) -> str:
        assert effect.after is not None
        was = "unknown" if effect.before is None else str(effect.before.state)
        now = str(effect.after.state)
        text = f"holds {self.names[effect.after.node_id]} {now}, was {was}"
        if effect.before is not None and effect.before.addresses != effect.after.addresses:
            text += f", at {effect.after.addresses[0][0]}:{effect.after.addresses[0][1]}"
        return text

    def packet(self, packet: Any) -> str:
        words = [type(packet).__name__]
        if isinstance(packet, Ping | PingFor | Ack | Nack):
            number = self.sequences.setdefault(packet.sequence, len(self.sequences) + 1)
            words.append(f"#{number}")
        if isinstance(packet, PingFor):
            words.append(f"of {self.names[packet.target]}")
        if not isinstance(packet, Nack):
            words += [f"[{self.rumour(raw)}]" for raw in packet.rumours]
        return " ".join(words)

    def rumour(self, raw: bytes) -> str:
        said = decode_rumour(raw)
        life, number = divmod(said.incarnation, 2**32)
        text = f"{self.names[said.subject]} {said.kind} {life}.{number}"
        return text if said.author == said.subject else f"{text} says {self.names[said.author]}"


def retold(text: str) -> str:
    """The story with what happens now."""
    story = Story()
    lines: list[str] = []
    skipping = False
    for line in text.splitlines():
        if line == "----":
            skipping = True
        elif not line.strip():
            if not skipping:
                lines.append(line)
            skipping = False
        elif not skipping:
            lines.append(line)
            if not line.startswith("#"):
                lines += ["----", *story.tell(line), ""]
    return "\n".join(lines).rstrip() + "\n"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_story_goes_as_told(file: Path) -> None:
    told = file.read_text()
    assert retold(told) == told


def test_the_stories_are_there() -> None:
    assert len(FILES) >= 14
    assert NodeId(b"") is not None


if __name__ == "__main__":
    for path in FILES:
        path.write_text(retold(path.read_text()))
