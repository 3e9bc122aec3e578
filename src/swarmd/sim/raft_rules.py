"""The rules of the seal, each with a way to do without it in the simulation.

`state.raft.guards` names what makes one epoch's log safe; these are the rules by which epochs
follow each other (Lamport, Malkhi and Zhou, *Reconfiguring a State Machine*, 2010). Production
code has no switch for them: the simulated shell leaves out what it does for one, or puts a
machine in place that does; two are for tests alone. `swarm_mutants.py` says how each absence is
noticed.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Final

from swarmd.sim.raft_watch import WatchedState
from swarmd.state.raft.epoch import Facts
from swarmd.state.raft.epoch_machine import EpochMachine
from swarmd.state.raft.messages import OpResult


class SealRule(StrEnum):
    """What holds when one epoch ends and the next begins."""

    # A leader tests for the seal when it is asked, and again just before it answers.
    READ_TESTS_SEAL = "seal-read-tests"
    # From the seal on nothing changes, and every operation answers `moved`.
    NOTHING_AFTER = "seal-nothing-after"
    # Only the first seal of a log counts.
    FIRST_COUNTS = "seal-first-counts"
    # The sealed state is durable before the voter signs it away.
    STATE_BEFORE_SIGNATURE = "seal-state-before-signature"
    # A majority of the old voters signed what a certificate says.
    MAJORITY_SIGNS = "seal-majority-signs"
    # Until it holds the certificate an old voter stays an ordinary member of its epoch.
    ORDINARY_UNTIL_CERTIFIED = "seal-ordinary-until-certified"
    # The certificate is durable before anything is done because of it, and for ever.
    CERTIFICATE_FIRST = "seal-certificate-first"
    # A state is taken from anywhere, and only if it is what the certificate says.
    STATE_PROVES_ITSELF = "seal-state-proves-itself"
    # A new voter holds the first state durably before it votes.
    STATE_BEFORE_VOTE = "seal-state-before-vote"
    # What is left of old epochs goes only when a majority of the new voters can do without.
    KEEP_UNTIL_INSTALLED = "seal-keep-until-installed"
    # Entries of authority leave a majority of the voters, or the epoch would never end.
    MAJORITY_STAYS = "seal-majority-stays"
    # A disk that lost its files is another voter.
    NEW_DISK_NEW_VOTER = "seal-new-disk-new-voter"
    # So is a disk put back from a copy, which has forgotten votes: others know its later life.
    COPY_OF_DISK_IS_ANOTHER = "seal-copy-of-disk-is-another"


SEAL_RULES: Final[frozenset[str]] = frozenset(SealRule)


class UnsealedState(WatchedState):
    """Goes on after the seal as if there were none."""

    def apply(self, command: bytes, index: int, term: int) -> list[list[OpResult]]:
        sealed, self.sealed = self.sealed, None
        try:
            return super().apply(command, index, term)
        finally:
            self.sealed = sealed or self.sealed


class ResealedState(WatchedState):
    """Lets a later seal take the place of the first."""

    def apply(self, command: bytes, index: int, term: int) -> list[list[OpResult]]:
        sealed, self.sealed = self.sealed, None
        revision, time_ms = self.revision, self.time_ms
        results = super().apply(command, index, term)
        if sealed is not None and self.sealed is None:
            self.sealed, self.revision, self.time_ms = sealed, revision, time_ms
        return results


class HastyMachine(EpochMachine):
    """Believes of every voter that it holds the state, and deletes at once."""

    def _facts(self) -> Facts:
        facts = super()._facts()
        return replace(facts, installed=frozenset(facts.head.node_ids))
