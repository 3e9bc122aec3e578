"""Yjs updates, in version 1 of their encoding: what the cells of a document hold.

A document is a row of *units*: UTF-16 units of a text, elements of a list. A unit has an id for
ever, a client and its clock, and keeps which units stood left and right of it when it was put. From
these the library finds one order of all, the same whatever came first (YATA; Nicolaescu et al.,
"Near real-time peer-to-peer shared editing on extensible data types", 2016). A *block* is a run of
units that one client put one after the other; a deleted unit keeps its place and loses its content.

Bytes of others are read here and never by the library, which gets what `Units.ready` makes of
them: without gaps, cycles, or lengths that are not there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from swarmd.base.errors import MalformedMessage
from swarmd.wire.codec import unpack

Id = tuple[int, int]
"""A client and its clock."""

Content = str | tuple[bytes, ...] | None
"""Of a text, of a list (each element packed), of what was deleted."""

CLIENT_MAX: Final = 2**53 - 1
CLOCK_MAX: Final = 2**31 - 1
# Of one update: blocks and deleted ranges. Ordering n blocks takes n * n steps where somebody has
# made them for that: up to 3 s at this bound.
BLOCKS_MAX: Final = 4_096
ROOT: Final = "d"

_DELETED, _STRING, _SKIP, _ANY = 1, 4, 10, 8
_LEFT, _RIGHT, _KEYED = 0x80, 0x40, 0x20
_CONTENT_MASK: Final = 0x1F
_BUFFER: Final = 116  # How an element of a list is tagged that is bytes.
_NAMED_PARENT: Final = 1
_NUMBER_BYTES_MAX: Final = 8


class Block(NamedTuple):
    """`size` units from `clock` on. `left`, `right`: of the first; None is the end of the row."""

    client: int
    clock: int
    left: Id | None
    right: Id | None
    content: Content
    size: int

    @property
    def end(self) -> int:
        return self.clock + self.size

    def cut(self, start: int, end: int) -> Block:
        """The units from clock `start` to before `end`. Half of a character is U+FFFD."""
        if (start, end) == (self.clock, self.end):
            return self
        left = self.left if start == self.clock else (self.client, start - 1)
        content = self.content
        if content is not None:
            content = _slice(content, self.size, start - self.clock, end - self.clock)
        return Block(self.client, start, left, self.right, content, end - start)

    def goes_on_in(self, other: Block) -> bool:
        """Whether the two are one block: said in two, they would mean the same."""
        return (
            other.clock == self.end
            and other.left == (self.client, self.end - 1)
            and other.right == self.right
            and type(other.content) is type(self.content)
        )


class Deleted(NamedTuple):
    client: int
    start: int
    end: int


class Update(NamedTuple):
    """The blocks of each client in the order of their clocks, and none twice."""

    blocks: list[Block]
    deleted: list[Deleted]


class Ranges:
    """Sets of clocks, by client."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {}
        self._ends: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[Deleted]:
        for client in sorted(self._starts):
            for start, end in zip(self._starts[client], self._ends[client], strict=True):
                yield Deleted(client, start, end)

    def clients(self) -> list[int]:
        return sorted(self._starts)

    def add(self, client: int, start: int, end: int) -> None:
        starts, ends = self._starts.setdefault(client, []), self._ends.setdefault(client, [])
        first = bisect_left(ends, start)
        last = bisect_right(starts, end)
        if first < last:
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        starts[first:last], ends[first:last] = [start], [end]

    def within(self, client: int, start: int, end: int) -> list[tuple[int, int]]:
        """What is in the set, of the clocks from `start` to before `end`."""
        starts = self._starts.get(client)
        if starts is None:
            return []
        ends = self._ends[client]
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        return [(max(start, starts[at]), min(end, ends[at])) for at in range(first, last)]

    def without(self, client: int, start: int, end: int) -> list[tuple[int, int]]:
        """What is not in it."""
        there = self.within(client, start, end)
        if not there:
            return [(start, end)]
        edges = [start, *(edge for pair in there for edge in pair), end]
        gaps = list(zip(edges[::2], edges[1::2], strict=True))
        return [(a, b) for a, b in gaps if a < b]

    def top(self, client: int) -> int:
        """The end of the last range; 0 where there is none."""
        ends = self._ends.get(client)
        return ends[-1] if ends else 0


class Units:
    """What several updates come to, in whatever order they were taken.

    Of two contents for one unit, which only a member that lies can put, the first counts.
    """

    def __init__(self) -> None:
        self.present = Ranges()
        self.deleted = Ranges()
        self.count = 0
        self._blocks: dict[int, list[Block]] = {}

    def take(self, update: Update, count_max: int) -> bool:
        """False: the blocks would be more than `count_max`, and nothing was taken."""
        pieces = [
            block.cut(start, end)
            for block in update.blocks
            for start, end in self.present.without(block.client, block.clock, block.end)
        ]
        count = self.count + len(pieces) + len(update.deleted)
        if count > count_max:
            return False
        self.count = count
        for piece in pieces:
            self.present.add(piece.client, piece.clock, piece.end)
            self._blocks.setdefault(piece.client, []).append(piece)
        for block in update.blocks:
            if block.content is None:
                self.deleted.add(block.client, block.clock, block.end)
        for client, start, end in update.deleted:
            self.deleted.add(client, start, end)
        return True

    def merged(self) -> Update:
        """All of it as one update. What was deleted has lost its content."""
        blocks = [block for client in sorted(self._blocks) for block in self._joined(client)]
        early = [
            Deleted(client, a, b)
            for client, start, end in self.deleted
            for a, b in self.present.without(client, start, end)
        ]
        return Update(blocks, early)

    def ready(self) -> Update:
        """All of it as the library can order it without anything else.

        Units that are named and not here (they come later, or were removed with the key) are put
        as deleted ones, each after those that their client had put before. Where units wait for
        each other, which only a member that lies can bring about, they begin a row of their own.
        """
        runs = {client: self._joined(client) for client in sorted(self._blocks)}
        _keep_whole(runs)
        named = Ranges()
        for client, blocks in runs.items():
            named.add(client, 0, blocks[-1].end)
            for one in (one for block in blocks for one in (block.left, block.right)):
                if one is not None:
                    named.add(one[0], one[1], one[1] + 1)
        for client in named.clients():
            run = runs.setdefault(client, [])
            for start, end in self.present.without(client, 0, named.top(client)):
                left = (client, start - 1) if start else None
                run.append(Block(client, start, left, None, None, end - start))
            run.sort(key=_clock_of)
        _break_cycles(runs)
        return Update([block for client in sorted(runs) for block in runs[client]], [])

    def _joined(self, client: int) -> list[Block]:
        """A client's blocks, as few as say the same."""
        pieces: list[Block] = []
        for block in sorted(self._blocks[client], key=_clock_of):
            gone = self.deleted.within(client, block.clock, block.end)
            left = self.deleted.without(client, block.clock, block.end)
            cuts = [(start, end, True) for start, end in gone]
            cuts += [(start, end, False) for start, end in left]
            for start, end, is_gone in sorted(cuts):
                piece = block.cut(start, end)
                pieces.append(piece._replace(content=None) if is_gone else piece)
        pairs = enumerate(pairwise(pieces), 1)
        starts = [0, *(n for n, (one, other) in pairs if not one.goes_on_in(other))]
        return [_join(pieces[a:b]) for a, b in pairwise([*starts, len(pieces)])]


def _clock_of(block: Block) -> int:
    return block.clock


def _join(blocks: list[Block]) -> Block:
    """Blocks that go on in each other."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    content: Content = None
    if isinstance(first.content, str):
        content = "".join(str(block.content) for block in blocks)
    elif first.content is not None:
        content = tuple(one for block in blocks for one in _elements(block))
    return first._replace(content=content, size=blocks[-1].end - first.clock)


def _elements(block: Block) -> tuple[bytes, ...]:
    return block.content if isinstance(block.content, tuple) else ()


def _keep_whole(runs: dict[int, list[Block]]) -> None:
    """Have what is named between the halves of a character stand behind it.

    An author for whom the first half alone stood in, as deleted, can have put something after it.
    The library would count the units wrong from there on. Of a deleted character the halves are not
    known any more: what several put there at once may change places then, everywhere alike.
    """
    firsts = {
        (client, clock)
        for client, blocks in runs.items()
        for block in blocks
        for clock in _first_halves(block)
    }
    if not firsts:
        return
    for blocks in runs.values():
        for at, block in enumerate(blocks):
            left, right = block.left, block.right
            if left in firsts:
                blocks[at] = block = block._replace(left=(left[0], left[1] + 1))
            if right is not None and (right[0], right[1] - 1) in firsts:
                blocks[at] = block._replace(right=None)


def _first_halves(block: Block) -> Iterator[int]:
    """The clocks of units that are the first of two of one character."""
    if not isinstance(block.content, str) or len(block.content) == block.size:
        return
    clock = block.clock
    for character in block.content:
        if character > "\uffff":
            yield clock
            clock += 1
        clock += 1


def _break_cycles(runs: dict[int, list[Block]]) -> None:
    """Cut what waits for itself. Every unit that is named is there."""
    done = dict.fromkeys(runs, 0)
    places = dict.fromkeys(runs, 0)
    waiting: dict[int, list[int]] = {}
    ready = deque(runs)
    for least in runs:
        while True:
            while ready:
                client = ready.popleft()
                before = places[client]
                while places[client] < len(runs[client]):
                    block = runs[client][places[client]]
                    needs = _first_missing(block, done)
                    if needs is not None:
                        waiting.setdefault(needs, []).append(client)
                        break
                    done[client] = block.end
                    places[client] += 1
                if places[client] > before:
                    ready += waiting.pop(client, [])
            if places[least] == len(runs[least]):
                break
            stuck = runs[least][places[least]]
            runs[least][places[least]] = stuck._replace(left=None, right=None)
            ready.append(least)


def _first_missing(block: Block, done: dict[int, int]) -> int | None:
    """A client of whose units one is needed before this block."""
    for one in (block.left, block.right):
        if one is not None and one[1] >= done[one[0]]:
            return one[0]
    return None


# ---- sizes of contents --------------------------------------------------------------------------


def size_of(content: str | tuple[bytes, ...]) -> int:
    """In units."""
    if isinstance(content, str) and not content.isascii():
        return len(content) + sum(one > "\uffff" for one in content)
    return len(content)


def _slice(
    content: str | tuple[bytes, ...], size: int, start: int, end: int
) -> str | tuple[bytes, ...]:
    if isinstance(content, str) and size != len(content):
        units = content.encode("utf-16-le")[2 * start : 2 * end]
        return units.decode("utf-16-le", "replace")
    return content[start:end]


# ---- bytes --------------------------------------------------------------------------------------


def encode_update(update: Update) -> bytes:
    """`update.blocks`: by client, and by clock within it."""
    by_client: dict[int, list[Block]] = {}
    for block in update.blocks:
        by_client.setdefault(block.client, []).append(block)
    out = bytearray()
    _number(out, len(by_client))
    for client, blocks in sorted(by_client.items(), reverse=True):
        _write_client(out, client, blocks)
    ranges: dict[int, list[Deleted]] = {}
    for deleted in update.deleted:
        ranges.setdefault(deleted.client, []).append(deleted)
    _number(out, len(ranges))
    for client, found in sorted(ranges.items(), reverse=True):
        _number(out, client)
        _number(out, len(found))
        for _, start, end in found:
            _number(out, start)
            _number(out, end - start)
    return bytes(out)


def _write_client(out: bytearray, client: int, blocks: list[Block]) -> None:
    gaps = sum(one.end != other.clock for one, other in pairwise(blocks))
    _number(out, len(blocks) + gaps)
    _number(out, client)
    _number(out, blocks[0].clock)
    clock = blocks[0].clock
    for block in blocks:
        if block.clock != clock:
            out.append(_SKIP)
            _number(out, block.clock - clock)
        _write_block(out, block)
        clock = block.end


def _write_block(out: bytearray, block: Block) -> None:
    content = block.content
    kind = _DELETED if content is None else _STRING if isinstance(content, str) else _ANY
    info = kind | (_LEFT if block.left else 0) | (_RIGHT if block.right else 0)
    out.append(info)
    for one in (block.left, block.right):
        if one is not None:
            _number(out, one[0])
            _number(out, one[1])
    if block.left is None and block.right is None:
        _number(out, _NAMED_PARENT)
        _bytes(out, ROOT.encode())
    if content is None:
        _number(out, block.size)
    elif isinstance(content, str):
        _bytes(out, content.encode())
    else:
        _number(out, len(content))
        for element in content:
            out.append(_BUFFER)
            _bytes(out, element)


def _number(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _bytes(out: bytearray, raw: bytes) -> None:
    _number(out, len(raw))
    out += raw


def decode_update(raw: bytes) -> Update:
    """The update in `raw`, which may be any bytes.

    Raises:
        MalformedMessage: `encode_update` makes no such bytes, or there are too many blocks.
    """
    reader = _Reader(raw)
    blocks: list[Block] = []
    clients: set[int] = set()
    for _ in range(reader.number()):
        count, client, clock = reader.number(), reader.number(CLIENT_MAX), reader.number()
        if client in clients:
            raise MalformedMessage("a client twice in one update")
        clients.add(client)
        for _ in range(count):
            clock = reader.block(client, clock, blocks)
            if clock > CLOCK_MAX or len(blocks) > BLOCKS_MAX:
                raise MalformedMessage("an update of too much")
    deleted: list[Deleted] = []
    for _ in range(reader.number()):
        client = reader.number(CLIENT_MAX)
        for _ in range(reader.number()):
            start, size = reader.number(), reader.number()
            deleted.append(Deleted(client, start, start + size))
            if not size or start + size > CLOCK_MAX or len(deleted) > BLOCKS_MAX:
                raise MalformedMessage("an update that deletes too much")
    reader.close()
    return Update(blocks, deleted)


class _Reader:
    """Every step takes a byte at least, and none more than is there."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def number(self, most: int = CLOCK_MAX) -> int:
        value = 0
        for place in range(_NUMBER_BYTES_MAX):
            byte = self._byte()
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                if value > most:
                    break
                return value
        raise MalformedMessage("a number out of range")

    def block(self, client: int, clock: int, blocks: list[Block]) -> int:
        """Append a block, or pass over a gap; the clock after it."""
        info = self._byte()
        if info == _SKIP:
            return clock + self.number()
        left = self._id() if info & _LEFT else None
        right = self._id() if info & _RIGHT else None
        if (
            left is None
            and right is None
            and (self.number() != _NAMED_PARENT or self._bytes() != ROOT.encode())
        ):
            raise MalformedMessage("a block of another row")
        if info & _KEYED:
            raise MalformedMessage("a block of a map")
        content, size = self._content(info & _CONTENT_MASK)
        if not size:
            raise MalformedMessage("a block of nothing")
        blocks.append(Block(client, clock, left, right, content, size))
        return clock + size

    def close(self) -> None:
        if self._at != len(self._raw):
            raise MalformedMessage("bytes after an update")

    def _content(self, kind: int) -> tuple[Content, int]:
        if kind == _DELETED:
            return None, self.number()
        if kind == _STRING:
            try:
                text = self._bytes().decode()
            except UnicodeDecodeError as error:
                raise MalformedMessage("a text that is not UTF-8") from error
            return text, size_of(text)
        if kind != _ANY:
            raise MalformedMessage(f"a block of kind {kind}")
        elements = []
        for _ in range(self.number()):
            if self._byte() != _BUFFER:
                raise MalformedMessage("an element that is not packed")
            elements.append(self._bytes())
            unpack(elements[-1])
        return tuple(elements), len(elements)

    def _id(self) -> Id:
        return self.number(CLIENT_MAX), self.number(CLOCK_MAX - 1)

    def _byte(self) -> int:
        if self._at >= len(self._raw):
            raise MalformedMessage("an update that ends too soon")
        self._at += 1
        return self._raw[self._at - 1]

    def _bytes(self) -> bytes:
        size = self.number()
        if size > len(self._raw) - self._at:
            raise MalformedMessage("an update that ends too soon")
        self._at += size
        return self._raw[self._at - size : self._at]
