"""A conversation in one request: items come in while answers go out, each item answered.

The body is a stream of items, framed like any stream (`gateway.http`): NDJSON, or frames by
Content-Type. Items that arrive together are carried out together, several lots at a time, and
each is answered by itself as soon as its lot is done, in whatever order that is. When the
body ends and every item is answered, the answer ends.

Bounds, per conversation: so many items and bytes are under way, answers not yet written
included; beyond that nothing more is read, and the client feels it. What is held counts as
request bodies do. An item that cannot be read ends the conversation with an error, after the
answers to those before it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec
import trio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from swarmd.base.errors import BadRequest, Busy, ShuttingDown, SwarmError, TooLarge
from swarmd.base.limits import KIB, MIB, VALUE_BYTES_MAX
from swarmd.gateway.http import (
    FRAMES,
    NDJSON,
    Budget,
    Running,
    error_answer,
    error_body,
    leave_body,
)

ITEMS_MAX: Final = 1_024
HELD_BYTES_MAX: Final = 2 * MIB
ANSWER_BYTES_MAX: Final = 1 * MIB
# One value at its largest as base64, its key and what is around them.
ITEM_BYTES_MAX: Final = VALUE_BYTES_MAX * 4 // 3 + 64 * KIB
_HEAD_BYTES: Final = 4
_KEEPALIVE_FRAME: Final = b"\x00\x00\x00\x01\xc0"
_DROP_S: Final = 2.0
# Answers of a lot are put out together up to about so many bytes.
_PUT_BYTES: Final = 64 * KIB

T = TypeVar("T")
# Carries a lot out; one answer per item, in the same order. It raises nothing but bugs.
Carry = Callable[[list[T]], Awaitable[Sequence[Any]]]


class Splitter:
    """Cuts a body into the bytes of its items. Holds at most one unfinished item."""

    def __init__(self, *, frames: bool) -> None:
        self._frames = frames
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The items that are whole by now. Raises TooLarge."""
        data = self._rest + data if self._rest else data
        items, used = self._cut_frames(data) if self._frames else self._cut_lines(data)
        self._rest = data[used:]
        if len(self._rest) > ITEM_BYTES_MAX + _HEAD_BYTES:
            raise TooLarge(f"an item of a stream has at most {ITEM_BYTES_MAX} bytes")
        return items

    def end(self) -> list[bytes]:
        """What is left at the body's end. Raises BadRequest: it broke off within an item."""
        if self._frames and self._rest:
            raise BadRequest("the stream ended within a frame")
        return [self._rest] if self._rest.strip() else []

    def _cut_frames(self, data: bytes) -> tuple[list[bytes], int]:
        items: list[bytes] = []
        at, size = 0, len(data)
        while at + _HEAD_BYTES <= size:
            start = at + _HEAD_BYTES
            end = start + int.from_bytes(data[at:start], "big")
            if end - start > ITEM_BYTES_MAX:
                raise TooLarge(f"an item of a stream has at most {ITEM_BYTES_MAX} bytes")
            if end > size:
                break
            if end - start > 1:  # One byte is a sign of life.
                items.append(data[start:end])
            at = end
        return items, at

    def _cut_lines(self, data: bytes) -> tuple[list[bytes], int]:
        used = data.rfind(b"\n") + 1
        return [line for line in data[:used].split(b"\n") if line.strip()], used


class _Room:
    """What a conversation holds; waiting for some of it to be let go."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._freed = trio.Event()
        self.items = 0
        self.size = 0

    def try_take(self, size: int) -> bool:
        """Hold one more item of `size` bytes, if there is room now."""
        if self.items >= ITEMS_MAX or (self.items and self.size + size > HELD_BYTES_MAX):
            return False
        try:
            self._budget.take(size)
        except Busy:
            if not self.items:
                raise
            return False
        self.items += 1
        self.size += size
        return True

    async def take(self, size: int) -> None:
        """The same, waiting for room. Raises Busy: other requests hold all there is."""
        while not self.try_take(size):
            await self._freed.wait()

    def give_back(self, items: int, size: int) -> None:
        self._budget.give_back(size)
        self.items -= items
        self.size -= size
        self._freed.set()
        self._freed = trio.Event()


class _Outbox:
    """Encoded answers that wait to be written, and what their items hold until then."""

    def __init__(self) -> None:
        self.news = trio.Event()
        self._written = trio.Event()
        self._parts: list[bytes] = []
        self._size = 0
        self._items = 0
        self._held = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    async def put(self, raw: bytes) -> None:
        while self._size > ANSWER_BYTES_MAX:
            await self._written.wait()
        self._parts.append(raw)
        self._size += len(raw)
        self.news.set()

    def note_done(self, items: int, held: int) -> None:
        """All answers to these items have been put."""
        self._items += items
        self._held += held
        self.news.set()

    def take(self) -> tuple[bytes, int, int]:
        """What is to be written now; the items, and their bytes, to be let go after that."""
        taken = b"".join(self._parts), self._items, self._held
        self._parts.clear()
        self._size = self._items = self._held = 0
        self.news = trio.Event()
        self._written.set()
        self._written = trio.Event()
        return taken


class Duplex(Running, Generic[T]):
    """An ASGI response that reads its request while it answers; see the module.

    Args:
        kind: what an item decodes to.
        carry: carries out items that arrived together.
    """

    def __init__(
        self,
        request: Request,
        kind: type[T],
        carry: Carry[T],
        *,
        budget: Budget,
        keepalive_s: float,
        stopping: trio.Event,
    ) -> None:
        leave_body(request)
        self._request = request
        framed = FRAMES in request.headers.get("content-type", "")
        self._splitter = Splitter(frames=framed)
        decoder: Any = msgspec.msgpack.Decoder(kind) if framed else msgspec.json.Decoder(kind)
        self._decode: Callable[[bytes], T] = decoder.decode
        self._carry = carry
        self._keepalive_s = keepalive_s
        self._stopping = stopping
        self._frames = FRAMES in request.headers.get("accept", "")
        self._room = _Room(budget)
        self._out = _Outbox()
        self._reading = trio.CancelScope()
        self._failure: SwarmError | None = None
        self._whole = False  # The body is at its end.
        self._started = False
        self._writes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        present = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_stop)
                nursery.start_soon(self._write, send)
                nursery.start_soon(self._keep_alive)
                async with trio.open_nursery() as lots:
                    present = await self._read(receive, lots)
                    if not present:
                        lots.cancel_scope.cancel()  # Nobody is there to read an answer.
                nursery.cancel_scope.cancel()
            if present:
                await self._end(scope, receive, send)
        finally:
            self._room.give_back(self._room.items, self._room.size)

    async def _watch_stop(self) -> None:
        await self._stopping.wait()
        self._reading.cancel()

    # ---- items in ------------------------------------------------------------------------

    async def _read(self, receive: Receive, lots: trio.Nursery) -> bool:
        """Read to the body's end, or to what is wrong with it; False if the client went."""
        try:
            with self._reading:
                while not self._whole:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    self._whole = not message.get("more_body", False)
                    items = self._splitter.feed(message.get("body", b""))
                    await self._begin(items + self._splitter.end() if self._whole else items, lots)
        except SwarmError as error:
            self._failure = error
        if self._reading.cancelled_caught:
            self._failure = ShuttingDown("this node is stopping: ask another one")
        return True

    async def _begin(self, raws: list[bytes], lots: trio.Nursery) -> None:
        """Have items carried out, as many at a time as there is room for.

        Raises:
            BadRequest: one cannot be read; those before it are carried out all the same.
            Busy: there is no room for a single one.
        """
        lot: list[T] = []
        size = 0
        try:
            for raw in raws:
                item = self._decoded(raw)
                if not self._room.try_take(len(raw)):
                    if lot:
                        lots.start_soon(self._run, lot, size)
                        lot, size = [], 0
                    await self._room.take(len(raw))
                lot.append(item)
                size += len(raw)
        finally:
            if lot:
                lots.start_soon(self._run, lot, size)

    def _decoded(self, raw: bytes) -> T:
        try:
            return self._decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"an item of the stream is wrong: {error}") from error

    async def _run(self, lot: list[T], size: int) -> None:
        parts: list[bytes] = []
        held = 0
        for answer in await self._carry(lot):
            raw = self._encoded(answer)
            parts.append(raw)
            held += len(raw)
            if held > _PUT_BYTES:
                await self._out.put(b"".join(parts))
                parts, held = [], 0
        if parts:
            await self._out.put(b"".join(parts))
        self._out.note_done(len(lot), size)

    def _encoded(self, answer: Any) -> bytes:
        if not self._frames:
            return msgspec.json.encode(answer) + b"\n"
        raw = msgspec.msgpack.encode(answer)
        return len(raw).to_bytes(_HEAD_BYTES, "big") + raw

    # ---- answers out ---------------------------------------------------------------------

    async def _write(self, send: Send) -> None:
        """Pass answers on, as many at a time as wait, until cancelled between two writes."""
        while True:
            await self._out.news.wait()
            with trio.CancelScope(shield=True):
                await self._flush(send)

    async def _keep_alive(self) -> None:
        """Say now and then that the daemon lives, if no answer has said it."""
        alive = _KEEPALIVE_FRAME if self._frames else b"\n"
        while True:
            written = self._writes
            await trio.sleep(self._keepalive_s)
            if self._writes == written:
                await self._out.put(alive)

    async def _flush(self, send: Send) -> None:
        raw, items, size = self._out.take()
        if raw:
            self._writes += 1
            await self._send(send, raw)
        self._room.give_back(items, size)

    async def _end(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure = self._failure
        if failure is not None and self._whole and not self._started and not self._out:
            await error_answer(self._request, failure)(scope, receive, send)
            return
        await self._flush(send)
        await self._send(send, b"" if failure is None else self._encoded(error_body(failure)))
        await self._drop_rest(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop_rest(self, receive: Receive) -> None:
        """Read what is still being sent, for a while: a reset might overtake the answer."""
        dropped = 0
        with trio.move_on_after(_DROP_S):
            while not self._whole and dropped < ITEM_BYTES_MAX:
                message = await receive()
                dropped += len(message.get("body", b""))
                self._whole = not message.get("more_body", False)

    async def _send(self, send: Send, body: bytes) -> None:
        if not self._started:
            self._started = True
            kind = (FRAMES if self._frames else NDJSON).encode()
            headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
