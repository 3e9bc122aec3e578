"""Texts and lists that several edit at once: nobody's edit is lost, and all read the same."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from itertools import permutations
from typing import Any

import pytest
from crdt_documents import KEY, Documents, run_documents
from crdt_replicas import Group, Step, actor, try_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_crdt_types import is_a_join

from swarmd.base.errors import BadRequest, MalformedMessage, TooLarge, WrongType
from swarmd.state.crdt.cells import Cell, Change
from swarmd.state.crdt.dots import Dot
from swarmd.state.crdt.types import documents
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.updates import (
    CLIENT_MAX,
    CLOCK_MAX,
    Block,
    Deleted,
    Units,
    Update,
    decode_update,
    encode_update,
    size_of,
)
from swarmd.state.crdt.types.values import Assign, EditList, EditText, Remove, change, read
from swarmd.wire.codec import pack, unpack

KINDS = [Kind.TEXT, Kind.LIST]
FEW = settings(max_examples=100, deadline=None)
MANY = settings(max_examples=10_000, deadline=None)


def holds(kind: Kind, count: int, steps: list[Step]) -> None:
    """All that is promised of a document, of one run."""
    group = run_documents(kind, count, steps)
    is_a_join(*(one.cells for one in group.replicas[:3]))
    group.settle()
    for replica in group.replicas[1:]:
        assert replica.cells == group.replicas[0].cells
    values = [group.value(number) for number in range(count)]
    assert values == [values[0]] * count
    assert group.held() == group.expected()
    group.check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_converges_and_loses_nothing(kind: Kind) -> None:
    try_runs(FEW, partial(holds, kind))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_converges_in_ten_thousand_cases(kind: Kind) -> None:
    try_runs(MANY, partial(holds, kind))


@pytest.fixture
def merged_from(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many cells, and no fewer, an edit takes together with its own."""
    monkeypatch.setattr(documents, "_is_worth_it", lambda cells, _held, _whole: cells >= 8)
    return 8


# ---- what comes of edits at once -----------------------------------------------------------


def text_of(group: Group, number: int = 0) -> Any:
    return read(group.replicas[number].cells.at(KEY))


def clients_of(group: Group, number: int = 0) -> set[int]:
    """Whose units the cells of a replica hold."""
    return {
        block.client
        for cell in group.replicas[number].cells.at(KEY).values()
        for block in decode_update(unpack(cell.value)[1]).blocks
    }


def test_two_who_edit_one_text_at_once_have_both_edits_in_it() -> None:
    group = Group(3)
    group.write(0, EditText(0, "the fox jumps"))
    group.join(1, 0)
    group.write(0, EditText(4, "quick "))
    group.write(1, EditText(8, "leaps", 5))
    group.settle()
    assert [text_of(group, n) for n in range(3)] == ["the quick fox leaps"] * 3


def test_places_are_of_characters_however_many_bytes_those_have() -> None:
    group = Group(1)
    group.write(0, EditText(0, "a😀é漢b"))
    group.write(0, EditText(2, "X", 2))
    assert text_of(group) == "a😀Xb"
    group.write(0, EditText(1, "", 1))
    assert text_of(group) == "aXb"


def test_elements_of_a_list_stay_what_they_are() -> None:
    group = Group(1)
    values = (1, 1.0, True, None, "1", b"1", 2**63, {"a": [1, {}]})
    group.write(0, EditList(0, values))
    found = text_of(group)
    assert [(type(v), v) for v in found] == [(type(v), v) for v in values]
    group.write(0, EditList(1, ("new",), 6))
    assert text_of(group) == [1, "new", {"a": [1, {}]}]


def test_a_text_that_is_emptied_is_empty_and_not_gone() -> None:
    group = Group(1)
    group.write(0, EditText(0, "abc"))
    assert not group.write(0, EditText(1))
    group.write(0, EditText(0, "", 3))
    assert text_of(group) == ""
    group.write(0, EditText(0, "d"))
    assert text_of(group) == "d"


def test_what_is_typed_in_one_go_is_one_piece_and_few_cells() -> None:
    group = Group(1)
    for place in range(500):
        group.write(0, EditText(place, "x"))
    assert len(clients_of(group)) == 1
    cells = group.held()[KEY].values()
    assert len(cells) < 40
    assert sum(len(cell.value) for cell in cells) < 2_500


def test_of_an_edit_while_the_key_is_removed_the_edit_alone_stays() -> None:
    group = Group(3)
    group.write(0, EditText(0, "old text"))
    group.join(1, 0)
    group.write(0, Remove())
    group.write(1, EditText(3, "er"))
    group.settle()
    assert [text_of(group, n) for n in range(3)] == ["er"] * 3
    group.write(2, EditText(2, "!"))
    assert text_of(group, 2) == "er!"


def test_where_that_edit_merged_the_document_stays_as_its_author_saw_it(merged_from: int) -> None:
    group = Group(3)
    for place in range(merged_from):
        group.write(0, EditText(place, "x"))
    group.join(1, 0)
    group.write(0, Remove())
    group.write(1, EditText(0, "y"))
    group.settle()
    assert text_of(group) == "y" + "x" * merged_from


def test_an_edit_that_comes_before_what_it_follows_is_read_at_once() -> None:
    group = Group(3)
    group.write(0, EditText(0, "ac"))
    group.join(1, 0)
    group.write(1, EditText(1, "b"))
    group.catch_up(2, 1)
    assert text_of(group, 2) == "b"
    group.write(2, EditText(1, "!"))
    group.settle()
    assert text_of(group, 2) == "abc!", "after what had no place yet"


def test_what_was_deleted_before_it_came_is_not_there_when_it_comes(merged_from: int) -> None:
    group = Group(3)
    group.write(0, EditText(0, "abc"))
    group.join(1, 0)
    group.write(1, EditText(1, "", 1))
    group.catch_up(2, 1)
    for _ in range(merged_from):
        group.write(2, EditText(0, "x"))
    assert len(group.held(2)[KEY]) == 1, "a deletion of nothing that is here, with the others"
    group.settle()
    assert sorted(text_of(group, 2)) == sorted("ac" + "x" * merged_from)


def test_a_unit_is_never_put_twice_under_one_id(merged_from: int) -> None:
    """The author's last edit was removed, and those before it are back by a merge, unseen."""
    group = Documents(Kind.TEXT, 3)
    for place in range(merged_from - 2):
        group.edit(0, place, 0, 1)
    group.join(1, 0)
    for place in range(merged_from - 2):
        group.edit(0, place, 0, 2)
    group.join(2, 0)
    group.remove(2)
    group.catch_up(0, 2)
    assert group.value(0) is None
    for _ in range(3):
        group.edit(1, 0, 0, 1)
    assert len(group.held(1)[KEY]) == 1, "all that it had seen, and its own"
    group.join(0, 1)
    before = clients_of(group)
    group.edit(0, 3, 0, 2)
    group.edit(0, 5, 0, 1)
    assert len(clients_of(group) - before) == 1, "another one, and the same again"
    group.settle()
    group.check()


def test_an_author_whose_last_edit_only_deleted_takes_another_id(merged_from: int) -> None:
    """It does not know which units it has put that are not here any more."""
    group = Documents(Kind.TEXT, 3)
    for place in range(merged_from - 2):
        group.edit(0, place, 0, 1)
    group.join(1, 0)
    group.edit(0, 1, 0, 2)
    group.edit(0, merged_from, 0, 1)
    group.join(2, 0)
    group.edit(0, 0, 1, 0)
    group.remove(2)
    group.catch_up(0, 2)
    for _ in range(3):
        group.edit(1, 0, 0, 1)
    group.join(0, 1)
    group.edit(0, 0, 0, 3)
    group.settle()
    group.check()


def test_another_start_of_a_node_puts_under_another_id() -> None:
    group = Documents(Kind.LIST, 3)
    group.edit(0, 0, 0, 2)
    group.restart(0)
    group.edit(0, 2, 0, 1)
    assert len(clients_of(group)) == 2


def test_an_id_that_is_in_the_document_is_not_taken() -> None:
    first = documents.edit({}, (actor("a"), 1), 5, 0, 0, "x").put
    assert first is not None
    live = {(actor("b"), 9): Cell((), Kind.TEXT, b"", first.value, 4)}
    second = documents.edit(live, (actor("a"), 1), 5, 0, 0, "y").put
    assert second is not None
    clients = [decode_update(unpack(put.value)[1]).blocks[0].client for put in (first, second)]
    assert clients[0] != clients[1]


def test_a_document_is_in_a_field_of_a_map_as_elsewhere() -> None:
    group = Group(3)
    group.write(0, EditText(0, "ab"), fields=("notes", "x"))
    group.write(0, EditList(0, (1,)), fields=("rows",))
    group.join(1, 0)
    group.write(1, EditText(1, "-"), fields=("notes", "x"))
    group.write(0, EditText(2, "!"), fields=("notes", "x"))
    group.settle()
    assert text_of(group) == {"notes": {"x": "a-b!"}, "rows": [1]}


def test_of_a_register_and_a_text_at_once_the_register_counts() -> None:
    group = Group(3)
    group.write(0, EditText(0, "text"))
    group.write(1, Assign("value"))
    group.settle()
    assert [text_of(group, n) for n in range(3)] == ["value"] * 3
    live = group.replicas[0].cells.at(KEY)
    with pytest.raises(WrongType, match="is a register and no text"):
        change(live, KEY, EditText(0, "x"), actor=actor("n0"), stamp=9)


@pytest.mark.parametrize("clients", list(permutations((1, 2, 3))))
def test_what_is_put_between_the_halves_of_a_character_is_behind_it(
    clients: tuple[int, ...],
) -> None:
    """Its author knew of the first half alone, by what another had put before that."""
    one, other, late = clients
    live = cells_of(
        Update([Block(one, 0, None, None, "😀!", 3)], []),
        Update([Block(other, 0, None, None, "ab", 2)], []),
        Update([Block(other, 2, (one, 0), (other, 0), "c", 1)], []),
        Update([Block(late, 0, (other, 2), (one, 1), "d", 1)], []),
        Update([Block(late, 1, (one, 1), (one, 2), "e", 1)], []),
    )
    text = documents.read_text(live)
    assert sorted(text) == sorted("😀!abcde")
    assert text.index("😀") < text.index("e") < text.index("!"), "as its author put it"
    assert text.index("😀") < text.index("c") < text.index("d")


@pytest.mark.parametrize(
    "steps",
    [
        [(2, 0, 1, 0), (1, 0, 0, 0), (1, 3, 0, 0), (1, 0, 0, 0), (0, 2, 0, 0), (1, 0, 0, 1),
         (0, 2, 0, 0), (0, 2, 0, 0), (0, 6, 0, 1), (0, 0, 0, 0), (2, 4, 0, 0), (2, 2, 3, 1),
         (0, 4, 1, 2), (0, 0, 1, 0)],
        [(2, 0, 1, 0), (1, 0, 0, 0), (1, 0, 0, 0), (1, 0, 1, 0), (2, 0, 0, 0), (2, 0, 1, 0),
         (0, 2, 0, 0), (0, 2, 0, 0), (0, 6, 0, 1), (0, 0, 0, 0), (2, 4, 0, 0), (2, 2, 3, 0),
         (0, 0, 0, 1)],
    ],
)  # fmt: skip
def test_runs_that_once_failed(steps: list[Step]) -> None:
    """An edit came before the character that it is next to, and another behind its first half."""
    holds(Kind.TEXT, 3, steps)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [EditText(3, "x"), EditText(-1, "x"), EditText(1, "", 2), EditText(0, "", -1)],
)
def test_a_place_that_is_not_there_is_refused(operation: EditText) -> None:
    group = Group(1)
    group.write(0, EditText(0, "ab"))
    live = group.replicas[0].cells.at(KEY)
    with pytest.raises(BadRequest, match="has a length of 2"):
        change(live, KEY, operation, actor=actor("n0"), stamp=9)


def test_what_cannot_be_carried_is_refused() -> None:
    for operation in (EditText(0, "\ud800"), EditList(0, (object(),))):
        with pytest.raises((BadRequest, MalformedMessage)):
            change({}, KEY, operation, actor=actor("n0"), stamp=9)


def test_a_document_has_a_bound_and_what_is_taken_away_makes_room() -> None:
    group = Group(1)
    half = "x" * (documents.BYTES_MAX // 2)
    group.write(0, EditText(0, half))
    group.write(0, EditText(0, half[:-500]))
    live = group.replicas[0].cells.at(KEY)
    with pytest.raises(TooLarge, match="nothing changed"):
        change(live, KEY, EditText(0, "y" * 500), actor=actor("n0"), stamp=99)
    group.write(0, EditText(0, "", 1_000))
    assert group.write(0, EditText(0, "y" * 500))
    assert text_of(group).startswith("y" * 500 + "x")


def test_a_document_of_too_many_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECES_MAX", 20)
    group = Group(1)
    places = 0
    while group.write(0, EditText(places, "ab")):
        places += 1  # Each parts what was put before.
    assert 3 < places <= 20
    live = group.replicas[0].cells.at(KEY)
    with pytest.raises(TooLarge, match="20 pieces"):
        change(live, KEY, EditText(places, "c"), actor=actor("n1"), stamp=10**9)
    assert group.write(0, EditText(0, "", 2 * places)), "what is taken away makes room"


# ---- bytes of members that lie -------------------------------------------------------------

ID = st.none() | st.tuples(st.integers(1, 6), st.integers(0, 12) | st.just(CLOCK_MAX - 1))
TEXT = st.none() | st.sampled_from(["a", "bc", "é😀x", "😀😀"])


@st.composite
def updates(draw: st.DrawFn) -> Update:
    """Well formed, and of any meaning: gaps, cycles, one id twice, halves of characters."""
    blocks = []
    for client in draw(st.sets(st.integers(1, 5), max_size=3)):
        clock = draw(st.integers(0, 4))
        for content in draw(st.lists(TEXT, min_size=1, max_size=4)):
            size = 2 if content is None else size_of(content)
            blocks.append(Block(client, clock, draw(ID), draw(ID), content, size))
            clock += size + 2 * draw(st.booleans())
    blocks.sort(key=lambda block: (block.client, block.clock))
    deleted = [
        Deleted(client, start, start + size)
        for client, start, size in draw(
            st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(1, 3)), max_size=3)
        )
    ]
    return Update(blocks, sorted(deleted))


def cells_of(*found: Update) -> dict[Dot, Cell]:
    return {
        (actor("liar"), number): Cell((), Kind.TEXT, b"", packed(update), number)
        for number, update in enumerate(found, 1)
    }


def packed(update: Update) -> bytes:
    return pack([1, encode_update(update)])


def is_read_whole(found: list[Update]) -> None:
    """Whatever the updates say: each unit is read once, before and after a merge."""
    live = cells_of(*found)
    units = Units()
    for update in found:
        assert decode_update(encode_update(update)) == Update(
            sorted(update.blocks, key=lambda b: (-b.client, b.clock)),
            sorted(update.deleted, key=lambda d: (-d.client, d.start)),
        )
        assert units.take(update, 10**6)
    merged = units.merged()
    text = documents.read_text(live)
    assert size_of(text) == sum(b.size for b in merged.blocks if b.content is not None)
    assert documents.read_text(cells_of(merged)) == text
    made = documents.edit(live, (actor("me"), 1), 10**6, len(text) // 2, 0, "\u2713")
    assert made.put is not None
    after = {dot: cell for dot, cell in live.items() if dot not in made.removes}
    after[actor("me"), 1] = Cell((), Kind.TEXT, b"", made.put.value, 10**6)
    assert sorted(documents.read_text(after)) == sorted(text + "\u2713")


@FEW
@given(st.lists(updates(), min_size=1, max_size=6))
def test_updates_of_any_meaning_are_read_whole(found: list[Update]) -> None:
    is_read_whole(found)


@pytest.mark.long
@settings(max_examples=1_000, deadline=None)
@given(st.lists(updates(), min_size=1, max_size=6))
def test_updates_of_any_meaning_are_read_whole_in_a_thousand_cases(found: list[Update]) -> None:
    is_read_whole(found)


SOUND = encode_update(Update([Block(9, 0, None, None, "ok", 2)], []))
BROKEN = {
    "nothing": b"",
    "no update": b"\xff" * 20,
    "an end that is missing": SOUND[:-2],
    "bytes behind it": SOUND + b"\0",
    "a length that is not there": b"\x01\xff\xff\xff\xff\x07\x09\x00\x04\x01\x01d\x01a\x00",
    "a text of 2 GiB": b"\x01\x01\x09\x00\x04\x01\x01d\xff\xff\xff\xff\x07a\x00",
    "2 GiB of elements": b"\x01\x01\x09\x00\x08\x01\x01d\xff\xff\xff\xff\x07\x00",
    "another row": b"\x01\x01\x09\x00\x04\x01\x01e\x01a\x00",
    "a map": b"\x01\x01\x09\x00\x24\x01\x01d\x01k\x01a\x00",
    "a tree": b"\x01\x01\x09\x00\x07\x01\x01d\x00\x00",
    "a block of nothing": b"\x01\x01\x09\x00\x04\x01\x01d\x00\x00",
    "a text that is none": b"\x01\x01\x09\x00\x04\x01\x01d\x01\xff\x00",
    "a client twice": b"\x02" + 2 * b"\x01\x09\x00\x04\x01\x01d\x01a" + b"\x00",
    "clocks beyond the last": b"\x01\x02\x09\x00\x0a\xff\xff\xff\xff\x07\x04\x01\x01d\x01a\x00",
    "a client beyond the last": b"\x01\x01" + b"\xff" * 8 + b"\x7f\x00\x04\x01\x01d\x01a\x00",
    "a deletion of nothing": b"\x00\x01\x09\x01\x00\x00",
    "an element that is no value": b"\x01\x01\x09\x00\x08\x01\x01d\x01\x74\x01\xc1\x00",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_update_is_left_out_and_the_others_are_read(what: str) -> None:
    with pytest.raises(MalformedMessage):
        decode_update(BROKEN[what])
    group = Group(1)
    group.write(0, EditText(0, "text"))
    liar = actor("liar")
    cells = group.replicas[0].cells
    for number, value in enumerate((pack([1, BROKEN[what]]), pack([1, BROKEN[what][:3]])), 1):
        cells.apply((liar, number), Change(KEY, Cell((), Kind.TEXT, b"", value, number), ()))
    assert text_of(group) == "text"
    for _ in range(8):
        group.write(0, EditText(4, "!"))
    assert text_of(group) == "text" + "!" * 8
    assert liar not in {dot[0] for dot in cells.at(KEY)}, "a merge takes it away"


@pytest.mark.parametrize(
    "value",
    [b"", b"\xc1", pack(None), pack([1]), pack(["1", SOUND]), pack([0, SOUND]), pack([-1, SOUND]),
     pack([CLIENT_MAX + 1, SOUND]), pack([1, "text"]), pack([1, SOUND, 0])],
)  # fmt: skip
def test_a_cell_that_is_no_edit_is_left_out(value: bytes) -> None:
    for kind, nothing in ((Kind.TEXT, ""), (Kind.LIST, [])):
        live = {(actor("liar"), 1): Cell((), kind, b"", value, 1)}
        assert read(live) == nothing


def test_an_author_goes_on_where_its_own_last_cell_is_not_what_it_wrote() -> None:
    """Who hands over a whole state can make one up."""
    live = {(actor("me"), 1): Cell((), Kind.TEXT, b"", b"\xc1", 1)}
    made = documents.edit(live, (actor("me"), 2), 5, 0, 0, "x")
    assert made.put is not None


def test_elements_in_a_text_and_a_text_in_a_list_are_left_out() -> None:
    text = pack([1, encode_update(Update([Block(9, 0, None, None, "ok", 2)], []))])
    elements = pack([1, encode_update(Update([Block(9, 0, None, None, (pack(1),), 1)], []))])
    assert read({(actor("a"), 1): Cell((), Kind.LIST, b"", text, 1)}) == []
    assert read({(actor("a"), 1): Cell((), Kind.TEXT, b"", elements, 1)}) == ""


def test_what_is_too_much_is_left_out_and_no_edit_is_taken() -> None:
    many = cells_of(
        *(Update([Block(n, 0, None, None, "x", 1)], []) for n in range(1, documents.CELLS_MAX + 9))
    )
    wide = cells_of(
        *(
            Update([Block(10_000 * n + c, 0, None, None, "x", 1) for c in range(3_000)], [])
            for n in range(1, 4)
        )
    )
    large = cells_of(
        *(Update([Block(n, 0, None, None, "x" * 500_000, 500_000)], []) for n in range(1, 12))
    )
    for live, read_units in ((many, documents.CELLS_MAX), (wide, 3_000), (large, 8 * 500_000)):
        assert len(read(live)) == read_units
        with pytest.raises(TooLarge):
            change(live, KEY, EditText(0, "y"), actor=actor("me"), stamp=10**6)


def test_a_daemon_that_reads_no_document_does_not_load_the_library() -> None:
    script = (
        "import sys; from swarmd.state.crdt import service; from swarmd.state.crdt.types import "
        "documents; sys.exit('pycrdt' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
