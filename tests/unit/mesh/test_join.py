"""Joining over real sockets: who gets in, and the sentence for everybody who does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
from certifying import certificate_of, now_of
from joining import HOUR_MS, NODE, OTHER, Swarm, calling

from swarmd.base.errors import (
    AlreadyExists,
    BadRequest,
    BadSignature,
    MalformedMessage,
    NoQuorum,
    Outdated,
    SwarmError,
    TimedOut,
    TokenRefused,
    Unavailable,
    Unreachable,
    Untrusted,
)
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import (
    Admit,
    Evict,
    Policy,
    RevokeToken,
    encode_record,
    fresh_nonce,
    issue_token,
    sign_entry,
)
from swarmd.identity.genesis import encode_genesis
from swarmd.identity.keys import SigningKey
from swarmd.identity.tls import MESH_ALPN, server_context
from swarmd.identity.tokens import Token
from swarmd.mesh import history as history_module
from swarmd.mesh import join as join_module
from swarmd.mesh.addresses import Address, format_address
from swarmd.mesh.join import join_swarm
from swarmd.mesh.join_frames import (
    JOIN,
    Accepted,
    Challenge,
    Epochs,
    Frames,
    Hello,
    Records,
    Refused,
    Request,
)
from swarmd.mesh.trust import open_trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.wire.version import PROTOCOL_VERSION


async def refused(
    swarm: Swarm, address: Address, token: Token, error: type[SwarmError], **changes: Any
) -> str:
    """Join, expect a refusal that changes neither log nor trust; its sentence."""
    before = (swarm.log.head, swarm.trust.head, dict(swarm.log.tokens))
    with trio.fail_after(20), pytest.raises(error) as caught:
        await join_swarm([address], token, changes.get("key", NODE), changes.get("name", "beta"))
    assert (swarm.log.head, swarm.trust.head, dict(swarm.log.tokens)) == before
    assert type(caught.value) is error
    message = caught.value.message
    assert message.startswith(format_address(address)), message
    return message


# ---- those who get in ------------------------------------------------------------------


async def test_a_token_lets_a_node_in() -> None:
    swarm = Swarm()
    epochs = (swarm.seal(), swarm.seal())
    async with swarm.listening() as address:
        result = await join_swarm([address], swarm.token, NODE, "beta")
    assert result.genesis == swarm.genesis
    assert list(result.records) == swarm.log.dump()
    assert (result.seeds, result.epochs) == ((("127.0.0.1", 7575),), epochs)
    disk = SimDisk(World(1), "trust")
    mine = open_trust(disk, result.genesis, result.records, result.certificate)
    assert mine.certificate == swarm.trust.certificate
    admission = mine.admission(NODE.key_id)
    assert admission is not None
    assert (admission.name, admission.roles) == ("beta", ("voter", "worker"))
    assert swarm.trust.admission(NODE.key_id) == admission
    assert swarm.log.tokens[swarm.token.token_id].uses_left == 1


async def test_joining_again_is_granted_again_at_no_cost() -> None:
    swarm = Swarm(uses=1)
    async with swarm.listening() as address:
        await join_swarm([address], swarm.token, NODE, "beta")
        swarm.now_ms += 2 * HOUR_MS
        again = await join_swarm([address], swarm.token, NODE, "beta")
        assert list(again.records) == swarm.log.dump()
        assert swarm.log.head[0] == 2


async def test_addresses_are_tried_in_turn() -> None:
    swarm = Swarm()
    [closed] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nobody = closed.socket.getsockname()[:2]
    await closed.aclose()
    async with swarm.listening() as address:
        result = await join_swarm([nobody, address, address], swarm.token, NODE, "beta")
    assert result.genesis == swarm.genesis


async def test_a_long_history_and_many_epochs_come_in_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarmd.mesh.trust_spread.PAGE_RECORDS_MAX", 2)
    monkeypatch.setattr("swarmd.mesh.history.PAGE_BYTES_MAX", 100)
    swarm = Swarm()
    for _ in range(7):
        entry = sign_entry(Policy(1, fresh_nonce()), swarm.log.swarm_id, swarm.admin)
        swarm.append(entry)
    epochs = [swarm.seal() for _ in range(5)]
    async with swarm.listening() as address:
        result = await join_swarm([address], swarm.add_token(), NODE, "beta")
    assert len(result.records) == 10
    assert list(result.epochs) == epochs


async def test_a_server_that_lags_behind_the_log_waits_for_the_records_between() -> None:
    swarm = Swarm()
    between = sign_entry(Policy(1, fresh_nonce()), swarm.log.swarm_id, swarm.admin)

    admitted = trio.Event()

    async def admit_after_another(entry: bytes) -> list[bytes]:
        swarm.log.apply(between, swarm.now_ms)
        admitted.set()
        return [encode_record(swarm.log.apply(entry, swarm.now_ms))]

    swarm.admit = admit_after_another  # type: ignore[method-assign]
    async with swarm.listening() as address, trio.open_nursery() as nursery:

        async def bring_the_rest() -> None:
            await admitted.wait()
            await trio.sleep(0.05)
            swarm.count(swarm.log.dump(), from_peer=True)

        nursery.start_soon(bring_the_rest)
        result = await join_swarm([address], swarm.token, NODE, "beta")
    assert list(result.records) == swarm.log.dump()


async def test_an_epoch_that_begins_while_a_node_joins_is_shown_too() -> None:
    swarm = Swarm()
    admit = swarm.admit

    async def admit_and_seal(entry: bytes) -> list[bytes]:
        records = await admit(entry)
        swarm.seal()
        return records

    swarm.admit = admit_and_seal  # type: ignore[method-assign]
    swarm.seal()
    async with swarm.listening() as address:
        result = await join_swarm([address], swarm.token, NODE, "beta")
    assert result.epochs == swarm.chain.certificates_from(1)
    assert result.certificate == swarm.trust.certificate


# ---- tokens that are refused -----------------------------------------------------------


async def test_expired_used_up_revoked_and_unknown_tokens_get_a_sentence_each() -> None:
    swarm = Swarm(uses=1)
    spare = swarm.add_token()
    async with swarm.listening() as address:
        await join_swarm([address], swarm.token, OTHER, "gamma")
        message = await refused(swarm, address, swarm.token, TokenRefused)
        assert "used up" in message
        swarm.append(
            sign_entry(RevokeToken(spare.token_id, fresh_nonce()), swarm.log.swarm_id, swarm.admin)
        )
        assert "revoked" in await refused(swarm, address, spare, TokenRefused)
        unknown = replace(spare, seed=b"?" * 32)
        assert "not known" in await refused(swarm, address, unknown, TokenRefused)


async def test_an_expired_token_is_refused_by_the_log_and_by_a_server_that_knows() -> None:
    swarm = Swarm(ttl_ms=500)
    async with swarm.listening() as address:
        swarm.now_ms += 500  # The server's newest record is older: only the log can tell.
        assert "expired" in await refused(swarm, address, swarm.token, TokenRefused)
        swarm.add_token()
        swarm.admit = never  # type: ignore[method-assign]
        assert "expired" in await refused(swarm, address, swarm.token, TokenRefused)


async def never(entry: bytes) -> list[bytes]:
    raise AssertionError("the log was asked for what the server could refuse")


async def test_a_token_of_another_swarm_is_refused_by_both_sides() -> None:
    swarm, other = Swarm(), Swarm()
    async with swarm.listening() as address:
        message = await refused(swarm, address, other.token, TokenRefused)
        assert "another swarm" in message


async def test_a_bad_node_name_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(BadRequest, match="node name"):
        await join_swarm([("127.0.0.1", 1)], Swarm().token, NODE, "a b")


async def test_the_founder_and_evicted_nodes_are_told_so() -> None:
    swarm = Swarm()
    async with swarm.listening() as address:
        message = await refused(swarm, address, swarm.token, AlreadyExists, key=swarm.key)
        assert "founded" in message
        await join_swarm([address], swarm.token, NODE, "beta")
        swarm.append(sign_entry(Evict(NODE.key_id, fresh_nonce()), swarm.log.swarm_id, swarm.admin))
        assert "evicted" in await refused(swarm, address, swarm.token, Untrusted)


async def test_a_joiner_that_speaks_less_than_the_swarm_accepts_is_told_to_upgrade() -> None:
    swarm = Swarm()
    entry = Policy(PROTOCOL_VERSION + 1, fresh_nonce())
    swarm.append(sign_entry(entry, swarm.log.swarm_id, swarm.admin))
    async with swarm.listening() as address:
        message = await refused(swarm, address, swarm.token, Outdated)
    assert message.endswith("upgrade it")


async def test_who_holds_no_token_is_not_told_which_version_is_the_lowest() -> None:
    swarm = Swarm()
    entry = Policy(PROTOCOL_VERSION + 1, fresh_nonce())
    swarm.append(sign_entry(entry, swarm.log.swarm_id, swarm.admin))
    async with swarm.listening() as address, calling(address) as frames:
        good = hello_for(swarm, swarm.token)
        fields = {name: getattr(good, name) for name in good.__struct_fields__}
        await frames.send(Hello(**(fields | {"proof": b"x" * 64})))
        with pytest.raises(BadSignature):
            await frames.expect(Challenge)


# ---- servers that are not believed -----------------------------------------------------


async def test_a_chain_shorter_than_the_tokens_head_is_refused() -> None:
    """A server of old: it still knows the token's key by some other way, and lacks the rest."""
    swarm = Swarm()
    late = swarm.add_token()
    assert late.head_height == 1
    asked: list[bytes] = []

    async def serve_old(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        await frames.expect(Hello)
        genesis = encode_genesis(swarm.genesis)
        await frames.send(Challenge(fresh_nonce(), swarm.key.public, genesis, 0, 0, b""))
        asked.append((await frames.expect(Request)).entry)

    async with swarm.listening(serve_old) as address:
        message = await refused(swarm, address, late, Untrusted)
    assert "only 0 of the 1 changes" in message
    assert asked == []


async def test_a_forked_history_is_refused() -> None:
    swarm = Swarm()
    fork = AuthorityState(swarm.genesis)
    token, entry = issue_token(fork.swarm_id, now_of(fork), swarm.admin, uses=1, expires_ms=HOUR_MS)
    fork.apply(entry, 0)
    invited = replace(swarm.token, head_height=1, history=now_of(fork).history)
    async with swarm.listening() as address:
        message = await refused(swarm, address, invited, Untrusted)
    assert "not the one in which the token was made" in message
    assert token.head_height == 0


@pytest.mark.parametrize("role", ["stranger", "evicted"])
async def test_an_impostor_with_the_true_chain_gets_no_request(role: str) -> None:
    """It relays what a true member showed it, but cannot show a member's TLS key."""
    swarm = Swarm()
    if role == "evicted":
        async with swarm.listening() as address:
            await join_swarm([address], swarm.token, OTHER, "gamma")
        swarm.append(
            sign_entry(Evict(OTHER.key_id, fresh_nonce()), swarm.log.swarm_id, swarm.admin)
        )
    received: list[bytes] = []

    async def impersonate(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        hello = await frames.expect(Hello)
        received.append(JOIN.encode(hello))
        height = swarm.log.head[0]
        genesis = encode_genesis(swarm.genesis)
        public = swarm.key.public if role == "stranger" else OTHER.public
        certificate = certificate_of(swarm.log, swarm.key)
        await frames.send(Challenge(fresh_nonce(), public, genesis, 0, height, certificate))
        await frames.send(Records(tuple(swarm.log.dump())))
        received.append((await frames.expect(Request)).entry)

    async with swarm.listening(impersonate, key=OTHER) as address:
        message = await refused(swarm, address, swarm.token, Untrusted)
    assert "not one of a member" in message
    assert len(received) == 1
    assert swarm.token.seed not in received[0]


async def test_a_hello_relayed_by_an_impostor_tells_it_nothing() -> None:
    """The proof names the TLS key that the joiner saw, so a member that it was not made for
    refuses it before it says anything of the swarm."""
    swarm = Swarm()
    answers: list[str] = []
    async with swarm.listening() as member:

        async def relay(stream: trio.SSLStream[trio.abc.Stream]) -> None:
            hello = await Frames(stream).expect(Hello)
            async with calling(member) as frames:
                await frames.send(hello)
                try:
                    await frames.expect(Challenge)
                except SwarmError as error:
                    answers.append(error.code)

        async with swarm.listening(relay, key=OTHER) as address:
            await refused(swarm, address, swarm.token, Unreachable)
    assert answers == ["bad_signature"]


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([Records(())], MalformedMessage, "instead of Challenge"),
        ([Challenge(b"n" * 16, b"p" * 32, b"junk", 0, 1, b"")], MalformedMessage, ""),
        ([Refused("no_quorum", "three \x1b[31m voters are gone")], NoQuorum, "three ?[31m"),
        ([Refused("made_up", "x")], SwarmError.by_code["peer_misbehaved"], "x"),
        ([], Unreachable, "closed the connection"),
    ],
)
async def test_a_server_that_talks_nonsense_is_named(
    messages: list[Any], error: type[SwarmError], words: str
) -> None:
    swarm = Swarm()

    async def babble(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        await frames.expect(Hello)
        for message in messages:
            await frames.send(message)
        await stream.aclose()

    async with swarm.listening(babble) as address:
        assert words in await refused(swarm, address, swarm.token, error)


@pytest.mark.parametrize(
    ("founder", "nonce", "error", "words"),
    [
        ("another", b"n" * 16, Untrusted, "another swarm than the token"),
        ("own", b"short", MalformedMessage, "nonce"),
    ],
)
async def test_a_challenge_of_another_swarm_or_without_a_nonce_is_refused(
    founder: str, nonce: bytes, error: type[SwarmError], words: str
) -> None:
    swarm = Swarm()
    genesis = swarm.genesis if founder == "own" else Swarm().genesis

    async def challenge(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        await frames.expect(Hello)
        shown = encode_genesis(genesis)
        await frames.send(Challenge(nonce, swarm.key.public, shown, 0, 1, swarm.trust.certificate))
        await frames.send(Records(tuple(swarm.log.dump())))
        await frames.expect(Request)

    async with swarm.listening(challenge) as address:
        assert words in await refused(swarm, address, swarm.token, error)


async def test_a_server_without_the_plane_for_joining_is_refused() -> None:
    swarm = Swarm()
    context = server_context(swarm.key, swarm.trust.admissions(), [MESH_ALPN])

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream[trio.abc.Stream](raw, context, server_side=True)
        await stream.do_handshake()
        await trio.sleep_forever()

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        address = listener.socket.getsockname()[:2]
        assert "does not admit" in await refused(swarm, address, swarm.token, Untrusted)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("height", "pages", "error"),
    [
        (1, [()], MalformedMessage),
        (1, [(b"junk",)], Untrusted),
        (1, [(b"junk", b"junk")], MalformedMessage),
        (2**40, [], MalformedMessage),
        (-1, [], Untrusted),
    ],
)
async def test_records_that_do_not_add_up_are_refused(
    height: int, pages: list[tuple[bytes, ...]], error: type[SwarmError]
) -> None:
    swarm = Swarm()

    async def lie(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        await frames.expect(Hello)
        genesis = encode_genesis(swarm.genesis)
        await frames.send(Challenge(fresh_nonce(), swarm.key.public, genesis, 0, height, b""))
        for some in pages:
            await frames.send(Records(some))
        await frames.expect(Request)

    async with swarm.listening(lie) as address:
        await refused(swarm, address, swarm.token, error)


@pytest.mark.parametrize(
    ("epochs", "pages", "error"),
    [(0, [], Untrusted), (1, [()], MalformedMessage), (2**40, [], MalformedMessage)],
)
async def test_an_acceptance_without_an_admission_is_not_believed(
    epochs: int, pages: list[tuple[bytes, ...]], error: type[SwarmError]
) -> None:
    swarm = Swarm()

    async def pretend(stream: trio.SSLStream[trio.abc.Stream]) -> None:
        frames = Frames(stream)
        await frames.expect(Hello)
        genesis = encode_genesis(swarm.genesis)
        certificate = swarm.trust.certificate
        await frames.send(Challenge(fresh_nonce(), swarm.key.public, genesis, 0, 1, certificate))
        await frames.send(Records(tuple(swarm.log.dump())))
        await frames.expect(Request)
        await frames.send(Accepted((), epochs, 1, certificate))
        for some in pages:
            await frames.send(Epochs(some))
        await frames.expect(Request)

    async with swarm.listening(pretend) as address:
        await refused(swarm, address, swarm.token, error)


async def test_no_address_a_closed_port_and_another_service_are_told_apart() -> None:
    swarm = Swarm()
    with pytest.raises(Unreachable, match="--seed"):
        await join_swarm([], swarm.token, NODE, "beta")
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()[:2]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hang_up, [listener])
        assert "no swarmd" in await refused(swarm, address, swarm.token, Unreachable)
        nursery.cancel_scope.cancel()
    assert "cannot connect" in await refused(swarm, address, swarm.token, Unreachable)


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH\r\n")
    await stream.aclose()


async def test_the_error_says_most_of_what_to_do_and_names_every_address() -> None:
    swarm = Swarm(uses=1)
    async with swarm.listening() as address:
        await join_swarm([address], swarm.token, OTHER, "gamma")
        nobody = ("127.0.0.1", 1)
        with pytest.raises(TokenRefused) as caught:
            await join_swarm([nobody, address], swarm.token, NODE, "beta")
    assert caught.value.message.startswith(format_address(address))
    assert "127.0.0.1:1: cannot connect" in caught.value.message
    assert format_address(("::1", 7)) == "[::1]:7"


# ---- joiners that are refused ----------------------------------------------------------


def hello_for(swarm: Swarm, token: Token, key: SigningKey = NODE) -> Hello:
    nonce = fresh_nonce()
    covered = join_module._proof_bytes(
        token.swarm_id, PROTOCOL_VERSION, nonce, key.public, swarm.key.public
    )
    proof = token.key.sign(covered)
    return Hello(PROTOCOL_VERSION, nonce, token.swarm_id, token.token_id, key.public, proof)


def request_for(token: Token, hello: Hello, server_nonce: bytes, key: SigningKey = NODE) -> Request:
    entry = Admit(
        token.token_id, key.public, "beta", key.certificate, token.roles, hello.nonce, server_nonce
    )
    return Request(sign_entry(entry, token.swarm_id, token.key, key))


async def test_a_replayed_request_is_refused() -> None:
    """Goal: what was heard of one join admits nobody on another connection."""
    swarm = Swarm()
    async with swarm.listening() as address:
        hello = hello_for(swarm, swarm.token)
        async with calling(address) as frames:
            await frames.send(hello)
            challenge = await frames.expect(Challenge)
            request = request_for(swarm.token, hello, challenge.nonce)
        async with calling(address) as frames:  # The same bytes, elsewhere.
            await frames.send(hello)
            await frames.expect(Challenge)
            await frames.expect(Records)
            await frames.send(request)
            with pytest.raises(BadSignature, match="another connection"):
                await frames.expect(Accepted)
    assert NODE.key_id not in swarm.log.admissions


async def test_a_request_for_another_key_or_of_another_kind_is_refused() -> None:
    swarm = Swarm()
    policy = Request(sign_entry(Policy(1, fresh_nonce()), swarm.log.swarm_id, swarm.admin))
    async with swarm.listening() as address:
        for kind in ("another key", "another kind"):
            async with calling(address) as frames:
                hello = hello_for(swarm, swarm.token)
                await frames.send(hello)
                nonce = (await frames.expect(Challenge)).nonce
                await frames.expect(Records)
                wrong = request_for(swarm.token, hello, nonce, OTHER)
                await frames.send(wrong if kind == "another key" else policy)
                with pytest.raises(BadSignature):
                    await frames.expect(Accepted)
    assert swarm.log.head[0] == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": PROTOCOL_VERSION - 1}, BadSignature),
        ({"version": PROTOCOL_VERSION + 1}, BadSignature),
        ({"swarm_id": b"x" * 32}, TokenRefused),
        ({"token_id": b"x" * 32}, TokenRefused),
        ({"proof": b"x" * 64}, BadSignature),
        ({"proof": b""}, BadSignature),
        ({"nonce": b"x" * 16}, BadSignature),
        ({"nonce": b"x" * 100}, MalformedMessage),
        ({"node_public": OTHER.public}, BadSignature),
        ({"node_public": b"x" * 100}, MalformedMessage),
    ],
)
async def test_a_stranger_learns_nothing(changes: dict[str, Any], error: type[SwarmError]) -> None:
    """Goal: without the token's key the first answer is the last, and names no member."""
    swarm = Swarm()
    good = hello_for(swarm, swarm.token)
    fields = {name: getattr(good, name) for name in good.__struct_fields__}
    async with swarm.listening() as address, calling(address) as frames:
        await frames.send(Hello(**(fields | changes)))
        with pytest.raises(error):
            await frames.expect(Challenge)
        with pytest.raises(Unreachable):
            await frames.expect(Challenge)


async def test_a_token_known_to_be_expired_opens_nothing() -> None:
    swarm = Swarm(ttl_ms=500)
    swarm.now_ms += 500
    swarm.add_token()
    async with swarm.listening() as address, calling(address) as frames:
        await frames.send(hello_for(swarm, swarm.token))
        with pytest.raises(TokenRefused, match="expired"):
            await frames.expect(Challenge)


def test_pages_keep_order_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.mesh.history.PAGE_BYTES_MAX", 100)
    parts = [b"a" * 40, b"b" * 40, b"c" * 40, b"d" * 300, b"e"]
    assert list(history_module._paged(parts)) == [
        (b"a" * 40, b"b" * 40),
        (b"c" * 40,),
        (b"d" * 300,),
        (b"e",),
    ]
    assert list(history_module._paged([])) == []


@pytest.mark.parametrize("junk", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x03abc"])
async def test_junk_is_refused_and_serving_goes_on(junk: bytes) -> None:
    swarm = Swarm()
    async with swarm.listening() as address:
        async with calling(address) as frames:
            await frames._stream.send_all(junk)
            with pytest.raises(MalformedMessage):
                await frames.expect(Challenge)
        await join_swarm([address], swarm.token, NODE, "beta")


@pytest.mark.parametrize("claimed", [1_025, 1 << 19, 1 << 31])
async def test_a_stranger_cannot_make_a_member_keep_much(claimed: int) -> None:
    """The length alone is refused; not a byte of the body is waited for."""
    swarm = Swarm()
    async with swarm.listening() as address, calling(address) as frames:
        await frames._stream.send_all(claimed.to_bytes(4, "big"))
        with trio.fail_after(3), pytest.raises(MalformedMessage, match="frame of"):
            await frames.expect(Challenge)


async def test_a_silent_joiner_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = Swarm()
    async with swarm.listening() as address, calling(address) as frames:
        monkeypatch.setattr(
            join_module.Frames.expect, "__kwdefaults__", {"timeout_s": 0.1, "bytes_max": 1_024}
        )
        with pytest.raises(TimedOut):
            await frames.expect(Challenge, timeout_s=10)


async def test_a_log_that_cannot_decide_is_reported_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swarm = Swarm()

    async def no_quorum(entry: bytes) -> list[bytes]:
        raise NoQuorum("2 of 3 voters are gone")

    swarm.admit = no_quorum  # type: ignore[method-assign]
    async with swarm.listening() as address:
        assert "2 of 3 voters" in await refused(swarm, address, swarm.token, NoQuorum)
        monkeypatch.setattr(join_module, "ADMIT_TIMEOUT_S", 0.1)

        async def hang(entry: bytes) -> list[bytes]:
            await trio.sleep_forever()
            raise AssertionError

        swarm.admit = hang  # type: ignore[method-assign]
        assert "ask again" in await refused(swarm, address, swarm.token, Unavailable)
