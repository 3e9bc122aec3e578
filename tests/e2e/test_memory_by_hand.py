"""Shared memory between real daemons, as somebody types it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from functools import partial

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import NotFound, SwarmError, ValueTooLarge
from swarmd.base.limits import CRDT_VALUE_BYTES_MAX
from swarmd.client import Client

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path_factory.mktemp("memory"), 3) as one:
        one.form()
        yield one


def typed(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    done = daemon.ctl("mem", *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


def value_on(daemon: Daemon, key: str, namespace: str = "default") -> object:
    with Client(str(daemon.socket)) as client:
        try:
            return client.memory_get(namespace, key).value
        except NotFound:
            return None


def test_what_one_writes_all_read_list_and_delete(swarm: LocalSwarm) -> None:
    n1, n2, n3 = swarm.daemons
    assert "theme is written" in typed(n1, "set", "theme", "dark")
    wait_until("the other nodes", lambda: value_on(n2, "theme") == "dark", timeout_s=5.0)
    assert typed(n2, "get", "theme") == "dark\n"
    typed(n2, "set", "plan", "--json-value", '{"step": 3}')
    wait_until("the other nodes", lambda: value_on(n3, "plan") == {"step": 3}, timeout_s=5.0)
    shown = typed(n3, "list")
    assert all(word in shown for word in ("KEY", "theme", '{"step": 3}', "local user"))
    assert all(len(line) <= 80 for line in shown.splitlines())
    typed(n3, "delete", "theme")
    wait_until("the other nodes", lambda: value_on(n1, "theme") is None, timeout_s=5.0)
    assert "no key 'theme'" in typed(n1, "get", "theme", code=1)


def test_the_largest_value_is_read_on_the_other_nodes(swarm: LocalSwarm) -> None:
    n1, _, n3 = swarm.daemons
    value = "x" * (CRDT_VALUE_BYTES_MAX - 5)
    with Client(str(n1.socket)) as client:
        client.memory_set("default", "large", value)
        with pytest.raises(ValueTooLarge):
            client.memory_set("default", "larger", value + "x")
    wait_until("the other node", lambda: value_on(n3, "large") == value, timeout_s=10.0)
    typed(n3, "delete", "large")


def test_mistakes_are_told_in_one_line(swarm: LocalSwarm) -> None:
    n1 = swarm.daemons[0]
    typed(n1, "set", "once", "x")
    for arguments, code, text in (
        (("set", "once", "y", "--if-version", "0"), 1, "another version"),
        (("set", "k"), 2, "give VALUE or --json-value"),
        (("set", "k", "--json-value", "{"), 2, "is not JSON"),
        (("set", "k", "v", "--ttl", "0s"), 2, "not a duration"),
        (("set", "k", "v", "-n", "a/b"), 2, "not a namespace name"),
        (("delet", "k"), 2, "did you mean 'delete'"),
    ):
        said = typed(n1, *arguments, code=code)
        assert text in said
        assert len(said.strip().splitlines()) == 1


def test_a_node_without_a_majority_remembers_and_all_agree_afterwards(swarm: LocalSwarm) -> None:
    n1, n2, n3 = swarm.daemons
    n2.kill()
    n3.kill()
    typed(n1, "set", "alone", "yes", "-n", "cut")
    assert value_on(n1, "alone", "cut") == "yes"
    n2.start()
    n3.start()
    for one in (n2, n3):
        wait_until("a node that is back", partial(_knows, one, "alone", "yes"))


def test_a_killed_daemon_has_what_it_acknowledged(swarm: LocalSwarm) -> None:
    n1 = swarm.daemons[0]
    with Client(str(n1.socket)) as client:
        for number in range(50):
            client.memory_set("kept", f"k{number}", number)
    n1.kill()
    n1.start()
    wait_until("the other nodes", lambda: _is_up(n1), timeout_s=30.0)
    with Client(str(n1.socket)) as client:
        found = client.memory_list("kept").entries
    assert sorted(one.value for one in found) == list(range(50))


@pytest.mark.alone
def test_what_is_set_on_one_is_soon_readable_on_another(swarm: LocalSwarm) -> None:
    """Loosely: the figures are the bench's."""
    a, b = (Client(str(one.socket)) for one in swarm.daemons[:2])
    took = []
    for number in range(50):
        began = time.monotonic()
        a.memory_set("quick", f"k{number}", number)
        wait_until("the other node", partial(_has, b, f"k{number}"), every_s=0.001)
        took.append(time.monotonic() - began)
    assert statistics.median(took) < 0.2


def _knows(daemon: Daemon, key: str, value: object) -> bool:
    return _is_up(daemon) and value_on(daemon, key, "cut") == value


def _has(client: Client, key: str) -> bool:
    try:
        client.memory_get("quick", key)
    except NotFound:
        return False
    return True


def _is_up(daemon: Daemon) -> bool:
    """Does its memory answer? Its status does so sooner."""
    return daemon.ctl("mem", "list").returncode == 0


def test_why_one_of_two_writes_won_is_told(swarm: LocalSwarm) -> None:
    """Two nodes write a key while neither is there for the other."""
    n1, n2, n3 = swarm.daemons
    n2.kill()
    n3.kill()
    typed(n1, "set", "mode", "day", "--ttl", "1h")
    n1.kill()
    n2.start()
    wait_until("an answer", lambda: n2.ctl("mem", "set", "mode", "night").returncode == 0)
    n1.start()
    n3.start()
    for one in (n1, n3):
        wait_until("the later write", partial(_knows_of, one, "mode", 2))
    done = n1.ctl("crdt", "inspect", "mode")
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    won, lost = done.stdout.split("\n\n")[1:3]
    assert "dot      n2 " in won
    assert "counts   of writes that had not seen each other, its stamp is the latest" in won
    assert "dot      n1 " in lost
    assert "expires  in " in lost
    assert "loses    its stamp is earlier" in lost
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    told = json.loads(n3.ctl("crdt", "inspect", "mode", "--json").stdout)
    assert [(c["node"], c["value"], c["counts"]) for c in told["cells"]] == [
        ("n2", "night", True),
        ("n1", "day", False),
    ]
    assert told["cells"][0]["created_by"].startswith("local user")
    assert {one["node"] for one in told["seen"]} >= {"n1", "n2"}
    missing = n1.ctl("crdt", "inspect", "nowhere")
    assert missing.returncode == 1
    assert "nothing is held at this key" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1


def _knows_of(daemon: Daemon, key: str, cells: int) -> bool:
    with Client(str(daemon.socket)) as client:
        try:
            return len(client.crdt_inspect("default", key).cells) == cells
        except SwarmError:
            return False


def test_a_policy_is_declared_and_every_node_follows(swarm: LocalSwarm) -> None:
    n1, n2, n3 = swarm.daemons
    said = typed(n1, "namespace", "create", "traces", "--ttl", "1h", "--bytes", "64KiB")
    assert said == "traces is eventual, of 64 KiB, for 1 h; every node knows\n"
    typed(n2, "set", "k", "v", "-n", "traces")
    wait_until("the value", lambda: value_on(n3, "k", "traces") == "v", timeout_s=5.0)
    assert "60 min" in typed(n3, "list", "-n", "traces")
    typed(n2, "namespace", "set", "traces", "--ttl", "never", "--type", "string")
    for one in (n1, n3):
        wait_until("the policy", partial(_follows, one, "of type string"), timeout_s=5.0)
        refused = typed(one, "set", "k", "--json-value", "7", "-n", "traces", code=1)
        assert "is of the type string, not int: nothing changed" in refused
    assert "did you mean traces?" in typed(n1, "namespace", "set", "trace", "--ttl", "1m", code=1)
    wrong = typed(n1, "namespace", "set", "traces", "--reader", "opertor", code=2)
    assert "did you mean operator?" in wrong
    assert "say what to change" in typed(n1, "namespace", "set", "traces", code=2)
    n3.kill()
    n3.start()
    wait_until("an answer", lambda: _is_up(n3))
    wait_until("the policy", partial(_follows, n3, "of type string"), timeout_s=5.0)
    [shown] = json.loads(typed(n3, "namespace", "list", "--json"))
    assert (shown["name"], shown["type"], shown["ttl_s"]) == ("traces", "string", 0.0)
    print(typed(n1, "namespace", "list"))


def test_values_live_on_two_of_three_nodes_and_all_read_them(swarm: LocalSwarm) -> None:
    n1, n2, n3 = swarm.daemons
    said = typed(n1, "namespace", "create", "archive", "--copies", "2")
    assert said == "archive is eventual, each value on 2 nodes; every node knows\n"
    for number in range(20):
        typed(swarm.daemons[number % 3], "set", f"k{number:02}", str(number), "-n", "archive")
    for one in (n1, n2, n3):
        assert [value_on(one, f"k{n:02}", "archive") for n in range(20)] == [*map(str, range(20))]
        listed = json.loads(typed(one, "list", "--json", "-n", "archive"))
        assert [entry["value"] for entry in listed] == [*map(str, range(20))]
    told = [one.ctl("crdt", "inspect", "k00", "-n", "archive") for one in (n1, n2, n3)]
    assert sorted(one.returncode == 0 for one in told) == [False, True, True]
    assert any("ask one of" in one.stderr for one in told)
    n2.kill()
    for one in (n1, n3):
        for number in range(20):
            wait_until("a value", partial(_is, one, number), timeout_s=10.0)
    typed(n1, "set", "k00", "new", "-n", "archive")
    n2.start()
    wait_until("an answer", lambda: _is_up(n2))
    wait_until("the value", lambda: value_on(n2, "k00", "archive") == "new", timeout_s=10.0)
    refused = typed(n1, "namespace", "create", "odd", "--copies", "2", "--bytes", "1MiB", code=2)
    assert "lives on all nodes" in refused


def _is(daemon: Daemon, number: int) -> bool:
    with Client(str(daemon.socket)) as client:
        try:
            return bool(client.memory_get("archive", f"k{number:02}").value == str(number))
        except SwarmError:
            return False


def _follows(daemon: Daemon, words: str) -> bool:
    return words in typed(daemon, "namespace", "show", "traces")
