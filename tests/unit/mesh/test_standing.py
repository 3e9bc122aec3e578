"""What the disk of a node that does not run tells of why."""

from __future__ import annotations

from pathlib import Path

from certifying import certified
from small_swarm import ADMIN, KEYS, chain, evict

from swarmd.base.errors import TokenRefused
from swarmd.base.files import FileDisk
from swarmd.base.ids import NodeId
from swarmd.identity.entries import Policy, fresh_nonce, sign_entry
from swarmd.mesh import standing
from swarmd.mesh.standing import (
    LAST_JOIN,
    Standing,
    forget_join_failure,
    last_join_failure,
    note_join_failure,
    standing_of,
    was_in_a_swarm,
)
from swarmd.wire.version import PROTOCOL_VERSION

ME = NodeId(KEYS[1].key_id)


def test_a_join_that_failed_is_kept_until_one_succeeds(tmp_path: Path) -> None:
    assert last_join_failure(tmp_path) is None
    note_join_failure(tmp_path, TokenRefused("the join token has expired; " + "x" * 5_000), 1_234)
    kept = last_join_failure(tmp_path)
    assert kept is not None
    assert (kept.code, kept.wall_ms) == ("token_refused", 1_234)
    assert kept.message.startswith("the join token has expired")
    assert len(kept.message) == standing._MESSAGE_CHARS_MAX
    forget_join_failure(tmp_path)
    forget_join_failure(tmp_path)
    assert last_join_failure(tmp_path) is None


def test_what_is_kept_of_a_join_may_be_any_bytes(tmp_path: Path) -> None:
    note_join_failure(tmp_path, TokenRefused("x"), 1)
    whole = (tmp_path / LAST_JOIN).read_bytes()
    for raw in (b"", b"noise" * 40, whole[:-1], whole[:30] + bytes([whole[30] ^ 1]) + whole[31:]):
        (tmp_path / LAST_JOIN).write_bytes(raw)
        assert last_join_failure(tmp_path) is None


def test_who_was_never_in_a_swarm_has_no_standing_and_nothing_is_made(tmp_path: Path) -> None:
    assert not was_in_a_swarm(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_member_that_was_evicted_or_outdated_finds_it_on_its_disk(tmp_path: Path) -> None:
    state, _ = chain(3)
    certified(FileDisk(tmp_path / "a" / "mesh"), state, KEYS[0])
    assert standing_of(FileDisk(tmp_path / "a" / "mesh"), ME) == Standing("lab")
    policy = Policy(PROTOCOL_VERSION + 3, fresh_nonce())
    state.apply(sign_entry(policy, state.genesis.swarm_id, ADMIN), 3_000)
    certified(FileDisk(tmp_path / "b" / "mesh"), state, KEYS[0])
    assert standing_of(FileDisk(tmp_path / "b" / "mesh"), ME) == Standing(
        "lab", too_old=PROTOCOL_VERSION + 3
    )
    evict(state, 1)
    certified(FileDisk(tmp_path / "c" / "mesh"), state, KEYS[0])
    assert was_in_a_swarm(tmp_path / "c")
    assert standing_of(FileDisk(tmp_path / "c" / "mesh"), ME).evicted
    other = NodeId(KEYS[2].key_id)
    assert not standing_of(FileDisk(tmp_path / "c" / "mesh"), other).evicted


def test_a_disk_that_cannot_tell_says_why(tmp_path: Path) -> None:
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "authority").write_bytes(b"noise")
    assert was_in_a_swarm(tmp_path)
    found = standing_of(FileDisk(tmp_path / "mesh"), ME)
    assert "authority is not a swarmd file" in found.problem
