"""The shell of `copy_machine`: the copy's files, and questions to the voter it follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from typing import Any, Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import CorruptFile, DiskFault, SwarmError
from swarmd.base.ids import NodeId
from swarmd.base.machine import Event
from swarmd.identity.genesis import Genesis
from swarmd.mesh.driver import Driver
from swarmd.mesh.link import Lane, Link
from swarmd.observe.log import get_logger
from swarmd.state.raft import copy_machine as cm
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.epoch_copy import EpochCopy
from swarmd.state.raft.frames import FrameWriter, unpack
from swarmd.state.raft.statefile import STATE_FORMAT, STATE_KIND, Frozen
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.storage import EpochFiles
from swarmd.state.raft.syncer import Syncer

ASK_TIMEOUT_S: Final = 2.0
# A copy that was heard of, or fed, within this is alive: after a question that waited for news as
# long as any, its disk has 0.75 s to sync what it was told.
LIVING_S: Final = 1.25
_log = get_logger("raft")


class Copier:
    """Keeps a copy of the running epoch's log while this node is told to and has no seat."""

    def __init__(
        self,
        *,
        files: EpochFiles,
        genesis: Genesis,
        link: Link,
        clock: Clock,
        config: RaftConfig,
        nursery: trio.Nursery,
    ) -> None:
        self._files = files
        self._genesis = genesis
        self._link = link
        self._config = config
        self._clock = clock
        self._nursery = nursery
        self._syncer = Syncer(blocking=files.blocking)
        self._working = trio.Lock()  # Whoever has it may touch the copy and its files.
        self._heard_at = float("-inf")
        self._open: tuple[int, EpochCopy] | None = None
        self._machine = cm.CopyMachine()
        self._driver = Driver(
            "copy",
            self._machine,
            {
                cm.OpenCopy: self._writing(self._open_copy),
                cm.CloseCopy: lambda effect: nursery.start_soon(self.close, effect.number),
                cm.KeepBase: self._writing(self._keep_base),
                cm.KeepEntries: self._writing(self._keep_entries),
                cm.AskVoter: lambda effect: nursery.start_soon(self._ask, effect),
            },
            clock=clock,
        )

    async def run(self) -> None:
        try:
            await self._driver.run()
        finally:
            self._syncer.close()

    def told(self, peer: NodeId, number: int) -> None:
        """`peer` wants a copy of the log of `number` kept here."""
        self._driver.feed(cm.Told(peer, number))

    def follows(self, number: int) -> bool:
        """Is there a copy of `number` here that a voter fed within LIVING_S?"""
        machine = self._machine
        fresh = self._clock.now() - self._heard_at < LIVING_S
        return machine.number == number and machine.last != cm.NOTHING and fresh

    def epoch_began(self, number: int) -> None:
        """Follow the epochs before `number` no more; what was copied stays until it is dropped."""
        if 0 < self._machine.number < number:
            self._driver.feed(cm.EpochEnded(self._machine.number))

    async def first_state(self, number: int) -> bytes | None:
        """What epoch `number` begins with, made from the copy of the log before it, if it can."""
        async with self._working:
            copy = await self._copy_of(number - 1)
            if copy is None or not copy.precedes(number):
                return None
            return await encode_slowly(copy.state.sealed_snapshot())

    async def state_of(self, number: int) -> StateMachine | None:
        """The state that the copy of `number` makes up, if there is one."""
        async with self._working:
            copy = await self._copy_of(number)
            return copy.state if copy is not None and copy.last != cm.NOTHING else None

    async def close(self, number: int) -> None:
        """Let go of the copy of `number`; on return nothing is being written to it."""
        async with self._working:
            if self._open is not None and self._open[0] == number:
                self._open = None

    # ---- effects -------------------------------------------------------------------------

    async def _copy_of(self, number: int) -> EpochCopy | None:
        """The copy of `number` that is open, or on the disk."""
        if self._open is None and number in self._files.on_disk().copies:
            self._open = (number, await self._load(number))
        return self._open[1] if self._open is not None and self._open[0] == number else None

    async def _load(self, number: int) -> EpochCopy:
        """What is on the disk may be large: it is read in a thread where that takes time."""
        load = partial(
            EpochCopy, self._files.copy_disk(number), self._genesis, self._config.compact_bytes
        )
        return await trio.to_thread.run_sync(load) if self._files.blocking else load()

    def _writing(self, perform: Callable[[Any], Awaitable[Event]]) -> Callable[[Any], None]:
        """`perform`, with its end as the event fed back."""

        async def performed(effect: Any) -> None:
            async with self._working:
                self._driver.feed(await self._ended(perform, effect))

        return lambda effect: self._nursery.start_soon(performed, effect)

    async def _ended(self, perform: Callable[[Any], Awaitable[Event]], effect: Any) -> Event:
        if effect.number != self._machine.number:
            return cm.NotKept(effect.number)  # Its epoch has ended; its files may be gone.
        try:
            return await perform(effect)
        except (DiskFault, CorruptFile) as error:
            _log.info("the copy is not kept", why=error.message)
            self._open = None
            return cm.NotKept(effect.number)

    async def _take(self, number: int) -> EpochCopy:
        """The copy of `number`, begun where there is none."""
        if self._open is None or self._open[0] != number:
            self._open = (number, await self._load(number))
        return self._open[1]

    async def _open_copy(self, effect: cm.OpenCopy) -> Event:
        return cm.Kept(effect.number, (await self._take(effect.number)).last)

    async def _keep_base(self, effect: cm.KeepBase) -> Event:
        """A slice at a time: the state may be large."""
        copy = await self._take(effect.number)
        state = StateMachine(self._genesis)
        restoring = state.restoring()
        for frame in unpack(STATE_KIND, STATE_FORMAT, effect.body, source="the state"):
            restoring.take(frame)
            await trio.lowlevel.checkpoint()
        restoring.finish()
        await self._syncer.run(partial(copy.write_base, effect.index, effect.body))
        copy.become(effect.index, state)
        return cm.Kept(effect.number, copy.last)

    async def _keep_entries(self, effect: cm.KeepEntries) -> Event:
        copy = await self._take(effect.number)
        if copy.last != effect.after:
            return cm.NotKept(effect.number)
        await self._syncer.run(partial(copy.write_entries, effect.entries))
        copy.take_up(effect.entries)
        if copy.wants_base:
            body = await encode_slowly(copy.state.snapshot())
            await self._syncer.run(partial(copy.write_base, copy.last, body))
        return cm.Kept(effect.number, copy.last)

    async def _ask(self, effect: cm.AskVoter) -> None:
        lane = Lane.BULK if isinstance(effect.message, emsg.BaseAsk) else Lane.CONTROL
        try:
            answer = await self._link.request(
                emsg.COPY, effect.peer, effect.message, timeout_s=ASK_TIMEOUT_S, lane=lane
            )
        except SwarmError as error:
            self._driver.feed(cm.Answered(effect.tag, None, error.code))
        else:
            self._heard_at = self._clock.now()
            self._driver.feed(cm.Answered(effect.tag, answer))


async def encode_slowly(state: Frozen) -> bytes:
    """What `encode_state` gives, made a slice at a time, so that the loop goes on."""
    writer = FrameWriter(STATE_KIND, STATE_FORMAT)
    parts = [writer.head()]
    with closing(state) as frames:
        for body in frames:
            parts.append(writer.frame(body))
            await trio.lowlevel.checkpoint()
    parts.append(writer.end())
    return b"".join(parts)
