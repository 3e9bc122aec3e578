"""One simulated node: the real machines of every room, wired as the shells wire them.

A process lives from `boot` to `crash`; what it scheduled ends with it. While the host is
frozen everything that comes due waits, in order.
"""

from __future__ import annotations

from typing import Any, Final

from swarmd.base.errors import DiskFault
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.mesh.swim.events import (
    Changed,
    Departed,
    HowClosed,
    Join,
    Leave,
    PacketIn,
    Refused,
    Started,
    StreamAnswered,
    StreamClosed,
    StreamProbe,
    SyncFailed,
    SyncIn,
    SyncWith,
)
from swarmd.mesh.swim.messages import MemberState, Meta
from swarmd.sim.swarm_store import Pipe
from swarmd.sim.swarm_voter import VoterNode
from swarmd.sim.swarm_watch import Run
from swarmd.sim.swim import node_id
from swarmd.state.raft.machine import (
    START,
    Deliver,
    Wake,
)
from swarmd.tasks.events import (
    FromWorker,
    Liveness,
    MemberChanged,
)
from swarmd.tasks.messages import (
    AssignItem,
    HandBack,
    Heartbeat,
    ResultItem,
)
from swarmd.tasks.messages import Results as TaskResults
from swarmd.tasks.spec import Inline, Mode
from swarmd.tasks.worker.machine import (
    AttemptEnded,
    Begin,
    Drain,
    Drained,
    FromCoordinator,
    Kill,
    Start,
)

_STREAM_TIMEOUT_S: Final = 2.0
_DRAIN_S: Final = 1.0
_STARTS: Final = "starts"


class Host(VoterNode):
    """A node's machines, and what its processes run."""

    # ---- life ---------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the daemon on whatever its disk holds."""
        world, around = self.world, self.around
        self.life += 1
        self._clear()
        self.stopping = False
        try:
            starts = int(self.disk.read(_STARTS) or b"0") + 1
            self.disk.replace(_STARTS, str(starts).encode())
            if self.name in around.voters:
                self.replica = around.make_state(self)
                rng = world.rng_for(f"raft:{self.name}")
                self.raft = around.make_raft(self, self.replica, rng)
        except DiskFault:
            self.raft = self.replica = None
            return  # The disk is full: whoever repairs tries again.
        self.up = True
        self.store_office, self.office = None, None
        label = f"{self.name}/{starts}"
        self.swim = around.make_swim(self, Meta(self.name, addresses=(self.address,)), starts)
        self.worker = around.make_worker(self, label.encode())
        around.network.attach(self.name, self._arrive)
        sessions = around.watch.sessions

        def named(session: bytes) -> None:
            sessions[session] = self.node_id

        self.pipe = Pipe(self, label, self._rng, named)
        self.feed_swim(Started())
        self.feed_swim(Join(tuple(n for n in around.names if n != self.node_id)))
        if self.raft is not None:
            self.feed_raft(Wake(START))
        self.feed_worker(Begin())

    def crash(self, *, power: bool) -> None:
        """End the process without a word; with `power`, unsynced bytes are gone, too."""
        self.up = self.frozen = False
        self.life += 1
        self.raft = self.replica = None
        self.office = self.store_office = None
        for run in self._running.values():
            self.around.runs.stop(run)
        self._running.clear()
        self._held.clear()
        self.around.network.detach(self.name)
        if power:
            self.disk.crash()

    def freeze(self) -> None:
        """Everything here stands still, attempts too."""
        self.frozen = True
        for run in self._running.values():
            self.around.runs.freeze(run)

    def thaw(self) -> None:
        """What came due meanwhile comes first, in order: so leases are looked at before all."""
        if not self.frozen:
            return
        self.frozen = False
        life = self.life
        while self._held and self.life == life and not self.frozen:
            function, args = self._held.popleft()
            function(*args)
        for run in self._running.values():
            self.around.runs.thaw(run)

    def stop(self) -> None:
        """An orderly stop: hand work back, say goodbye, end."""
        self.stopping = True
        self.feed_worker(Drain(_DRAIN_S))
        self.after(2.5 * _DRAIN_S, self._say_goodbye)

    def _say_goodbye(self) -> None:
        self.feed_swim(Leave())

    # ---- the network --------------------------------------------------------------------

    def _arrive(self, source: str, message: tuple[Any, ...]) -> None:
        self._due(self.life, self._receive, (source, message))

    def _receive(self, source: str, message: tuple[Any, ...]) -> None:
        plane = message[0]
        if plane == "raft":
            self.feed_raft(Deliver(source, message[1]))
        elif plane == "swim":
            self.feed_swim(PacketIn(node_id(source), message[1]))
        elif plane == "sync":
            self.feed_swim(SyncIn(node_id(source), message[1]))
        elif plane == "task":
            self._receive_task(node_id(source), message[1])
        elif plane == "ask":
            self._serve(source, message[1], message[2])
        else:
            self._answered(message[1], message[2])

    def _receive_task(self, source: NodeId, message: Any) -> None:
        if isinstance(message, Heartbeat | TaskResults | HandBack):
            if self.office is not None:
                self.office.feed(FromWorker(source, message))
        else:
            self.feed_worker(FromCoordinator(source, message))

    def send_task(self, peer: NodeId, message: Any) -> None:
        self._send(self.around.names[peer], "task", message)

    # ---- members --------------------------------------------------------------------------

    def feed_swim(self, event: Event) -> None:
        for effect in self.swim.handle(event, self.world.now):
            self._perform_swim(effect)

    def _perform_swim(self, effect: Effect) -> None:
        if isinstance(effect, SetTimer):
            self.after(effect.delay_s, self.feed_swim, effect.event)
        elif isinstance(effect, Send):
            name = self.around.names[effect.peer]
            self.around.network.send(self.name, name, ("swim", effect.message))
        elif isinstance(effect, SyncWith):
            self._sync_with(self.around.names[effect.peer])
        elif isinstance(effect, StreamProbe):
            self._stream_probe(effect)
        elif isinstance(effect, Changed):
            self._member_changed(effect)
        elif isinstance(effect, Departed):
            self.world.count("goodbye")
            self.crash(power=False)
        elif isinstance(effect, Refused):
            self.world.violate(f"{self.name} refused an honest message: {effect.reason}")

    def _member_changed(self, change: Changed) -> None:
        member = change.after or change.before
        if member is None:
            return
        after = change.after
        liveness = Liveness.LEFT if after is None else Liveness(str(after.state))
        self.world.note(self.name, member.name, liveness, member.incarnation)
        if after is not None and after.state is MemberState.SUSPECT:
            self.world.count("suspicion")
        if self.office is not None:
            self.office.feed(MemberChanged(member.node_id, liveness))

    def liveness(self) -> tuple[tuple[NodeId, Liveness], ...]:
        """Everyone known, as this node sees them."""
        return tuple((m.node_id, Liveness(str(m.state))) for m in self.swim.members())

    def stream_closed(self, peer: str, how: HowClosed) -> None:
        self._due(self.life, self.feed_swim, (StreamClosed(node_id(peer), how),))

    def _sync_with(self, peer: str) -> None:
        """A request over a stream: both ways whole, or a failure that the asker hears of."""
        self.world.count("sync")
        asked = tuple(self.swim.view())
        delay_s = self._rng.uniform(0.0003, 0.002)
        self.after(2 * delay_s, self._sync_ask, peer, asked, delay_s)

    def _sync_ask(self, peer: str, asked: tuple[bytes, ...], delay_s: float) -> None:
        other = self.around.swim_of(peer)
        if other is None or self.around.stream_broken(self.name, peer):
            self.after(_STREAM_TIMEOUT_S, self.feed_swim, SyncFailed(node_id(peer)))
            return
        answer = SyncIn(node_id(peer), tuple(other.view()), answer=True)
        self.after(delay_s, self.feed_swim, answer)
        self.around.network.send(self.name, peer, ("sync", asked))

    def _stream_probe(self, effect: StreamProbe) -> None:
        """Over a stream, which answers where neither side is down, frozen or cut off."""
        peer = self.around.names[effect.peer]
        broken = self.around.swim_of(peer) is None or self.around.stream_broken(self.name, peer)
        delay_s = effect.timeout_s if broken else self._rng.uniform(0.0006, 0.004)
        answer = StreamAnswered(effect.peer, effect.sequence, not broken)
        self.after(delay_s, self.feed_swim, answer)

    # ---- attempts -------------------------------------------------------------------------

    def feed_worker(self, event: Event) -> None:
        for effect in self.worker.handle(event, self.world.now):
            if isinstance(effect, Send):
                self.send_task(effect.peer, effect.message)
            elif isinstance(effect, SetTimer):
                self.after(effect.delay_s, self.feed_worker, effect.event)
            elif isinstance(effect, Start):
                self._start(effect.item)
            elif isinstance(effect, Kill):
                run = self._running.pop(effect.fence, None)
                if run is not None:
                    self.around.runs.stop(run)
            elif isinstance(effect, Drained):
                self.world.count("drained")
                self._say_goodbye()

    def _start(self, item: AssignItem) -> None:
        run = self._running[item.fence] = (item.task_id, item.fence, self.name)
        self.around.runs.start(run, item.mode)
        rng = self._rng
        long = item.mode is not Mode.DEFAULT and rng.random() < 0.35
        ran_s = rng.uniform(2.0, 14.0) if long else rng.uniform(0.005, 0.4)
        bad = rng.random() < (0.5 if item.run.name == "flaky" else 0.05)
        self.after(ran_s, self._finish, run, bad, ran_s)

    def _finish(self, run: Run, bad: bool, ran_s: float) -> None:
        task_id, fence, _ = run
        if self._running.get(fence) != run:
            return
        del self._running[fence]
        self.around.runs.stop(run)
        if bad:
            item = ResultItem(task_id, fence, False, code="agent_raised", message="as asked")
        else:
            proof = Inline(fence.to_bytes(8, "big"))
            item = ResultItem(task_id, fence, True, proof, ran_s=ran_s)
        self.feed_worker(AttemptEnded(item))
