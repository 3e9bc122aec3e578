"""The guards that make the consensus library safe, by name.

Each guard answers one hazard of the library as shipped, or one rule of Raft (Ongaro and
Ousterhout, *In Search of an Understandable Consensus Algorithm*, 2014) that a slip could
break. All are on in production. A test or the simulator takes one away by name to prove that
its absence is noticed; nothing else may.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Guard(StrEnum):
    """W: what is durable and decoded. H: protocol slips. C, R, V: commit, reads, votes.

    T: transfers of the office. D: digests of the state.
    """

    # Bytes from the log or a peer never reach pickle: unpickling runs code.
    W1_NO_PICKLE = "W1-no-pickle"
    # Term, vote and entries are durable before a message or an answer rests on them.
    W2_PERSIST_FIRST = "W2-persist-first"
    # A leader counts its own copy, and any voter applies, only up to the synced index.
    W2_COUNT_SYNCED = "W2-count-synced"
    # After a failed sync the journal is written anew: the kernel may have dropped the pages.
    W2_REWRITE_AFTER_FAULT = "W2-rewrite-after-fault"
    # A journal of another node or swarm is refused: its votes were not given by this one.
    W3_OWN_JOURNAL = "W3-own-journal"
    # A voter counts once per term, however often its vote arrives.
    H1_ONE_VOTE_EACH = "H1-one-vote-each"
    # Acknowledgements carry their term; those of another term are ignored.
    H2_ACK_TERM = "H2-ack-term"
    # What a follower is known to hold never shrinks within a term.
    H2_MATCH_RISES = "H2-match-rises"
    # A prefix that matches is skipped; only a conflict truncates.
    H3_SKIP_PREFIX = "H3-skip-prefix"
    # A late acknowledgement does not move the next index back.
    H3_NEXT_RISES = "H3-next-rises"
    # A conflict at or below the commit index stops the node.
    H3_STOP_BELOW_COMMIT = "H3-stop-below-commit"
    # A snapshot message does not move the commit index over an unverified tail.
    H4_NO_COMMIT_FROM_SNAPSHOT = "H4-no-commit-from-snapshot"
    # A journal that starts later than its snapshot is refused.
    H5_SNAPSHOT_REQUIRED = "H5-snapshot-required"
    # The commit index is volatile: a saved one could outrun the journal.
    H6_COMMIT_VOLATILE = "H6-commit-volatile"
    # An entry of any allowed size reaches a follower.
    H8_SPLIT_LARGE = "H8-split-large"
    # The journal is rewritten aside and renamed.
    H9_REWRITE_ASIDE = "H9-rewrite-aside"
    # A snapshot is verified before it replaces the good one.
    H10_VERIFY_SNAPSHOT = "H10-verify-snapshot"
    # An error while applying is the entry's result, not a stumbling block for ever.
    H11_ERRORS_ARE_RESULTS = "H11-errors-are-results"
    # Damage at or before a sync mark is fatal; only an unmarked tail may be torn.
    H12_MARKS = "H12-marks"
    # A snapshot at or below the commit index changes nothing.
    H14_NO_OLD_SNAPSHOT = "H14-no-old-snapshot"
    # Only an entry of the leader's own term commits by counting copies (section 5.4.2).
    C1_COMMIT_OWN_TERM = "C1-commit-own-term"
    # A read waits until a majority acknowledged a round begun after it (section 8).
    R1_READ_ROUND = "R1-read-round"
    # A new leader answers reads only after it committed an entry of its term (section 8).
    R2_READ_OWN_TERM = "R2-read-own-term"
    # A voter that cannot win does not raise its term (Ongaro's thesis, section 9.6).
    V1_PRE_VOTE = "V1-pre-vote"
    # Votes are refused while a leader is heard (thesis, section 4.2.3).
    V2_STICKY_LEADER = "V2-sticky-leader"
    # A leader hands over to a voter that holds everything, and takes nothing more meanwhile
    # (thesis, section 3.10): another one would lose the election, and the office stand empty.
    T1_HAND_OVER_ALL = "T1-hand-over-all"
    # Only the leader of this term can ask a voter to stand past the others' stickiness.
    T2_OF_THIS_TERM = "T2-of-this-term"
    # Voters compare digests of their states at the same entries; one that differs stops.
    D1_COMPARE_DIGESTS = "D1-compare-digests"
    # A voter adds its state up anew, bit by bit; one that changed without the log stops.
    D2_SCRUB_STATE = "D2-scrub-state"


ALL_GUARDS: Final[frozenset[str]] = frozenset(Guard)


def without(*removed: str) -> frozenset[str]:
    """All guards but these; for tests and the simulator's mutants."""
    unknown = sorted(set(removed) - ALL_GUARDS)
    assert not unknown, f"no such guard: {unknown}"
    return ALL_GUARDS - frozenset(removed)
