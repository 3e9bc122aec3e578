"""Any bytes at every decoder of the strong store: refused by name, and nothing changes."""

from __future__ import annotations

from collections.abc import Iterable

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from swarmd.base.errors import CorruptFile, MalformedMessage, SwarmError
from swarmd.identity.epochs import Chain, statement_of
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.epoch import Ballot
from swarmd.state.raft.statemachine import StateMachine

KEY = SigningKey.from_seed(b"k" * 32)
GENESIS = init_swarm("lab", "one", node_key=KEY)[0]
VOTER = m.Voter(KEY.public, b"s" * 16)
SESSION = b"s" * 16

BATCH = m.encode_batch(
    m.Batch(
        5,
        (
            m.Group(b"", 0, 0, (m.OpenSession(SESSION), m.TakeOffice(b"n"))),
            m.Group(
                SESSION,
                0,
                0,
                (
                    m.Put(b"a", b"1", 0),
                    m.Delete(b"a"),
                    m.Txn((m.Compare(b"a", 0),), (m.Put(b"b", b"2"),)),
                    m.AuthorityEntry(b"junk"),
                    m.GrantLease(5_000),
                    m.Put(b"u/l", b"1", None, 4),
                    m.RenewLease(4),
                    m.Add(b"u/n", 3),
                    m.Txn((m.Compare(b"u/n", None, b"3"),), (), (m.Delete(b"u/n"),)),
                    m.RevokeLease(9),
                ),
            ),
        ),
    )
)
MESSAGES = [
    (m.STORE, m.Forward((m.Group(SESSION, 1, 2, (m.Put(b"k", b"v"),)),))),
    (m.STORE, m.Results(((m.OpResult(True, 1),),))),
    (m.STORE, m.Got((m.Entry(b"k", b"v", 1, 2),), True, ((0, 5),))),
    (m.STORE, m.Watched((m.Change(3, b"u/k", b"v"), m.Change(3, b"u/l", None)), 3, ((0, 5),))),
    (m.STORE, m.LeasesGot((m.LeaseInfo(4, 5_000, 20, 1),), (b"u/k",))),
    (m.STORE, m.Redirect(b"n", 1, "x")),
    (m.RAFT, m.Packet(b"e" * 16, b"data")),
    (emsg.EPOCH, emsg.Certificates((b"c",))),
    (emsg.EPOCH, emsg.Enlisted(VOTER, 1)),
    (emsg.EPOCH, emsg.StatePiece(5, b"x")),
    (emsg.EPOCH, emsg.StartAsk(b"s" * 16, 3, (b"n" * 16,))),
    (emsg.COPY, emsg.BasePiece(3, 5, b"x")),
    (emsg.COPY, emsg.LogPiece((b"x", b""), 9, 0)),
]


def _damaged(raw: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    damaged = bytearray(raw)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    return bytes(damaged[: len(damaged) - cut % len(damaged)])


damage = st.tuples(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 10_000) | st.just(0),
)


@pytest.mark.parametrize("family", [m.STORE, m.RAFT, emsg.EPOCH, emsg.COPY], ids=lambda f: f.name)
@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200), prefixed=st.booleans())
def test_any_bytes_are_a_message_or_malformed(family, raw: bytes, prefixed: bool) -> None:  # type: ignore[no-untyped-def]
    try:
        message = family.decode(bytes([family.format_number]) + raw if prefixed else raw)
    except MalformedMessage:
        return
    assert isinstance(message, family.types)


@pytest.mark.parametrize("index", range(len(MESSAGES)))
@settings(max_examples=100, deadline=None)
@given(how=damage)
def test_damaged_messages_are_messages_or_malformed(
    index: int, how: tuple[list[tuple[int, int]], int]
) -> None:
    family, message = MESSAGES[index]
    assert family.decode(family.encode(message)) == message
    try:
        family.decode(_damaged(family.encode(message), *how))
    except MalformedMessage:
        return


@settings(max_examples=300, deadline=None)
@given(how=damage)
def test_apply_never_raises_and_stays_whole(how: tuple[list[tuple[int, int]], int]) -> None:
    state = StateMachine(GENESIS)
    results = state.apply(_damaged(BATCH, *how), 1, 1)
    assert all(isinstance(r, m.OpResult) for group in results for r in group)
    copy = StateMachine(GENESIS)
    _restore(copy, state.snapshot())
    assert tuple(copy.snapshot()) == tuple(state.snapshot())


def _restore(state: StateMachine, frames: Iterable[bytes]) -> None:
    restoring = state.restoring()
    for frame in frames:
        restoring.take(frame)
    restoring.finish()


@settings(max_examples=300, deadline=None)
@given(how=damage)
def test_a_damaged_state_is_refused_or_is_another_state(
    how: tuple[list[tuple[int, int]], int],
) -> None:
    original = StateMachine(GENESIS)
    original.apply(BATCH, 1, 1)
    before = tuple(original.snapshot())
    try:
        _restore(original, [_damaged(frame, *how) for frame in before])
    except CorruptFile:
        assert tuple(original.snapshot()) == before


@settings(max_examples=300, deadline=None)
@given(how=damage)
def test_a_damaged_certificate_never_extends_the_chain(
    how: tuple[list[tuple[int, int]], int],
) -> None:
    chain = Chain(GENESIS)
    statement = statement_of(chain.head, 2, 7, b"d" * 32, (VOTER,))
    certificate = Ballot(GENESIS.swarm_id, chain.head, statement, KEY).certificate()
    assert certificate is not None
    damaged = _damaged(certificate, *how)
    if damaged == certificate:
        return
    with pytest.raises(SwarmError):
        chain.extend(damaged)
    assert chain.head.number == 1
    assert chain.extend(certificate)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=300))
def test_any_bytes_as_certificate_chain_or_batch(raw: bytes) -> None:
    chain = Chain(GENESIS)
    with pytest.raises(SwarmError):
        chain.extend(raw)
    if raw != msgspec.msgpack.encode([]):
        with pytest.raises(CorruptFile):
            chain.load(raw, source="here")
    with pytest.raises(MalformedMessage):
        m.decode_forward(raw)
