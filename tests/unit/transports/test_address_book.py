"""The address book: best first, bounded, and a hint only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.ids import NodeId
from swarmd.mesh.addresses import ADDRESSES_MAX, Address, AddressBook

A, B = NodeId(b"a" * 32), NodeId(b"b" * 32)
HOME: Address = ("10.0.0.1", 1)
AWAY: Address = ("10.0.0.2", 2)


def test_what_was_proven_comes_first() -> None:
    book = AddressBook()
    book.learn(A, [HOME])
    book.learn(A, [AWAY])
    assert book.lookup(A) == [HOME, AWAY]
    book.learn(A, [AWAY], proven=True)
    assert book.lookup(A) == [AWAY, HOME]


def test_hearsay_does_not_take_an_address_from_who_was_proven_there() -> None:
    book = AddressBook()
    book.learn(A, [HOME], proven=True)
    book.learn(B, [HOME])
    assert book.peer_at(HOME) == A
    book.learn(B, [HOME], proven=True)
    assert book.peer_at(HOME) == B


def test_a_refuted_address_is_gone() -> None:
    book = AddressBook()
    book.learn(A, [HOME, AWAY])
    book.refute(A, HOME)
    assert book.lookup(A) == [AWAY]
    assert book.peer_at(HOME) is None


def test_impossible_addresses_are_not_kept() -> None:
    book = AddressBook()
    book.learn(A, [("", 1), ("h", 0), ("h", 70_000)])
    assert book.lookup(A) == []


def test_members_are_bounded_and_the_least_touched_goes() -> None:
    book = AddressBook(members_max=2)
    ids = [NodeId(bytes([n]) * 32) for n in range(3)]
    for n, peer in enumerate(ids[:2]):
        book.learn(peer, [("h", n + 1)])
    book.learn(ids[0], [("h", 9)])
    book.learn(ids[2], [("h", 3)])
    assert book.lookup(ids[1]) == []
    assert book.peer_at(("h", 2)) is None
    assert book.lookup(ids[0])


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.lists(st.integers(1, 40), max_size=12), st.booleans()),
        max_size=60,
    )
)
def test_both_directions_agree_and_stay_bounded(
    steps: list[tuple[int, list[int], bool]],
) -> None:
    book = AddressBook(members_max=4)
    for who, ports, proven in steps:
        book.learn(NodeId(bytes([who]) * 32), [("h", port) for port in ports], proven=proven)
    assert len(book._of) <= 4
    for peer, addresses in book._of.items():
        assert len(addresses) <= ADDRESSES_MAX
        assert len(set(addresses)) == len(addresses)
        assert peer in book._of
    for address, peer in book._at.items():
        assert address in book._of[peer]
