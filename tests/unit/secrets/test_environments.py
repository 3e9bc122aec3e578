"""Agents' environments over real stores: sealed in records, and opened for who runs them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import structs
from secrets_swarm import SecretSwarm, secret_swarm, until

from swarmd.agents import deploying
from swarmd.agents.deploying import AgentRecords
from swarmd.agents.environment import Environment
from swarmd.agents.messages import EnvironmentAsk, EnvironmentIs, RecordAsk, Recorded
from swarmd.agents.opening import Environments
from swarmd.agents.records import AGENT_PREFIX, AgentRecord, decode_agent, sealed_agents
from swarmd.agents.spec import AgentSpec
from swarmd.base.errors import (
    BadRequest,
    Forbidden,
    NotFound,
    SecretUnreadable,
    TooLarge,
    Unavailable,
    VersionExists,
)
from swarmd.base.ids import short
from swarmd.state.blobs.messages import BlobRef
from swarmd.wire.codec import encode_struct

REF = BlobRef(b"b" * 32, 1)
SPEC = AgentSpec(
    name="reader",
    version="1",
    entry="reader:run",
    env={"PASSWORD": "secret:db", "MODE": "a plain value", "AGAIN": "secret:db"},
)


def records_at(swarm: SecretSwarm, index: int) -> AgentRecords:
    node = swarm.swarm.nodes[index]
    return AgentRecords(swarm.swarm.store(index), node.link, swarm.at(index))


async def opened_at(swarm: SecretSwarm, index: int, record: AgentRecord) -> Any:
    environments = Environments(swarm.at(index), swarm.swarm.nodes[index].link)
    return await environments.open(record.name, record.environment)


async def test_a_record_holds_no_value_and_is_opened(autojump_clock: object) -> None:
    async with secret_swarm(0, 1, 2) as swarm:
        await swarm.at(0).set("db", "the password", "ann")
        record, fresh = await records_at(swarm, 0).write(SPEC, REF, replace=False)
        assert fresh
        [stored] = await swarm.swarm.store(0).range(AGENT_PREFIX)
        assert b"plain value" not in stored.value
        assert b"the password" not in stored.value
        assert record.spec.env == {}
        assert record.environment.shown() == {
            "AGAIN": "secret:db",
            "MODE": "(hidden)",
            "PASSWORD": "secret:db",
        }
        opened = await opened_at(swarm, 2, record)
        assert dict(opened.variables) == {
            "AGAIN": "the password",
            "MODE": "a plain value",
            "PASSWORD": "the password",
        }
        assert opened.secrets == (("db", "the password"),)
        assert set(opened.revisions) == {"db"}
        assert "password" not in repr(opened).replace("PASSWORD", "")


async def test_the_same_again_is_the_same_on_every_node(autojump_clock: object) -> None:
    async with secret_swarm(0, 1, 2) as swarm:
        await swarm.at(0).set("db", "the password", "ann")
        first, _ = await records_at(swarm, 0).write(SPEC, REF, replace=False)
        assert await records_at(swarm, 1).write(SPEC, REF, replace=False) == (first, False)
        for env in ({}, {**SPEC.env, "MODE": "other"}, {**SPEC.env, "MODE": "secret:db"}):
            with pytest.raises(VersionExists):
                await records_at(swarm, 2).write(structs.replace(SPEC, env=env), REF, replace=False)
        other = structs.replace(SPEC, env={**SPEC.env, "MODE": "other"})
        record, fresh = await records_at(swarm, 2).write(other, REF, replace=True)
        assert fresh
        assert dict((await opened_at(swarm, 0, record)).variables)["MODE"] == "other"


async def test_what_refers_to_no_secret_is_not_deployed(autojump_clock: object) -> None:
    async with secret_swarm(0) as swarm:
        with pytest.raises(NotFound, match="swarmctl secret set db"):
            await records_at(swarm, 0).write(SPEC, REF, replace=False)
        assert await swarm.swarm.store(0).range(AGENT_PREFIX) == []


async def test_a_secret_cannot_go_while_an_agent_is_deployed_with_it(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is deleted between the look at it and the write of the record: that is not written."""
    async with secret_swarm(0) as swarm:
        await swarm.at(0).set("db", "the password", "ann")
        records, store = records_at(swarm, 0), swarm.swarm.store(0)
        propose = store.propose

        async def delete_first(ops: Any, **more: Any) -> Any:
            monkeypatch.setattr(store, "propose", propose)

            async def nobody() -> list[str]:
                return []

            await swarm.at(0).delete("db", "bob", nobody)
            return await propose(ops, **more)

        monkeypatch.setattr(store, "propose", delete_first)
        with pytest.raises(NotFound):
            await records.write(SPEC, REF, replace=False)
        assert await store.range(AGENT_PREFIX) == []


async def test_only_who_works_is_given_what_an_agent_refers_to(autojump_clock: object) -> None:
    async with secret_swarm(0, 1, 2, 3) as swarm:
        await swarm.at(0).set("db", "the password", "ann")
        await swarm.at(0).set("other", "of somebody else", "ann")
        record, _ = await records_at(swarm, 0).write(SPEC, REF, replace=False)
        idle = next(i for i in swarm.up if swarm.swarm.id(i) not in swarm.swarm.store(0).voters)
        holder = next(i for i in swarm.up if i != idle)
        peer, at = swarm.swarm.id(idle), records_at(swarm, holder)

        def ask(environment: Environment, agent: str = "reader") -> EnvironmentAsk:
            return EnvironmentAsk(agent, msgspec.msgpack.encode(environment))

        swarm.set_roles(idle, "worker")
        answer = await at.answer(peer, ask(record.environment))
        assert isinstance(answer, EnvironmentIs)
        assert answer.plain == {"MODE": "a plain value"}
        assert answer.secrets == {"db": "the password"}
        greedy = structs.replace(record.environment, references=(("X", "other"),))
        with pytest.raises(Forbidden, match="does not refer"):
            await at.answer(peer, ask(greedy))
        with pytest.raises(NotFound):
            await at.answer(peer, ask(record.environment, "nobody"))
        await records_at(swarm, holder).write(
            AgentSpec(name="thief", version="1", entry="thief:run", env={"A": "b"}),
            REF,
            replace=False,
        )
        moved = structs.replace(record.environment, references=())
        with pytest.raises(SecretUnreadable, match="sealed as something else"):
            await at.answer(peer, ask(moved, "thief"))
        with pytest.raises(Unavailable, match="holds no keys"):
            await records_at(swarm, idle).answer(peer, ask(record.environment))
        swarm.set_roles(idle, "observer")
        with pytest.raises(Forbidden, match="members that work"):
            await at.answer(peer, ask(record.environment))
        swarm.evict(idle)
        with pytest.raises(Forbidden):
            await at.answer(peer, ask(record.environment))


async def test_an_eviction_seals_environments_anew_too(autojump_clock: object) -> None:
    async with secret_swarm(0, 1, 2, 3) as swarm:
        for index in swarm.up:
            swarm.at(index).also_seals(sealed_agents(swarm.at(index).swarm_id))
        await swarm.at(0).set("db", "the password", "ann")
        record, _ = await records_at(swarm, 0).write(SPEC, REF, replace=False)
        gone = next(i for i in swarm.up if swarm.swarm.id(i) not in swarm.swarm.store(0).voters)
        await swarm.crash(gone)
        swarm.evict(gone)
        other = swarm.up[0]
        state = swarm.swarm.store(other).local
        assert state is not None
        assert record.environment.box is not None
        before = record.environment.box.key

        def now() -> AgentRecord:
            [entry] = state.range(AGENT_PREFIX, b"", 10)
            return msgspec.msgpack.decode(entry.value, type=AgentRecord)

        await until(lambda: now().environment.box.key != before)  # type: ignore[union-attr]
        # What was sealed before is on its way to workers, and opens still.
        for sealed in (record, now()):
            assert dict((await opened_at(swarm, other, sealed)).variables)["AGAIN"] == (
                "the password"
            )
        assert await records_at(swarm, other).write(SPEC, REF, replace=False) == (now(), False)


async def test_an_environment_has_a_bound_with_its_secrets(autojump_clock: object) -> None:
    async with secret_swarm(0) as swarm:
        await swarm.at(0).set("big", "x" * 32_768, "ann")
        env = {f"V{number}": "secret:big" for number in range(9)}
        spec = structs.replace(SPEC, env=env)
        record, _ = await records_at(swarm, 0).write(spec, REF, replace=False)
        with pytest.raises(TooLarge, match="at most 262144"):
            await opened_at(swarm, 0, record)
        broken = structs.replace(record.environment, references=(("A", "a/b"),))
        with pytest.raises(BadRequest):
            await opened_at(swarm, 0, structs.replace(record, environment=broken))


async def test_plain_values_have_the_same_bound_and_what_is_written_can_be_read(
    autojump_clock: object,
) -> None:
    async with secret_swarm(0) as swarm:
        records = records_at(swarm, 0)
        most = "\U0001f511" * 1_023 + "x"  # Of 64 variables with such names: just 256 KiB.
        full = structs.replace(SPEC, env={f"V{number:02}": most for number in range(64)})
        record, _ = await records.write(full, REF, replace=False)
        assert set(dict((await opened_at(swarm, 0, record)).variables).values()) == {most}
        over = structs.replace(full, env={**full.env, "V63": most + "x"})
        with pytest.raises(TooLarge, match="at most 262144"):
            await records.write(over, REF, replace=True)
        [stored] = await swarm.swarm.store(0).range(AGENT_PREFIX)
        assert decode_agent(stored.value) == record


async def test_what_is_done_for_a_member_without_keys_is_logged(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked, for which agent and which secrets; and no value."""
    told: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(deploying._log, "info", lambda said, **more: told.append((said, more)))
    async with secret_swarm(0, 1, 2, 3) as swarm:
        await swarm.at(0).set("db", "the password", "ann")
        idle = next(i for i in swarm.up if swarm.swarm.id(i) not in swarm.swarm.store(0).voters)
        at, peer = records_at(swarm, next(i for i in swarm.up if i != idle)), swarm.swarm.id(idle)
        swarm.set_roles(idle, "worker")
        answer = await at.answer(peer, RecordAsk(encode_struct(SPEC), REF, False))
        assert isinstance(answer, Recorded)
        environment = msgspec.msgpack.encode(decode_agent(answer.record).environment)
        await at.answer(peer, EnvironmentAsk("reader", environment))
        about = {"agent": "reader", "peer": short(peer), "secrets": "db"}
        assert told == [("an agent was deployed", about), ("an environment was opened", about)]


class Noted:
    def __init__(self) -> None:
        self.found: list[tuple[str, ...]] = []

    def note(
        self, kind: str, actor: str = "", subject: str = "", outcome: str = "ok", details: str = ""
    ) -> None:
        self.found.append((kind, actor, subject, outcome, details))


async def test_who_read_which_secret_is_noted_and_how_it_ended(autojump_clock: object) -> None:
    async with secret_swarm(0, 1, 2) as swarm:
        await swarm.at(0).set("db", "the password", "ann")
        record, _ = await records_at(swarm, 0).write(SPEC, REF, replace=False)
        noted, node = Noted(), swarm.swarm.nodes[1]
        environments = Environments(swarm.at(1), node.link, noted)
        await environments.open("reader", record.environment)
        assert noted.found == [("secret.read", "reader", "db", "ok", "")]
        gone = Environment((("PASSWORD", "gone"),))
        with pytest.raises(NotFound):
            await environments.open("reader", gone)
        assert noted.found[1:] == [("secret.read", "reader", "gone", "not_found", "")]
        # For another member it is noted where it was opened.
        records = AgentRecords(swarm.swarm.store(0), swarm.swarm.nodes[0].link, swarm.at(0), noted)
        noted.found.clear()
        ask = EnvironmentAsk("reader", msgspec.msgpack.encode(record.environment))
        peer = swarm.swarm.nodes[1].node_id
        await records.answer(peer, ask)
        assert noted.found == [("secret.read", "reader", "db", "ok", f"for {short(peer)}")]
        assert "password" not in str(noted.found)
