"""The bus between real daemons: by the CLI, by agents, through the death of a daemon."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until

from swarmd.base.errors import SwarmError
from swarmd.client import Client, TaskInput
from swarmd.gateway.shapes_bus import BusMessage

AGENT = """
name = "talker"
version = "1"
entry = "talker:run"
concurrency = 8
[bus]
publish = ["said/*", "@*"]
subscribe = ["heard/*"]
"""
CODE = """
def run(value, context):
    return globals()[value["do"]](value, context)

def say(value, context):
    with context.bus.mailbox() as messages:
        context.bus.publish("said/held", "with the result")
        context.bus.publish("said/now", context.bus.address, immediate=True)
        asked = next(iter(messages))
        if asked.data == "fail":
            raise RuntimeError("as it was told to")
    return asked.data

def forbidden(value, context):
    context.bus.publish("other", immediate=True)
"""


class Watch:
    """`swarmctl bus watch TOPIC... --json` in the background."""

    def __init__(self, daemon: Daemon, *topics: str) -> None:
        command = [str(BIN / "swarmctl"), "--socket", str(daemon.socket), "bus", "watch", "--json"]
        self.process = subprocess.Popen(
            [*command, *topics], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def take(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(10)


class Listener:
    """A watch by the client, read in a thread, so that a test that waits in vain ends."""

    def __init__(self, daemon: Daemon, *topics: str) -> None:
        self._came: SimpleQueue[BusMessage] = SimpleQueue()
        Thread(target=self._read, args=(daemon, topics), daemon=True).start()
        assert self.take().topics == list(topics)

    def _read(self, daemon: Daemon, topics: tuple[str, ...]) -> None:
        with suppress(SwarmError):
            for one in Client(str(daemon.socket)).bus_watch(topics):
                self._came.put(one)

    def take(self) -> BusMessage:
        return self._came.get(timeout=30)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    root = tmp_path_factory.mktemp("bus")
    with LocalSwarm(root, 3) as one:
        one.form()
        code = root / "code"
        code.mkdir()
        (code / "talker.toml").write_text(AGENT)
        (code / "talker.py").write_text(CODE)
        done = one[0].ctl("agent", "deploy", str(code / "talker.toml"))
        assert done.returncode == 0, done.stderr
        yield one


def until_reached(daemon: Daemon, topic: str, count: int) -> None:
    def reached() -> bool:
        return Client(str(daemon.socket)).bus_publish(topic, "probe") >= count

    wait_until(f"{count} subscribers of {topic}", reached)


def test_what_is_published_on_one_node_is_seen_on_the_others(swarm: LocalSwarm) -> None:
    a, b, c = swarm.daemons
    done = a.ctl("bus", "publish", "news/one", "nobody hears")
    assert (done.returncode, done.stdout.strip()) == (1, "0 subscribers reached")
    watches = [Watch(b, "news/*"), Watch(c, "news/one", "@carol")]
    try:
        until_reached(a, "news/one", 2)
        for watch in watches:
            while watch.take()["topic"] != "news/one":
                pass
        done = a.ctl("bus", "publish", "news/two", "hello")
        assert (done.returncode, done.stdout.strip()) == (0, "1 subscriber reached")
        done = a.ctl("bus", "publish", "@carol", "--input", '{"a": [1]}', "--from", "@alice")
        assert done.returncode == 0, done.stderr
        assert a.json("bus", "publish", "*", "all")["reached"] == 2

        def after_probes(watch: Watch) -> Any:
            while (one := watch.take())["data"] == "probe":
                pass
            return one

        assert after_probes(watches[0]) == {"topic": "news/two", "data": "hello"}
        direct = {"topic": "@carol", "data": {"a": [1]}, "sender": "@alice"}
        assert after_probes(watches[1]) == direct
        assert watches[0].take() == watches[1].take() == {"topic": "*", "data": "all"}
    finally:
        codes = [watch.stop() for watch in watches]
    assert codes == [130, 130]
    done = a.ctl("bus", "publish", "@nobody", "x")
    assert "no subscriber is named @nobody" in done.stderr


def talk(swarm: LocalSwarm, daemon: Daemon, say: str) -> tuple[Any, list[Any]]:
    """Run a talker that is told `say`; its end, and what was heard until then and a bit later."""
    watch = Listener(daemon, "said/*")
    client = Client(str(swarm[0].socket))
    [submitted] = client.submit([TaskInput(agent="talker", input={"do": "say"}, retries=0)])
    now = watch.take()
    assert now.topic == "said/now"
    assert now.sender == now.data == f"@{submitted.id}"
    assert client.bus_publish(now.data, say) == 1
    [ended] = client.results([submitted.id])
    heard = []
    client.bus_publish("said/end", None)
    while (one := watch.take()).topic != "said/end":
        heard.append(one.topic)
    if say != "fail" and not heard:
        heard.append(watch.take().topic)
    return ended, heard


def test_what_an_attempt_says_leaves_with_its_result_and_not_without(swarm: LocalSwarm) -> None:
    for daemon in swarm.daemons:
        ended, heard = talk(swarm, daemon, "well done")
        assert (ended.state, ended.result) == ("succeeded", "well done")
        assert heard == ["said/held"]
    ended, heard = talk(swarm, swarm[1], "fail")
    assert (ended.state, heard) == ("failed", [])


def test_an_agent_may_only_what_its_file_permits(swarm: LocalSwarm) -> None:
    client = Client(str(swarm[0].socket))
    [task] = client.submit([TaskInput(agent="talker", input={"do": "forbidden"}, retries=2)])
    [ended] = client.results([task.id])
    assert ended.state == "dead"
    assert "does not permit it to publish to other" in str(ended.error)


def test_nobody_deploys_an_agent_that_may_more_than_they_do(
    swarm: LocalSwarm, tmp_path: Path
) -> None:
    rules = ["agent:deploy", "bus:publish:said/*", "bus:read:heard/*"]
    allowed = [word for rule in rules for word in ("--allow", rule)]
    made = swarm[0].json("key", "create", "deployer", *allowed)
    credential = made["key"]
    (tmp_path / "talker.toml").write_text(AGENT.replace('"talker"', '"other"'))
    (tmp_path / "talker.py").write_text(CODE)
    key = tmp_path / "key"
    key.write_text(credential)
    key.chmod(0o600)
    done = swarm[0].ctl(
        "--api-key-file", str(key), "agent", "deploy", str(tmp_path / "talker.toml")
    )
    assert done.returncode != 0
    assert "bus:publish:@*" in done.stderr


PUBLISHER = """
import sys
from swarmd.base.errors import DeliveryUnknown
from swarmd.client import Client
client = Client(sys.argv[1])
for number in range(int(sys.argv[2])):
    try:
        client.bus_publish("count", number, timeout_s=30)
    except DeliveryUnknown as error:
        assert "n3 did not acknowledge" in error.message, error.message
        print("unknown", number, flush=True)
"""


def test_a_killed_daemon_costs_nobody_else_a_message(swarm: LocalSwarm) -> None:
    """n3 dies by SIGKILL among messages from n1 to n2 and n3; to n2 they go on, in order."""
    a, b, c = swarm.daemons
    here, there = Listener(b, "count"), Listener(c, "count")
    count = 300
    command = [sys.executable, "-c", PUBLISHER, str(a.socket), str(count)]
    publisher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        got = [here.take().data for _ in range(count // 3)]
        c.kill()
        got += [here.take().data for _ in range(count - len(got))]
        assert got == list(range(count))
        unknown, _ = publisher.communicate(timeout=30)
        assert publisher.returncode == 0
        assert len(unknown.splitlines()) <= 1, "only what was under way is in doubt"
        assert there.take().data == 0
    finally:
        publisher.kill()
        publisher.wait()
        c.start()
        swarm.wait_whole()
