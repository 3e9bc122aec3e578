"""Datagram sessions: who sent a packet, proven, without a connection and without a clock.

    HELLO   1 | mac | signed(version, receiver, ephemeral key, my session id) | padding | cookie
    REPLY   2 | mac | signed(version, receiver, ephemeral key, my session id, digest of the hello)
    DATA    3 | your session id | counter | ChaCha20-Poly1305
    COOKIE  4 | mac | digest of the hello | cookie | padding
    PROBE   5 | as DATA: what finds out whether packets get through (`mesh.reach`)

The digest of a hello is that of what is signed in it, so it is the same with any cookie.

The rules:
- A stranger gets no session. The mac under the swarm id, cheap and checked first, keeps other
  swarms and noise away from the signatures; the signature must be an admitted member's.
- When many hellos come, one must show a cookie before its signature is checked; see `cookies`.
  Who is told to show one repeats its hello with it at once. A cookie counts only with the
  digest of a hello that is under way, which nobody knows who has not seen the hello; and it is
  followed a few times only. The signature of a reply is checked under the same condition.
- No answer is larger than what it answers, so nobody can aim us at a third party: a hello is
  padded for its reply, and a request for a cookie for the hello that it brings about.
- A hello makes a *pending* session, replayed or not; only a packet that opens under its key,
  which takes the ephemeral secret, makes it the one that is used. So a replay changes nothing.
  A hello that comes again gets its reply again: repeats cannot push out what others wait for.
- A counter is taken once: behind a window of 1,024 it is too old (RFC 6479 has the idea).
- A session is known by the id its receiver chose, not by an address, so a member may move.
  Packets for a session that a restart has forgotten make us say hello to the address they
  came from, if a member is known to be there, once a second: the one packet that may bring
  about a larger one, and towards a member alone.
- Who says a protocol version below the log's lowest gets no session, and loses one it has when
  that rises.
- Everything else is counted and dropped.

No socket is touched here: `receive`, `send` and `tick` leave what is to be sent in `outgoing`.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from swarmd.base.errors import BadSignature, MalformedMessage, Outdated, RemoteError, Untrusted
from swarmd.base.ids import ID_BYTES, NodeId, digest
from swarmd.base.limits import DATAGRAM_BYTES_MAX
from swarmd.identity.authority import Admission
from swarmd.identity.keys import TAG_BYTES, Aead, Exchange, SigningKey, keyed_tag, tags_equal
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.mesh.addresses import Address, AddressBook
from swarmd.mesh.transports.cookies import NO_COOKIE, HelloGate
from swarmd.mesh.transports.roster import Roster, admitted
from swarmd.observe.metrics import DROPPED
from swarmd.wire.codec import Family, Message
from swarmd.wire.envelope import Envelope, decode_envelope, encode_envelope
from swarmd.wire.version import PROTOCOL_VERSION

HELLO_BYTES: Final = 512
WINDOW: Final = 1_024
PAYLOAD_BYTES_MAX: Final = DATAGRAM_BYTES_MAX - 33
_HELLO: Final = b"\x01"
_REPLY: Final = b"\x02"
_DATA: Final = b"\x03"
_COOKIE: Final = b"\x04"
_PROBE: Final = b"\x05"
_ID_BYTES: Final = 8
_COUNTER_BYTES: Final = 8
_HEADER_BYTES: Final = 1 + _ID_BYTES + _COUNTER_BYTES
_PENDING_PER_PEER_MAX: Final = 4
_CONFIRMED_PER_PEER_MAX: Final = 2
_HANDSHAKES_MAX: Final = 1_024
_QUEUE_MAX: Final = 16
_ADDRESSES_TRIED_MAX: Final = 4
# Two for each address: the second is for one that comes when the first is too old.
_COOKIES_PER_TRY_MAX: Final = 2 * _ADDRESSES_TRIED_MAX
_PAUSES_S: Final = (0.1, 0.2, 0.4, 0.8, 1.0)
_BARE_PAUSES_S: Final = (0.25, 0.5, 0.5)
_HELLO_EVERY_S: Final = 1.0
_QUIET_S: Final = 3.0
_HELLO_DOMAIN: Final = "udp-hello"
_REPLY_DOMAIN: Final = "udp-reply"
_ANYBODY: Final = b""


class DatagramHello(Message, frozen=True, tag=1):
    """`receiver` is empty where the sender knows an address only."""

    version: int
    receiver: bytes
    exchange: bytes
    session: bytes


class DatagramReply(Message, frozen=True, tag=2):
    version: int
    receiver: bytes
    exchange: bytes
    session: bytes
    answering: bytes


# Format 2: both say their version.
_HELLOS: Final = Family("udp-hello", DatagramHello, message_bytes_max=HELLO_BYTES, format_number=2)
_REPLIES: Final = Family("udp-reply", DatagramReply, message_bytes_max=HELLO_BYTES, format_number=2)


class ReplayWindow:
    """Which counters of a session were seen, the newest 1,024 of them."""

    def __init__(self) -> None:
        self.highest = -1
        self._seen = 0

    def is_fresh(self, counter: int) -> bool:
        if counter > self.highest:
            return True
        behind = self.highest - counter
        return behind < WINDOW and not self._seen >> behind & 1

    def mark(self, counter: int) -> None:
        if counter > self.highest:
            shift = min(counter - self.highest, WINDOW)
            self._seen = (self._seen << shift | 1) & ((1 << WINDOW) - 1)
            self.highest = counter
        else:
            self._seen |= 1 << (self.highest - counter)


@dataclass(slots=True, eq=False)
class _Session:
    peer: NodeId
    version: int
    mine: bytes
    theirs: bytes
    sealer: Aead
    opener: Aead
    address: Address
    hello: bytes = b""  # Digest of the hello that it answers, while pending.
    reply: bytes = b""
    unanswered_since: float | None = None
    unanswered: int = 0
    counter: int = 0
    window: ReplayWindow = field(default_factory=ReplayWindow)


@dataclass(slots=True, eq=False)
class _Handshake:
    """A hello of ours that waits for a reply. `receiver` None is a bare address."""

    receiver: NodeId | None
    exchange: Exchange
    session: bytes
    packet: bytes
    addresses: tuple[Address, ...]
    tries: int
    next_at: float
    cookies: dict[Address, bytes] = field(default_factory=dict)
    cookies_left: int = 0


@dataclass(slots=True, eq=False)
class _Peer:
    current: _Session | None = None
    confirmed: deque[_Session] = field(default_factory=deque)
    pending: deque[_Session] = field(default_factory=deque)
    queue: deque[bytes] = field(default_factory=lambda: deque(maxlen=_QUEUE_MAX))
    handshake: bytes | None = None
    hello_at: float = float("-inf")
    heard_at: float = float("-inf")


class Sessions:
    """All datagram sessions of one node."""

    def __init__(self, key: SigningKey, roster: Roster, addresses: AddressBook) -> None:
        self._key, self._roster, self._addresses = key, roster, addresses
        self._mac_key = digest(b"udp hello mac", roster.swarm_id)
        self._peers: dict[NodeId, _Peer] = {}
        self._by_id: dict[bytes, _Session] = {}
        self._pending: dict[bytes, _Session] = {}  # By the digest of the hello.
        self._handshakes: OrderedDict[bytes, _Handshake] = OrderedDict()
        self._version = roster.version
        self._gate = HelloGate()
        self.outgoing: deque[tuple[Address, bytes]] = deque()
        self.delivered: deque[tuple[NodeId, bytes]] = deque()
        self.probes: deque[tuple[NodeId, bytes]] = deque()
        self.met: deque[tuple[NodeId, Address]] = deque()

    # ---- sending ----------------------------------------------------------------------

    def send(self, peer: NodeId, addresses: Iterable[Address], data: bytes, now: float) -> bool:
        """Send to a member, or keep the packet while a session is made; False if dropped."""
        assert len(data) <= PAYLOAD_BYTES_MAX, f"{len(data)} bytes do not fit a datagram"
        self._follow_roster()
        if admitted(self._roster, peer) is None:
            return _dropped("no_member")
        state = self._peers.setdefault(peer, _Peer())
        session = state.current
        if session is None:
            tried = self._greet(peer, state, addresses, now)
            if not tried:
                return _dropped("no_address")
            if len(state.queue) == _QUEUE_MAX:
                _dropped("queue_full")
            state.queue.append(data)
            return True
        if session.unanswered_since is None:
            session.unanswered_since = now
        elif session.unanswered > 1 and now - session.unanswered_since > _QUIET_S:
            # It restarted, or is elsewhere. One packet proves nothing: to answers nobody answers.
            session.unanswered_since = now
            self._greet(peer, state, addresses, now)
        session.unanswered += 1
        self._seal(session, data)
        return True

    def probe(self, peer: NodeId, data: bytes) -> tuple[Address, bytes] | None:
        """A packet that is for the caller to send, and where to; None without a session.

        What comes so is left in `probes`.
        """
        self._follow_roster()
        state = self._peers.get(peer)
        if state is None or state.current is None:
            return None
        assert len(data) <= PAYLOAD_BYTES_MAX, f"{len(data)} bytes do not fit a datagram"
        return state.current.address, self._sealed(state.current, _PROBE, data)

    def heard_at(self, peer: NodeId) -> float:
        """When a packet came last that is certain to be the member's."""
        state = self._peers.get(peer)
        return float("-inf") if state is None else state.heard_at

    def hello(self, address: Address, now: float) -> None:
        """Say hello to whoever is at an address; an answer shows up in `met`."""
        if not any(h.addresses == (address,) for h in self._handshakes.values()):
            self._start(None, (address,), now)

    @property
    def is_greeting(self) -> bool:
        """Is there a hello that may have to be repeated?"""
        return bool(self._handshakes)

    def tick(self, now: float) -> float | None:
        """Repeat and give up hellos; when to call again, None if nothing waits."""
        for name, handshake in list(self._handshakes.items()):
            if now >= handshake.next_at:
                self._repeat(name, handshake, now)
        return min((h.next_at for h in self._handshakes.values()), default=None)

    def _repeat(self, name: bytes, handshake: _Handshake, now: float) -> None:
        pauses = _BARE_PAUSES_S if handshake.receiver is None else _PAUSES_S
        if handshake.tries >= len(pauses):
            self._end_handshake(name)
            return
        handshake.next_at = now + pauses[handshake.tries]
        handshake.tries += 1
        handshake.cookies_left = _COOKIES_PER_TRY_MAX
        for address in handshake.addresses:
            cookie = handshake.cookies.get(address, NO_COOKIE)
            self.outgoing.append((address, self._showing(cookie, handshake.packet)))

    def _end_handshake(self, name: bytes) -> None:
        handshake = self._handshakes.pop(name)
        if handshake.receiver is None:
            return
        state = self._peers[handshake.receiver]
        if state.handshake == name:
            state.handshake = None
            if state.current is None and state.queue:
                DROPPED.labels("udp", "unreachable").inc(len(state.queue))
                state.queue.clear()

    def _greet(self, peer: NodeId, state: _Peer, addresses: Iterable[Address], now: float) -> bool:
        """Have a hello under way to a member; False if nobody knows where it is."""
        if state.handshake is not None:
            return True
        known = dict.fromkeys((*self._addresses.lookup(peer), *addresses))
        tried = tuple(known)[:_ADDRESSES_TRIED_MAX]
        if not tried:
            return False
        if now - state.hello_at >= _HELLO_EVERY_S:
            state.hello_at = now
            state.handshake = self._start(peer, tried, now)
        return True

    def _start(self, peer: NodeId | None, addresses: tuple[Address, ...], now: float) -> bytes:
        if len(self._handshakes) >= _HANDSHAKES_MAX:
            self._end_handshake(next(iter(self._handshakes)))
        exchange, session = Exchange(), os.urandom(_ID_BYTES)
        receiver = _ANYBODY if peer is None else peer
        hello = DatagramHello(PROTOCOL_VERSION, receiver, exchange.public, session)
        packet = self._signed(_HELLO, _HELLO_DOMAIN, _HELLOS.encode(hello))
        name = digest(_signed_part(packet[1 + TAG_BYTES :]))
        handshake = _Handshake(peer, exchange, session, packet, addresses, 0, now)
        self._handshakes[name] = handshake
        self._repeat(name, handshake, now)
        return name

    def _seal(self, session: _Session, data: bytes) -> None:
        self.outgoing.append((session.address, self._sealed(session, _DATA, data)))

    @staticmethod
    def _sealed(session: _Session, kind: bytes, data: bytes) -> bytes:
        counter = session.counter
        session.counter += 1
        header = kind + session.theirs + counter.to_bytes(_COUNTER_BYTES, "big")
        return header + session.sealer.seal(counter, data, header)

    def _signed(self, kind: bytes, domain: str, payload: bytes) -> bytes:
        envelope = sign_envelope(domain, self._roster.swarm_id, payload, self._key)
        raw = encode_envelope(envelope)
        room = HELLO_BYTES - 1 - TAG_BYTES - 2 - len(NO_COOKIE)
        assert len(raw) <= room, len(raw)
        body = len(raw).to_bytes(2, "big") + raw
        return self._tagged(kind, body, padded=kind == _HELLO)

    def _tagged(self, kind: bytes, body: bytes, *, padded: bool) -> bytes:
        if padded:
            body = body.ljust(HELLO_BYTES - 1 - TAG_BYTES, b"\0")
        return kind + keyed_tag(self._mac_key, kind + body) + body

    def _showing(self, cookie: bytes, hello: bytes) -> bytes:
        """A hello of ours with a cookie in the place where it has none."""
        if cookie == NO_COOKIE:
            return hello
        return self._tagged(_HELLO, hello[1 + TAG_BYTES : -len(cookie)] + cookie, padded=True)

    # ---- receiving --------------------------------------------------------------------

    def receive(self, raw: bytes, address: Address, now: float) -> None:
        """Take a packet off the wire: any bytes from anybody."""
        self._follow_roster()
        if not _HEADER_BYTES <= len(raw) <= DATAGRAM_BYTES_MAX:
            _dropped("length")
            return
        kind = raw[:1]
        if kind in (_DATA, _PROBE):
            self._receive_data(raw, address, now)
            return
        if kind not in (_HELLO, _REPLY, _COOKIE):
            _dropped("kind")
            return
        body = raw[1 + TAG_BYTES :]
        tag = keyed_tag(self._mac_key, kind + body)
        if not tags_equal(raw[1 : 1 + TAG_BYTES], tag):
            _dropped("other_swarm")
            return
        try:
            if kind == _HELLO:
                self._receive_hello(body, address, now)
            elif kind == _COOKIE:
                self._receive_cookie(body, address)
            else:
                self._receive_reply(body, address)
        except Untrusted:
            _dropped("untrusted")
        except Outdated:
            _dropped("outdated")
        except BadSignature:
            _dropped("bad_signature")
        except RemoteError:
            _dropped("malformed")

    def _receive_hello(self, body: bytes, address: Address, now: float) -> None:
        _check_padded(body)
        body, cookie = body[: -len(NO_COOKIE)], body[-len(NO_COOKIE) :]
        signed = _signed_part(body)
        name = digest(signed)
        crowded = self._gate.is_crowded(now)
        if crowded and not self._gate.is_good(cookie, name, address, now):
            _dropped("no_cookie")
            asked = name + self._gate.cookie(name, address, now)
            self.outgoing.append((address, self._tagged(_COOKIE, asked, padded=True)))
            return
        session = self._pending.get(name)
        if session is None:  # Else these very bytes were checked before.
            refusal = self._gate.spend_check(address if crowded else None, now)
            if refusal:
                _dropped(refusal)
                return
            session = self._judge_hello(signed, name, address)
            self._peers[session.peer].heard_at = now
        self.outgoing.append((address, session.reply))

    def _judge_hello(self, signed: bytes, name: bytes, address: Address) -> _Session:
        """A session that waits for the sender of a good hello. Raises RemoteError."""
        envelope, sender = self._unverified(signed, _HELLO_DOMAIN)
        self._verify(envelope, sender)
        peer = sender.node_id
        hello: DatagramHello = _HELLOS.decode(envelope.payload)
        if hello.receiver not in (_ANYBODY, self._key.key_id) or len(hello.session) != _ID_BYTES:
            raise BadSignature("a hello for somebody else")
        self._check_version(hello.version)
        state = self._peers.setdefault(peer, _Peer())
        session = self._answer(peer, hello, name, address)
        assert len(session.reply) <= HELLO_BYTES, "a reply must not be larger than its request"
        state.pending.append(session)
        self._pending[name] = session
        if len(state.pending) > _PENDING_PER_PEER_MAX:
            oldest = state.pending.popleft()
            del self._by_id[oldest.mine], self._pending[oldest.hello]
        return session

    def _answer(
        self, peer: NodeId, hello: DatagramHello, name: bytes, address: Address
    ) -> _Session:
        """A session that waits for the sender of `hello` to prove that it is there."""
        exchange, mine = Exchange(), os.urandom(_ID_BYTES)
        session = self._session(peer, exchange, hello, mine, address, opener=False)
        reply = DatagramReply(PROTOCOL_VERSION, peer, exchange.public, mine, name)
        session.hello = name
        session.reply = self._signed(_REPLY, _REPLY_DOMAIN, _REPLIES.encode(reply))
        return session

    def _receive_cookie(self, body: bytes, address: Address) -> None:
        _check_padded(body)  # What it brings about is no larger then.
        name, cookie = body[:ID_BYTES], body[ID_BYTES : ID_BYTES + len(NO_COOKIE)]
        handshake = self._handshakes.get(name)
        if handshake is None:
            _dropped("stale_cookie")
            return
        if not handshake.cookies_left:
            _dropped("cookies_per_hello")
            return
        handshake.cookies_left -= 1
        if address in handshake.addresses:
            handshake.cookies[address] = cookie
        self.outgoing.append((address, self._showing(cookie, handshake.packet)))

    def _receive_reply(self, body: bytes, address: Address) -> None:
        envelope, sender = self._unverified(_signed_part(body), _REPLY_DOMAIN)
        reply: DatagramReply = _REPLIES.decode(envelope.payload)
        handshake = self._handshakes.get(reply.answering)
        if handshake is None:
            _dropped("stale_reply")
            return
        self._verify(envelope, sender)
        peer = sender.node_id
        if reply.receiver != self._key.key_id or len(reply.session) != _ID_BYTES:
            raise BadSignature("a reply to somebody else")
        if handshake.receiver not in (None, peer):
            raise BadSignature("a reply by somebody else")
        self._check_version(reply.version)
        state = self._peers.setdefault(peer, _Peer())
        session = self._session(
            peer, handshake.exchange, reply, handshake.session, address, opener=True
        )
        del self._handshakes[reply.answering]
        if state.handshake == reply.answering:
            state.handshake = None
        if not state.queue:
            self._seal(session, b"")  # Shows the peer that the session is in use.
        self._confirm(state, session)

    def _receive_data(self, raw: bytes, address: Address, now: float) -> None:
        session = self._by_id.get(raw[1 : 1 + _ID_BYTES])
        if session is None:
            self._forgotten(address, now)
            return
        header = raw[:_HEADER_BYTES]
        counter = int.from_bytes(header[1 + _ID_BYTES :], "big")
        if not session.window.is_fresh(counter):
            _dropped("replay")
            return
        try:
            data = session.opener.open(counter, raw[_HEADER_BYTES:], header)
        except BadSignature:
            _dropped("undecryptable")
            return
        moved = counter > session.window.highest and address != session.address
        session.window.mark(counter)
        session.unanswered_since = None
        self._peers[session.peer].heard_at = now
        session.unanswered = 0
        if moved:
            session.address = address
            self._addresses.learn(session.peer, [address], proven=True)
        state = self._peers[session.peer]
        if session in state.pending:
            state.pending.remove(session)
            del self._pending[session.hello]
            self._confirm(state, session)
        if data:
            taken = self.probes if raw[:1] == _PROBE else self.delivered
            taken.append((session.peer, data))

    def _forgotten(self, address: Address, now: float) -> None:
        _dropped("unknown_session")
        peer = self._addresses.peer_at(address)
        if peer is None or admitted(self._roster, peer) is None:
            return
        state = self._peers.setdefault(peer, _Peer())
        if state.handshake is None and now - state.hello_at >= _HELLO_EVERY_S:
            state.hello_at = now
            state.handshake = self._start(peer, (address,), now)

    def _unverified(self, signed: bytes, domain: str) -> tuple[Envelope, Admission]:
        """An envelope, and the member whose signature it claims to have. Raises RemoteError."""
        envelope = decode_envelope(signed, domain=domain)
        if len(envelope.signatures) != 1:
            raise BadSignature("a hello has one signature")
        peer = NodeId(envelope.signatures[0][0])
        if peer == self._key.key_id:
            raise BadSignature("this node's own packet came back")
        admission = admitted(self._roster, peer)
        if admission is None:
            raise Untrusted("a hello by a stranger")
        return envelope, admission

    def _verify(self, envelope: Envelope, sender: Admission) -> None:
        verify_envelope(envelope, self._roster.swarm_id, {bytes(sender.node_id): sender.public})

    def _check_version(self, version: int) -> None:
        if version < self._roster.min_version:
            raise Outdated(f"a member speaks protocol version {version}, which is too low")

    def _session(
        self,
        peer: NodeId,
        exchange: Exchange,
        said: DatagramHello | DatagramReply,
        mine: bytes,
        address: Address,
        *,
        opener: bool,
    ) -> _Session:
        forth = Aead(exchange.shared(said.exchange, b"udp forth"))
        back = Aead(exchange.shared(said.exchange, b"udp back"))
        sealer, unsealer = (forth, back) if opener else (back, forth)
        session = _Session(peer, said.version, mine, said.session, sealer, unsealer, address)
        self._by_id[mine] = session
        return session

    def _confirm(self, state: _Peer, session: _Session) -> None:
        """The peer has proven that it holds the session's key: use it from now on."""
        state.current = session
        state.confirmed.append(session)
        if len(state.confirmed) > _CONFIRMED_PER_PEER_MAX:
            del self._by_id[state.confirmed.popleft().mine]
        self._addresses.learn(session.peer, [session.address], proven=True)
        self.met.append((session.peer, session.address))
        while state.queue:
            self._seal(session, state.queue.popleft())

    def _follow_roster(self) -> None:
        """Sessions with who is no longer a member, or is outdated, end."""
        if self._roster.version == self._version:
            return
        self._version = self._roster.version
        lowest = self._roster.min_version
        for peer, state in list(self._peers.items()):
            sessions = (*state.confirmed, *state.pending)
            outdated = any(session.version < lowest for session in sessions)
            if not outdated and admitted(self._roster, peer) is not None:
                continue
            del self._peers[peer]
            for session in sessions:
                self._by_id.pop(session.mine, None)
                self._pending.pop(session.hello, None)
            if state.handshake is not None:
                self._handshakes.pop(state.handshake, None)


def _check_padded(body: bytes) -> None:
    if len(body) != HELLO_BYTES - 1 - TAG_BYTES:
        raise MalformedMessage("a packet that is not padded")


def _signed_part(body: bytes) -> bytes:
    """The envelope that a body begins with, its length before it."""
    return body[2 : 2 + int.from_bytes(body[:2], "big")]


def _dropped(reason: str) -> bool:
    DROPPED.labels("udp", reason).inc()
    return False
