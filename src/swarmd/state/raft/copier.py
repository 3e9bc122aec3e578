"""The shell of `copy_machine`: the copy's files, and questions to the voter it follows."""

from __future__ import annotations

from collections.abc import Callable
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
from swarmd.state.raft import messages as m
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.epoch_copy import EpochCopy
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.storage import EpochFiles

ASK_TIMEOUT_S: Final = 2.0
LIVING_S: Final = 1.0
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
        self._heard_at = float("-inf")
        self._open: tuple[int, EpochCopy] | None = None
        self._machine = cm.CopyMachine()
        self._driver = Driver(
            "copy",
            self._machine,
            {
                cm.OpenCopy: self._writing(self._open_copy),
                cm.CloseCopy: lambda effect: self.close(effect.number),
                cm.KeepBase: self._writing(self._keep_base),
                cm.KeepEntries: self._writing(self._keep_entries),
                cm.AskVoter: lambda effect: nursery.start_soon(self._ask, effect),
            },
            clock=clock,
        )

    async def run(self) -> None:
        await self._driver.run()

    def told(self, peer: NodeId, number: int) -> None:
        """`peer` wants a copy of the log of `number` kept here."""
        self._driver.feed(cm.Told(peer, number))

    def follows(self, number: int) -> bool:
        """Is there a copy of `number` here that a voter fed within the last second?"""
        machine = self._machine
        fresh = self._clock.now() - self._heard_at < LIVING_S
        return machine.number == number and machine.last != cm.NOTHING and fresh

    def epoch_began(self, number: int) -> None:
        """Follow the epochs before `number` no more; what was copied stays until it is dropped."""
        if 0 < self._machine.number < number:
            self._driver.feed(cm.EpochEnded(self._machine.number))

    def first_state(self, number: int) -> bytes | None:
        """What epoch `number` begins with, made from the copy of the log before it, if it can."""
        if self._open is None and number - 1 in self._files.on_disk().copies:
            self._open = (number - 1, self._load(number - 1))
        if self._open is None or self._open[0] != number - 1:
            return None
        return self._open[1].first_state(number)

    def state_of(self, number: int) -> StateMachine | None:
        """The state that the copy of `number` makes up, if there is one."""
        if self._open is None and number in self._files.on_disk().copies:
            self._open = (number, self._load(number))
        if self._open is None or self._open[0] != number or self._open[1].last == cm.NOTHING:
            return None
        return self._open[1].state

    def close(self, number: int) -> None:
        """Let go of the copy of `number`, if it is open."""
        if self._open is not None and self._open[0] == number:
            self._open = None

    # ---- effects -------------------------------------------------------------------------

    def _load(self, number: int) -> EpochCopy:
        disk = self._files.copy_disk(number)
        return EpochCopy(disk, self._genesis, self._config.compact_bytes)

    def _writing(self, perform: Callable[[Any], Event]) -> Callable[[Any], None]:
        """`perform`, with its end as the event fed back."""

        def performed(effect: Any) -> None:
            try:
                self._driver.feed(perform(effect))
            except (DiskFault, CorruptFile) as error:
                _log.info("the copy is not kept", why=error.message)
                self.close(effect.number)
                self._driver.feed(cm.NotKept(effect.number))

        return performed

    def _open_copy(self, effect: cm.OpenCopy) -> Event:
        if self._open is None or self._open[0] != effect.number:
            self._open = (effect.number, self._load(effect.number))
        return cm.Kept(effect.number, self._open[1].last)

    def _keep_base(self, effect: cm.KeepBase) -> Event:
        if self._open is None:
            self._open = (effect.number, self._load(effect.number))
        copy = self._open[1]
        copy.begin(effect.index, effect.body)
        return cm.Kept(effect.number, copy.last)

    def _keep_entries(self, effect: cm.KeepEntries) -> Event:
        if self._open is None or self._open[1].last != effect.after:
            return cm.NotKept(effect.number)
        copy = self._open[1]
        copy.extend(effect.entries)
        return cm.Kept(effect.number, copy.last)

    async def _ask(self, effect: cm.AskVoter) -> None:
        lane = Lane.BULK if isinstance(effect.message, m.BaseAsk) else Lane.CONTROL
        try:
            answer = await self._link.request(
                m.COPY, effect.peer, effect.message, timeout_s=ASK_TIMEOUT_S, lane=lane
            )
        except SwarmError as error:
            self._driver.feed(cm.Answered(effect.tag, None, error.code))
        else:
            self._heard_at = self._clock.now()
            self._driver.feed(cm.Answered(effect.tag, answer))
