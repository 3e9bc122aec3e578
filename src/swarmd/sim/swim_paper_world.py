"""A swarm of members that all know each other, some of which stand still now and then.

An *anomaly* (Dadgar, Phillips and Currey, "Lifeguard", 2018, section V) keeps a member from sending
and receiving what belongs to the protocol; all that is held meanwhile is taken up when it ends. Of
how that comes about there are three models:

- `messages`: what comes and goes is held, and timers run on time. So a member probes others while
  it cannot hear them, and waits for answers of which it gets none. As it ends, what was to be sent
  goes out first.
- `senders`: whoever would send waits, too, and only suspicions run out on time: as in memberlist,
  where the goroutine that probes waits for its send, and a suspicion has a timer of its own.
- `process`: the process stands still.

In the last two, overdue timers are the first thing to run when a member goes on, in their order,
and then what came meanwhile: nothing that would have spoken for another is heard before the verdict
about it is due.

The network loses nothing, so that whatever is said about a member that is well is a mistake of who
says it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.mesh.events.machine import Kept
from swarmd.mesh.swim.config import SwimConfig, settle
from swarmd.mesh.swim.events import (
    Changed,
    PacketIn,
    Started,
    StreamAnswered,
    StreamProbe,
    SuspicionDue,
    SyncFailed,
    SyncIn,
    SyncWith,
)
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.members import Record
from swarmd.mesh.swim.messages import Meta
from swarmd.sim.swim import SimSigner, node_id
from swarmd.sim.swim_paper_variants import Variant
from swarmd.sim.world import World
from swarmd.wire.version import PROTOCOL_LOWEST, PROTOCOL_VERSION

Model = Literal["messages", "senders", "process"]
_DELAY_S: Final = (0.0003, 0.002)
# So long members find into their rhythm before anything happens.
_WARM_UP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Death:
    """Member number `at` declared member number `about` dead, or heard that it is."""

    at_s: float
    at: int
    about: int


@dataclass(slots=True)
class _Host:
    number: int
    machine: SwimMachine
    stalled: bool = False
    timers: list[Event] = field(default_factory=list)
    inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)
    outbox: list[Send | SyncWith | StreamProbe] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    """A request over a stream, until it is answered or its time is over."""

    over: bool = False


class Cluster:
    """`size` members, numbered from 0, in a seeded world.

    `deaths` is what members concluded or heard, `packets` and `packet_bytes` what they sent.
    """

    def __init__(
        self, seed: int, variant: Variant, *, size: int = 128, model: Model = "messages"
    ) -> None:
        self.world = World(seed)
        self.deaths: list[Death] = []
        self.packets = 0
        self.packet_bytes = 0
        self._model = model
        self._config: SwimConfig = settle(variant.config())
        self._rng = self.world.rng_for("network")
        make = variant.machine()
        self._hosts = [_Host(number, self._build(make, number)) for number in range(size)]
        self._by_id = {host.machine.me: host for host in self._hosts}
        self._introduce()
        for host in self._hosts:
            self._step(host, Started())
        self.run_for(_WARM_UP_S)
        self.packets = self.packet_bytes = 0

    def _build(self, make: type[SwimMachine], number: int) -> SwimMachine:
        me = node_id(f"n{number}")
        meta = Meta(
            f"n{number}",
            addresses=((f"10.0.0.{number}", 7575),),
            version="1",
            protocol=PROTOCOL_VERSION,
            protocol_lowest=PROTOCOL_LOWEST,
        )
        rng = self.world.rng_for(f"n{number}")
        now = self.world.now
        return make(me, self._config, rng, SimSigner(me), meta, 1, now, kept=Kept(0))

    def _introduce(self) -> None:
        """Let all know each other, as if they had joined long ago: nobody has news."""
        ledgers = [host.machine._ledger for host in self._hosts]
        words = [ledger.self_record.alive for ledger in ledgers]
        for ledger in ledgers:
            ledger.queue.drop(ledger.me)
            ledger.announcements()
            for word in words:
                if word.subject != ledger.me:
                    ledger.members.add(Record(word, self.world.now))

    # ---- what may be done ---------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.world.now

    def run_for(self, duration_s: float) -> None:
        self.world.run_for(duration_s)

    def stall(self, numbers: list[int]) -> None:
        """An anomaly begins at these members."""
        for number in numbers:
            self._hosts[number].stalled = True

    def wake(self, numbers: list[int]) -> None:
        """It ends."""
        for number in numbers:
            host = self._hosts[number]
            host.stalled = False
            timers, host.timers = host.timers, []
            inbox, host.inbox = host.inbox, []
            outbox, host.outbox = host.outbox, []
            for effect in outbox:
                self._send(host, effect)
            for event in timers:
                self._step(host, event)
            for function, arguments in inbox:
                function(*arguments)

    def health(self, number: int) -> int:
        """How unwell a member holds itself to be."""
        return self._hosts[number].machine.health

    # ---- stepping -----------------------------------------------------------------------

    def _step(self, host: _Host, event: Event) -> None:
        for effect in host.machine.handle(event, self.world.now):
            self._perform(host, effect)

    def _perform(self, host: _Host, effect: Effect) -> None:
        if isinstance(effect, SetTimer):
            self.world.after(effect.delay_s, self._fire, host, effect.event)
        elif isinstance(effect, Changed):
            if effect.failed and effect.after is not None:
                about = self._by_id[effect.after.node_id].number
                self.deaths.append(Death(self.world.now, host.number, about))
        elif isinstance(effect, (Send, SyncWith, StreamProbe)):
            if host.stalled:
                host.outbox.append(effect)
            else:
                self._send(host, effect)

    def _send(self, host: _Host, effect: Send | SyncWith | StreamProbe) -> None:
        peer = self._by_id[effect.peer]
        if isinstance(effect, Send):
            self.packets += 1
            self.packet_bytes += len(effect.message)
            self._after(
                self._delay_s(), peer, self._step, PacketIn(host.machine.me, effect.message)
            )
        elif isinstance(effect, SyncWith):
            self._sync(host, peer)
        else:
            self._stream_probe(host, peer, effect)

    def _fire(self, host: _Host, event: Event) -> None:
        if host.stalled and self._is_held(event):
            host.timers.append(event)
        else:
            self._step(host, event)

    def _is_held(self, event: Event) -> bool:
        if self._model == "senders":
            return not isinstance(event, SuspicionDue)
        return self._model == "process"

    def _after(
        self, delay_s: float, host: _Host, function: Callable[..., None], *arguments: Any
    ) -> None:
        """Let something reach a host; it takes it up when it can."""
        self.world.after(delay_s, self._reach, host, function, arguments)

    def _reach(
        self, host: _Host, function: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if host.stalled:
            host.inbox.append((function, (host, *arguments)))
        else:
            function(host, *arguments)

    def _delay_s(self) -> float:
        return self._rng.uniform(*_DELAY_S)

    # ---- streams ------------------------------------------------------------------------
    # The kernel of a host whose process stands still accepts a connection: nothing fails at once.

    def _sync(self, host: _Host, peer: _Host) -> None:
        call = _Call()
        news = host.machine.events.told()
        asked = SyncIn(host.machine.me, tuple(host.machine.view()), news=news)
        self._after(2 * self._delay_s(), peer, self._answer_sync, host, asked, call)
        failed = SyncFailed(peer.machine.me)
        self.world.after(self._config.sync_timeout_s, self._give_up, host, failed, call)

    def _answer_sync(self, host: _Host, asker: _Host, asked: SyncIn, call: _Call) -> None:
        news = host.machine.events.told(asked.news)
        answer = SyncIn(host.machine.me, tuple(host.machine.view()), answer=True, news=news)
        self._step(host, asked)
        self._after(self._delay_s(), asker, self._take, answer, call)

    def _stream_probe(self, host: _Host, peer: _Host, effect: StreamProbe) -> None:
        call = _Call()
        self._after(2 * self._delay_s(), peer, self._answer_probe, host, effect, call)
        failed = StreamAnswered(effect.peer, effect.sequence, False)
        self.world.after(effect.timeout_s, self._give_up, host, failed, call)

    def _answer_probe(self, host: _Host, asker: _Host, effect: StreamProbe, call: _Call) -> None:
        answer = StreamAnswered(effect.peer, effect.sequence, True)
        self._after(self._delay_s(), asker, self._take, answer, call)

    def _take(self, host: _Host, answer: Event, call: _Call) -> None:
        if not call.over:
            call.over = True
            self._step(host, answer)

    def _give_up(self, host: _Host, failed: Event, call: _Call) -> None:
        if not call.over:
            call.over = True
            self._fire(host, failed)
