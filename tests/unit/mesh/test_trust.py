"""Trust: what is written, what is refused, and that everybody ends up with one chain."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from certifying import certificate_of, certified, let_count, now_of, seal
from founding import ADMIN, lab

from swarmd.base.errors import (
    Conflict,
    CorruptFile,
    DiskFault,
    NotFound,
    SwarmError,
    TokenRefused,
    Untrusted,
)
from swarmd.base.ids import NodeId
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import (
    Admit,
    Evict,
    Policy,
    Record,
    decode_record,
    encode_record,
    fresh_nonce,
    issue_token,
    sign_entry,
)
from swarmd.identity.epochs import Chain
from swarmd.identity.genesis import init_swarm
from swarmd.identity.heads import UnknownEpoch
from swarmd.identity.keys import SigningKey
from swarmd.mesh import trust as trust_module
from swarmd.mesh import trust_spread
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.mesh.trust import FILE_NAME, Trust, has_trust, open_trust
from swarmd.mesh.trust_spread import TRUST, Ask, Records, page, serve_trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World

KEYS = [SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 8)]
GENESIS = lab(KEYS[0], "n0")
SWARM = GENESIS.swarm_id


def chain(nodes: int = 3) -> AuthorityState:
    """A log with a token and `nodes` nodes admitted after the first."""
    state = AuthorityState(GENESIS)
    token, entry = issue_token(SWARM, now_of(state), ADMIN, uses=10, expires_ms=10_000)
    state.apply(entry, 1_000)
    for number, key in enumerate(KEYS[1 : nodes + 1], start=1):
        admit = Admit(
            token.token_id, key.public, f"n{number}", key.certificate, token.roles,
            b"j" * 16, b"s" * 16,
        )  # fmt: skip
        state.apply(sign_entry(admit, SWARM, token.key, key), 2_000)
    return state


def policy(state: AuthorityState, version: int) -> bytes:
    """Append an entry; the record's bytes."""
    entry = sign_entry(Policy(version, fresh_nonce()), SWARM, ADMIN)
    return encode_record(state.apply(entry, state.store_time_ms + 1))


def new_disk() -> SimDisk:
    return SimDisk(World(1), "trust")


CHAIN = chain()
WHOLE = certificate_of(CHAIN, KEYS[0])


def part(height: int) -> AuthorityState:
    return AuthorityState.load(GENESIS, CHAIN.dump()[:height])


def test_nothing_stored_and_no_genesis_says_how_to_begin() -> None:
    disk = new_disk()
    assert not has_trust(disk)
    with pytest.raises(NotFound, match=r"--init or --join"):
        open_trust(disk)
    assert disk.names() == []


def test_what_was_learned_is_there_after_a_restart() -> None:
    disk = new_disk()
    trust = open_trust(disk, GENESIS)
    assert has_trust(disk)
    assert let_count(trust, CHAIN.dump(), KEYS[0]) == 4
    assert trust.version == 2
    again = open_trust(disk)
    assert again.certificate == trust.certificate
    assert (again.head, again.swarm_id) == (CHAIN.head, SWARM)
    assert again.records_from(0) == CHAIN.dump()
    assert [x.name for x in again.admissions()] == ["n0", "n1", "n2", "n3"]
    assert again.hash_at(4) == CHAIN.head[1]
    assert open_trust(disk, GENESIS).head == CHAIN.head


def test_another_swarms_folder_is_refused_and_stays_as_it_was() -> None:
    disk = new_disk()
    open_trust(disk, GENESIS, CHAIN.dump())
    before = disk.read(FILE_NAME)
    with pytest.raises(Conflict, match="belongs to the swarm lab"):
        open_trust(disk, init_swarm("office")[0])
    assert disk.read(FILE_NAME) == before


@pytest.mark.parametrize("position", [0, 4, 60, 200, -1])
def test_a_damaged_file_is_refused(position: int) -> None:
    disk = new_disk()
    open_trust(disk, GENESIS, CHAIN.dump())
    raw = bytearray(disk.read(FILE_NAME) or b"")
    raw[position] ^= 1
    disk.replace(FILE_NAME, bytes(raw))
    with pytest.raises(CorruptFile):
        open_trust(disk)


def test_a_whole_file_with_a_chain_that_does_not_verify_is_refused() -> None:
    disk = new_disk()
    state = chain()
    state._records.pop(1)
    trust_module._write(disk, state, 1, b"")
    with pytest.raises(CorruptFile, match="does not verify"):
        open_trust(disk)


def test_learning_skips_what_is_held_and_refuses_gaps_and_forks() -> None:
    disk = new_disk()
    trust = certified(disk, part(2), KEYS[0])
    assert trust.learn(CHAIN.dump()[:2], trust.certificate) == 0
    assert trust.version == 1
    with pytest.raises(Untrusted, match="does not follow"):
        trust.learn(CHAIN.dump()[3:], WHOLE)
    other = part(1)
    record = policy(other, 1)
    with pytest.raises(Untrusted, match="two different"):
        trust.learn([record], certificate_of(other, KEYS[0]))
    assert trust.learn(CHAIN.dump()[1:], WHOLE) == 2
    assert trust.head == CHAIN.head


def test_one_bad_record_and_none_of_them_counts() -> None:
    disk = new_disk()
    trust = open_trust(disk, GENESIS)
    before = disk.read(FILE_NAME)
    last = decode_record(CHAIN.dump()[-1])
    late = Record(last.height, last.previous_hash, 10_000, last.entry)
    with pytest.raises(TokenRefused):
        trust.note([*CHAIN.dump()[:-1], encode_record(late)])
    assert (trust.noted, trust.head, trust.version) == ((0, SWARM), (0, SWARM), 1)
    assert disk.read(FILE_NAME) == before


def test_what_could_not_be_written_does_not_count() -> None:
    disk = new_disk()
    trust = open_trust(disk, GENESIS)
    disk.full = True
    trust.epochs = Chain(GENESIS)
    with pytest.raises(DiskFault):
        trust.note(CHAIN.dump())
    with pytest.raises(DiskFault):
        trust.learn(CHAIN.dump(), WHOLE)
    assert (trust.noted[0], trust.head[0], trust.version) == (0, 0, 1)
    disk.full = False
    assert trust.learn(CHAIN.dump(), WHOLE) == 4


def test_an_evicted_node_has_no_admission_and_no_key() -> None:
    state = chain()
    evicted = KEYS[1].key_id
    entry = sign_entry(Evict(evicted, fresh_nonce()), SWARM, ADMIN)
    state.apply(entry, 3_000)
    trust = open_trust(new_disk(), GENESIS, state.dump())
    assert trust.admission(evicted) is None
    assert bytes(evicted) not in trust.signing_keys
    assert evicted not in [x.node_id for x in trust.admissions()]
    assert trust.admissions_by_id()[evicted].evicted
    assert trust.signing_keys[bytes(KEYS[2].key_id)] == KEYS[2].public


def test_a_request_can_be_checked_without_changing_anything() -> None:
    trust = open_trust(new_disk(), GENESIS, CHAIN.dump())
    with pytest.raises(SwarmError):
        trust.check(b"junk")
    trust.check(sign_entry(Policy(1, fresh_nonce()), SWARM, ADMIN))
    assert (trust.head, trust.min_version) == (CHAIN.head, 0)


def test_pages_are_bounded_whatever_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = certified(new_disk(), CHAIN, KEYS[0])
    assert page(trust, 1) == Records(2, 4, tuple(CHAIN.dump()[1:]), WHOLE)
    for height in (4, 5, 2**64 - 1):
        assert TRUST.decode(TRUST.encode(page(trust, height))).records == ()
    assert page(trust, -(2**63)).first == 1
    monkeypatch.setattr(trust_spread, "PAGE_BYTES_MAX", 1)
    assert len(page(trust, 0).records) == 1  # Always one: or nobody would get on.


# ---- over a link -----------------------------------------------------------------------


class Everybody:
    """A membership that thinks a fixed list alive."""

    def __init__(self, *nodes: NodeId) -> None:
        self.nodes = list(nodes)

    def alive(self) -> list[NodeId]:
        return self.nodes


class Swarm:
    """Nodes with a trust each on one memory network."""

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork) -> None:
        self._nursery = nursery
        self._network = network
        self.ids = [key.key_id for key in KEYS]
        self.trusts: list[Trust] = []

    async def add(self, state: AuthorityState | None = None) -> Trust:
        trust = certified(new_disk(), state or AuthorityState(GENESIS), KEYS[0])
        link = self._network.link(self.ids[len(self.trusts)])
        self.trusts.append(trust)
        self._nursery.start_soon(serve_trust, trust, link, Everybody(*self.ids))
        await trio.testing.wait_all_tasks_blocked()
        return trust


async def test_news_from_the_own_store_reaches_everybody_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    state = CHAIN.copy()
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        swarm = Swarm(nursery, network)
        for _ in KEYS:
            await swarm.add(CHAIN)
        await trio.sleep(0.1)
        let_count(swarm.trusts[2], [policy(state, 1)], KEYS[0])
        await trio.testing.wait_all_tasks_blocked()
        assert [trust.head for trust in swarm.trusts] == [state.head] * len(KEYS)
        nursery.cancel_scope.cancel()


async def test_one_who_missed_everything_catches_up_by_asking(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_spread, "PAGE_RECORDS_MAX", 2)
    state = chain(6)
    for version in range(1, 10):
        policy(state, version)
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        swarm = Swarm(nursery, network)
        await swarm.add(state)
        late = await swarm.add()
        with trio.fail_after(60):
            while late.head != state.head:
                await late.changed(late.version)
        nursery.cancel_scope.cancel()


async def test_a_cut_off_node_learns_at_healing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    state = CHAIN.copy()
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        swarm = Swarm(nursery, network)
        for _ in range(3):
            await swarm.add(CHAIN)
        network.cut(swarm.ids[0], swarm.ids[1:3])
        let_count(swarm.trusts[1], [policy(state, 1)], KEYS[0])
        await trio.sleep(30)
        assert swarm.trusts[0].head == CHAIN.head
        network.heal()
        await trio.sleep(30)
        assert swarm.trusts[0].head == state.head
        nursery.cancel_scope.cancel()


async def test_who_asks_from_ahead_is_asked_back(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asker is ahead and is never asked by chance: only its claim can tell."""
    monkeypatch.setattr(trust_spread, "ASK_INTERVAL_S", 1_000.0)
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        swarm = Swarm(nursery, network)
        behind = await swarm.add()
        await trio.sleep(1)  # Its one random question was asked in vain.
        ahead = network.link(swarm.ids[1])
        served = certified(new_disk(), CHAIN, KEYS[0])
        inbox = ahead.open_inbox(TRUST)
        answer = await ahead.request(TRUST, swarm.ids[0], Ask(4), timeout_s=1)
        assert answer == Records(1, 0, (), b"")
        with trio.fail_after(10):
            inbound = await inbox.receive()
            await inbound.answer(page(served, inbound.message.height))
            while behind.head != CHAIN.head:
                await behind.changed(behind.version)
        nursery.cancel_scope.cancel()


async def test_a_lying_member_changes_nothing_and_stops_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fork = AuthorityState.load(GENESIS, CHAIN.dump()[:3])
    forged = policy(fork, 9)
    unsigned = Record(5, CHAIN.head[1], 3_000, sign_entry(Policy(9, b"n" * 16), SWARM, KEYS[1]))
    missing = sign_entry(Evict(b"?" * 32, b"n" * 16), SWARM, ADMIN)
    baseless = Record(5, CHAIN.head[1], 3_000, missing)
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        swarm = Swarm(nursery, network)
        honest = await swarm.add(CHAIN)
        liar = network.link(swarm.ids[1])
        for records in (
            (b"junk",),
            (forged,),
            (encode_record(unsigned),),
            (encode_record(baseless),),
            (CHAIN.dump()[0],) * 300,
        ):
            liar.send_nowait(TRUST, swarm.ids[0], Records(1, len(records), records, WHOLE))
            await trio.testing.wait_all_tasks_blocked()
        assert (honest.head, honest.version) == (CHAIN.head, 1)
        state = CHAIN.copy()
        good = (policy(state, 1),)
        for signers in (KEYS[1:2], KEYS[6:7]):
            forged_head = certificate_of(state, *signers)
            liar.send_nowait(TRUST, swarm.ids[0], Records(5, 5, good, forged_head))
            await trio.testing.wait_all_tasks_blocked()
        assert honest.head == CHAIN.head
        certificate = certificate_of(state, KEYS[0])
        liar.send_nowait(TRUST, swarm.ids[0], Records(5, 5, good, certificate))
        await trio.testing.wait_all_tasks_blocked()
        assert honest.head == state.head
        nursery.cancel_scope.cancel()


class Bystanders:
    """One node that serves, and others that only keep what they are sent."""

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork, count: int) -> None:
        self.me, *self.others = [key.key_id for key in KEYS[: count + 1]]
        self.trust = certified(new_disk(), part(2), KEYS[0])
        self.links = [network.link(node_id) for node_id in self.others]
        self.inboxes = [link.open_inbox(TRUST) for link in self.links]
        alive = Everybody(self.me, *self.others)
        nursery.start_soon(serve_trust, self.trust, network.link(self.me), alive)

    async def heard(self) -> list[list[object]]:
        """What each bystander received since it was last asked."""
        await trio.testing.wait_all_tasks_blocked()
        heard: list[list[object]] = []
        for inbox in self.inboxes:
            heard.append([])
            while inbox.statistics().current_buffer_used:
                heard[-1].append(inbox.receive_nowait().message)
        return heard


async def test_own_news_goes_to_all_and_news_of_peers_to_a_few(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        crowd = Bystanders(nursery, network, 6)
        await crowd.heard()
        crowd.trust.learn(CHAIN.dump()[2:3], certificate_of(part(3), KEYS[0]))
        push = Records(3, 3, tuple(CHAIN.dump()[2:3]), crowd.trust.certificate)
        assert [x.count(push) for x in await crowd.heard()] == [1] * 6
        crowd.trust.learn(CHAIN.dump()[3:], WHOLE, from_peer=True)
        push = Records(4, 4, tuple(CHAIN.dump()[3:]), WHOLE)
        assert sum(x.count(push) for x in await crowd.heard()) == 3
        nursery.cancel_scope.cancel()


async def test_who_claims_to_be_ahead_is_asked_at_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_spread, "ASK_INTERVAL_S", 1_000.0)
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        crowd = Bystanders(nursery, network, 1)
        await trio.sleep(3 * trust_spread.ASK_TIMEOUT_S + 1)  # Its one random question: in vain.
        assert await crowd.heard() == [[Ask(2)] * 3]
        crowd.links[0].send_nowait(TRUST, crowd.me, Records(4, 4, tuple(CHAIN.dump()[3:]), WHOLE))
        assert await crowd.heard() == [[Ask(2)]]
        nursery.cancel_scope.cancel()


async def test_an_answer_of_the_wrong_kind_and_a_page_too_long_are_dropped(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        crowd = Bystanders(nursery, network, 1)
        inbound = await crowd.inboxes[0].receive()
        await inbound.answer(Ask(1))
        await crowd.heard()
        monkeypatch.setattr(trust_spread, "PAGE_RECORDS_MAX", 1)
        await trio.sleep(10)
        inbound = await crowd.inboxes[0].receive()
        await inbound.answer(Records(3, 4, tuple(CHAIN.dump()[2:]), WHOLE))
        await trio.testing.wait_all_tasks_blocked()
        assert crowd.trust.head[0] == 2
        nursery.cancel_scope.cancel()


# ---- histories that differ -------------------------------------------------------------


def other_history() -> AuthorityState:
    """One that leaves `CHAIN` after its second record, and is longer."""
    state = part(2)
    for version in range(1, 4):
        policy(state, version)
    return state


def test_what_the_newest_epoch_certifies_takes_the_place_of_what_earlier_ones_did() -> None:
    """After a recovery, or where voters who had been replaced lied to a node that slept."""
    disk, other = new_disk(), other_history()
    trust = certified(disk, CHAIN, KEYS[0])
    assert trust.epochs is not None
    with pytest.raises(Untrusted, match="two histories"):
        trust.adopt(other, certificate_of(other, KEYS[0]))
    seal(trust.epochs, KEYS[:1], KEYS[:1])
    certificate = certificate_of(other, KEYS[0], chain=trust.epochs)
    trust.adopt(other, certificate)
    assert (trust.head, trust.noted, trust.min_version) == (other.head, other.head, 3)
    again = open_trust(disk)
    assert (again.head, again.certificate) == (other.head, certificate)
    shorter = part(1)
    seal(trust.epochs, KEYS[:1], KEYS[:1])
    trust.adopt(shorter, certificate_of(shorter, KEYS[0], chain=trust.epochs))
    assert trust.head == shorter.head


def test_what_was_noted_and_never_counted_gives_way() -> None:
    trust = certified(new_disk(), part(2), KEYS[0])
    trust.note(CHAIN.dump())
    assert (trust.noted[0], trust.head[0]) == (4, 2)
    other = other_history()
    with pytest.raises(Untrusted, match="two different"):
        trust.learn(other.dump(), certificate_of(other, KEYS[0]))
    trust.adopt(other, certificate_of(other, KEYS[0]))
    assert trust.head == trust.noted == other.head


def test_an_epoch_that_is_not_known_is_waited_for_and_no_older_one_is_believed() -> None:
    trust = certified(new_disk(), CHAIN, KEYS[0])
    known = trust.epochs
    assert known is not None
    state = CHAIN.copy()
    record = policy(state, 1)
    old = certificate_of(state, KEYS[0])
    seal(known, KEYS[:1], KEYS[1:4])
    head = certificate_of(CHAIN, *KEYS[1:3], chain=known)
    trust.adopt(CHAIN, head)
    trust.epochs = Chain(GENESIS)  # As after a crash before the epochs were written.
    with pytest.raises(UnknownEpoch):
        trust.learn([record], old)
    trust.epochs = known
    with pytest.raises(Untrusted, match="ended"):
        trust.learn([record], old)
    assert trust.learn([record], certificate_of(state, *KEYS[2:4], chain=known)) == 1


async def test_a_node_in_another_history_learns_the_whole_of_the_true_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    other = other_history()
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        swarm = Swarm(nursery, network)
        lied_to = await swarm.add(CHAIN)
        honest = await swarm.add(other)
        for trust in (lied_to, honest):
            assert trust.epochs is not None
            seal(trust.epochs, KEYS[:1], KEYS[:1])
        honest.learn((), certificate_of(other, KEYS[0], chain=honest.epochs))
        with trio.fail_after(60):
            while lied_to.head != other.head:
                await lied_to.changed(lied_to.version)
        nursery.cancel_scope.cancel()


async def test_a_member_that_takes_for_ever_keeps_nobody_from_asking_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It answers each question in the last moment, and never shows all that it claims."""
    async with MemoryNetwork().running() as network, trio.open_nursery() as nursery:
        swarm = Swarm(nursery, network)
        victim = await swarm.add(part(2))
        await swarm.add(CHAIN)
        liar = network.link(swarm.ids[2])
        inbox = liar.open_inbox(TRUST)

        async def dawdle() -> None:
            async for inbound in inbox:
                if isinstance(inbound.message, Ask):
                    await trio.sleep(trust_spread.ASK_TIMEOUT_S - 0.1)
                    await inbound.answer(Records(inbound.message.height + 1, 4, (), WHOLE))

        nursery.start_soon(dawdle)
        liar.send_nowait(TRUST, swarm.ids[0], Records(5, 5, (), WHOLE + b"x"))
        with trio.fail_after(60):
            while victim.head != CHAIN.head:
                await victim.changed(victim.version)
        nursery.cancel_scope.cancel()
