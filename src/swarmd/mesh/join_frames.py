"""What is said while a node joins, and how it is framed; the order is `join`'s."""

from __future__ import annotations

import ssl
from typing import Final, TypeVar

import trio

from swarmd.base.errors import MalformedMessage, SwarmError, TimedOut, Unreachable, from_code
from swarmd.base.limits import KIB
from swarmd.identity.tls import JOIN_ALPN
from swarmd.mesh.addresses import Address
from swarmd.wire.codec import Family, Message
from swarmd.wire.envelope import signing_bytes

TlsStream = trio.SSLStream[trio.abc.Stream]

STEP_TIMEOUT_S: Final = 5.0
SESSION_TIMEOUT_S: Final = 60.0
FRAME_BYTES_MAX: Final = 512 * KIB
_LENGTH_BYTES: Final = 4
_REASON_CHARS_MAX: Final = 300


class Hello(Message, frozen=True, tag=1):
    version: int
    nonce: bytes
    swarm_id: bytes
    token_id: bytes
    node_public: bytes
    proof: bytes


class Challenge(Message, frozen=True, tag=2):
    """Pages of `Epochs` follow until there are `epochs`, then of `Records` until `height`.

    `certificate` is of the record there; empty at the genesis.
    """

    nonce: bytes
    node_public: bytes
    genesis: bytes
    epochs: int
    height: int
    certificate: bytes


class Records(Message, frozen=True, tag=3):
    records: tuple[bytes, ...]


class Request(Message, frozen=True, tag=4):
    entry: bytes


class Accepted(Message, frozen=True, tag=5):
    """What came since the challenge follows: `Epochs`, then `Records`, as there."""

    seeds: tuple[Address, ...]
    epochs: int
    height: int
    certificate: bytes


class Epochs(Message, frozen=True, tag=6):
    certificates: tuple[bytes, ...]


class Refused(Message, frozen=True, tag=7):
    code: str
    message: str


class Knock(Message, frozen=True, tag=8):
    """Who is there? From one that shows no token."""

    version: int
    nonce: bytes


class Door(Message, frozen=True, tag=9):
    """What a stranger is told: `door` stands for the swarm (`identity.fingerprints`)."""

    nonce: bytes
    door: bytes
    swarm: str


class Petition(Message, frozen=True, tag=10):
    """Let me in: `request` is as `identity.requests` makes it, the proof is for this connection.

    Answered by `Waiting`, or, once it was approved, by `Challenge` and what follows it.
    """

    request: bytes
    public: bytes
    proof: bytes


class Waiting(Message, frozen=True, tag=11):
    """An admin has to approve it: ask again after `again_s`."""

    again_s: float


class Renewal(Message, frozen=True, tag=12):
    """Put my entry `Renew` forward. Answered by `Credential`."""

    entry: bytes
    public: bytes
    proof: bytes


class Credential(Message, frozen=True, tag=13):
    """When the sender of a `Renewal` expires; not `renewed` if its entry named another end."""

    expires_ms: int
    renewed: bool


class Behind(Message, frozen=True, tag=14):
    """Show me what came after record `height` and epoch `epoch`; from a member that slept."""

    height: int
    epoch: int
    public: bytes
    proof: bytes


class Ahead(Message, frozen=True, tag=15):
    """`Epochs` and `Records` follow, as with `Challenge`."""

    epochs: int
    height: int
    certificate: bytes


JOIN: Final = Family(
    "join",
    Hello,
    Challenge,
    Records,
    Request,
    Accepted,
    Epochs,
    Refused,
    Knock,
    Door,
    Petition,
    Waiting,
    Renewal,
    Credential,
    Behind,
    Ahead,
    alpn=JOIN_ALPN,
    message_bytes_max=FRAME_BYTES_MAX,
    format_number=3,  # What the voters certified comes with the challenge.
)
_M = TypeVar("_M", bound=Message)


class Frames:
    """Messages of `JOIN` on a stream: four bytes of length, then the message."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def send(self, message: Message) -> None:
        """Raises Unreachable: the other side is gone, or takes nothing for a step's time."""
        raw = JOIN.encode(message)
        try:
            with trio.fail_after(STEP_TIMEOUT_S):
                await self._stream.send_all(len(raw).to_bytes(_LENGTH_BYTES, "big") + raw)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unreachable("the connection broke while joining") from error
        except trio.TooSlowError as error:
            raise Unreachable("the other side stopped listening while joining") from error

    async def expect(
        self,
        kind: type[_M],
        *,
        timeout_s: float = STEP_TIMEOUT_S,
        bytes_max: int = FRAME_BYTES_MAX,
    ) -> _M:
        """The next message, which must be a `kind` of at most `bytes_max` bytes.

        Raises:
            TimedOut, Unreachable: it did not come.
            MalformedMessage: something else came.
            SwarmError: the other side refused, by its code.
        """
        message = await self.expect_any(kind, timeout_s=timeout_s, bytes_max=bytes_max)
        assert isinstance(message, kind)
        return message

    async def expect_any(
        self,
        *kinds: type[Message],
        timeout_s: float = STEP_TIMEOUT_S,
        bytes_max: int = FRAME_BYTES_MAX,
    ) -> Message:
        """As `expect`, where one of several may come."""
        try:
            with trio.fail_after(timeout_s):
                message: Message = JOIN.decode(await self._next_frame(bytes_max))
        except trio.TooSlowError as error:
            raise TimedOut("the other side said nothing while joining") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unreachable("the connection broke while joining") from error
        if isinstance(message, Refused):
            raise from_code(message.code, _printable(message.message))
        if not isinstance(message, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise MalformedMessage(f"{type(message).__name__} came instead of {expected}")
        return message

    async def refuse(self, error: SwarmError) -> None:
        """Tell the other side why it ends here."""
        await self.send(Refused(error.code, error.message[:_REASON_CHARS_MAX]))

    async def _next_frame(self, bytes_max: int) -> bytes:
        length = int.from_bytes(await self._take(_LENGTH_BYTES), "big")
        if not 0 < length <= bytes_max:
            raise MalformedMessage(f"a frame of {length} bytes while joining")
        return await self._take(length)

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self._stream.receive_some(count - len(self._buffer))
            if not data:
                raise Unreachable("the other side closed the connection while joining")
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


async def close_stream(stream: trio.abc.Stream) -> None:
    """Close politely, so that what was sent last arrives, but not at any price."""
    with trio.move_on_after(1.0) as scope:
        scope.shield = True
        try:
            await stream.aclose()
        except (trio.BrokenResourceError, ssl.SSLError):
            return


def covered_bytes(domain: str, scope: bytes, *parts: bytes) -> bytes:
    """What a proof covers of `parts`, each with its length; `scope` is a swarm's id or door."""
    payload = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
    return signing_bytes(domain, scope, payload)


def _printable(text: str) -> str:
    """A stranger's sentence, fit for a terminal."""
    return "".join(x if x.isprintable() else "?" for x in text[:_REASON_CHARS_MAX])
