"""What every endpoint is given: the services, the settings, and how to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
import trio
from starlette.requests import Request
from starlette.routing import Route

from swarmd.base.errors import BadRequest, Busy, ShuttingDown, SwarmError
from swarmd.base.limits import INLINE_BYTES_MAX
from swarmd.gateway.access.gate import Gate, caller_of, origin_of
from swarmd.gateway.access.refusals import note_refusal
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.http import (
    Budget,
    Endpoint,
    Items,
    Stream,
    end_with_client,
    guarded,
    payload_in,
    read,
)
from swarmd.gateway.services import Services
from swarmd.state.blobs.messages import BlobRef
from swarmd.tasks.spec import Inline, Stored

_PUTS_AT_ONCE: Final = 8
_NIL: Final = b"\xc0"

T = TypeVar("T")


class ApiRoute(Route):
    """A route, and the permission that it needs (`access.rules`, `access.gate`)."""

    def __init__(
        self, path: str, endpoint: Endpoint, needs: str, methods: Sequence[str] | None = None
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.needs = needs


class Watches:
    """How many requests of one kind watch at once: they stay for ever, and others must find room.

    Args:
        most: how many may.
    """

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._running = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one for as long as the block runs. Raises Busy: as many run as may."""
        if self._running >= self._most:
            raise Busy(f"this node serves {self._most} watches already: ask another one")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by all requests of one gateway."""

    services: Services
    config: GatewayConfig
    budget: Budget
    gate: Gate
    stopping: trio.Event = field(default_factory=trio.Event)

    def route(
        self, path: str, endpoint: Endpoint, needs: str, methods: Sequence[str] | None = None
    ) -> ApiRoute:
        """A route whose endpoint runs for callers that may; what on, the endpoint asks itself."""

        def admit(request: Request) -> None:
            self.gate.admit(request, needs, self.services.access)

        async def until_over(request: Request) -> None:
            access = self.services.access
            if access is None:
                await trio.sleep_forever()
            else:
                await access.until_over(caller_of(request))

        call = guarded(endpoint, self.budget, admit, until_over, self.note_refusal)
        return ApiRoute(path, call, needs, methods)

    def note(
        self, request: Request, kind: str, subject: str, outcome: str = "ok", details: str = ""
    ) -> None:
        """Take note, in the audit log, of what the caller of `request` did.

        A member that forwards a request says who the caller is, so it is named, too.
        """
        if self.services.audit is not None:
            actor, via = caller_of(request).name, origin_of(request.scope).via
            if via:
                actor = f"{actor} via {self.services.name_of(via)}"
            self.services.audit.note(kind, actor, subject, outcome, details)

    def note_refusal(self, request: Request, error: SwarmError) -> None:
        """Take note of a request that was refused for who made it."""
        note_refusal(self.services.audit, self.services.name_of, request, error)

    @contextmanager
    def noted(self, request: Request, kind: str, subject: str, details: str = "") -> Iterator[None]:
        """Take note of what the block does, when it is done or has failed, and of how it ended."""
        outcome = "unknown"
        try:
            yield
            outcome = "ok"
        except SwarmError as error:
            outcome = error.code
            raise
        finally:
            self.note(request, kind, subject, outcome, details)

    async def read(self, request: Request, kind: type[T]) -> T:
        """The body as `kind`. Raises BadRequest, TooLarge, Busy."""
        return await read(request, kind, self.budget)

    def stream(self, request: Request, items: Items, *, items_max: int = 256) -> Stream:
        """`items` as an answer; at most `items_max` wait for a client that reads slowly."""
        return Stream(
            request,
            items,
            keepalive_s=self.config.keepalive_s,
            stopping=self.stopping,
            items_max=items_max,
        )

    async def attended(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives, unless the client goes or the gateway stops: then it is cancelled.

        For requests that wait. What is left of the body is dropped.

        Raises:
            ShuttingDown: the gateway stopped.
        """
        given: list[T] = []

        async def end_with_gateway(scope: trio.CancelScope) -> None:
            await self.stopping.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_with_client, request, nursery.cancel_scope)
            nursery.start_soon(end_with_gateway, nursery.cancel_scope)
            given.append(await call())
            nursery.cancel_scope.cancel()
        if not given:
            raise ShuttingDown("this node is stopping: ask another one")
        return given[0]

    async def values_of(
        self, request: Request, inputs: Sequence[tuple[msgspec.Raw | None, BlobRef | None]]
    ) -> list[Inline | Stored]:
        """Payloads as tasks take them: inline, or durably stored as a blob if one is large."""
        values = [_value_of(request, raw, blob) for raw, blob in inputs]
        large = [index for index, value in enumerate(values) if _is_large(value)]
        limit = trio.CapacityLimiter(_PUTS_AT_ONCE)

        async def store(index: int) -> None:
            value = values[index]
            assert isinstance(value, Inline)
            async with limit:
                blobs = self.services.need(self.services.blobs)
                values[index] = Stored(await blobs.put(value.data))

        async with trio.open_nursery() as nursery:
            for index in large:
                nursery.start_soon(store, index)
        return values

    async def bytes_of(self, value: Inline | Stored) -> bytes:
        """The msgpack of a result, fetched if it is a blob."""
        if isinstance(value, Inline):
            return value.data
        return await self.services.need(self.services.blobs).get(value.blob)


def _value_of(request: Request, raw: msgspec.Raw | None, blob: BlobRef | None) -> Inline | Stored:
    if blob is not None:
        return Stored(blob)
    return Inline(_NIL if raw is None else payload_in(request, raw))


def _is_large(value: Inline | Stored) -> bool:
    return isinstance(value, Inline) and len(value.data) > INLINE_BYTES_MAX


def query_int(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises BadRequest naming the bounds."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    if not digits or not least <= int(text) <= most:
        raise BadRequest(f"{name} must be a whole number from {least} to {most}, not {text!r}")
    return int(text)


def query_flag(request: Request, name: str) -> bool:
    """True for 1, true and yes. Raises BadRequest for anything but those and their opposites."""
    text = request.query_params.get(name, "0").lower()
    if text in ("1", "true", "yes", ""):
        return True
    if text in ("0", "false", "no"):
        return False
    raise BadRequest(f"{name} must be 1 or 0, not {text!r}")
