"""Vector memory between real daemons, as somebody types it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import NotFound, NotReady, SwarmError
from swarmd.client import Client

pytestmark = pytest.mark.long

COUNT = 3_000
DIMENSION = 32


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path_factory.mktemp("vectors"), 3) as one:
        one.form()
        yield one


def typed(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    done = daemon.ctl("vector", *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


def found_on(daemon: Daemon, collection: str, vector: list[float], **asked: object) -> object:
    """Ids with distances; None while the node cannot say."""
    with Client(str(daemon.socket)) as client:
        try:
            found = client.vector_search(collection, vector, **asked)  # type: ignore[arg-type]
        except (NotFound, NotReady):
            return None
    return None if found.behind else [(hit.id, hit.distance, hit.payload) for hit in found.hits]


def test_a_daemon_without_vectors_has_loaded_nothing_for_them(swarm: LocalSwarm) -> None:
    for daemon in swarm.daemons:
        assert daemon.process is not None
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        assert "numpy" not in maps
        assert not (daemon.folder / "data" / "vectors").exists()


def test_what_one_adds_all_find_filter_and_delete(swarm: LocalSwarm) -> None:
    n1, n2, n3 = swarm.daemons
    assert "2 elements, near by cosine" in typed(n1, "create", "docs", "--dimension", "2")
    typed(n1, "add", "docs", "--id", "east", "--vector", "[1, 0]", "--payload", "side=right")
    wait_until("the other node", lambda: found_on(n2, "docs", [1.0, 0.0]) is not None)
    typed(n2, "add", "docs", "--id", "north", "--vector", "[0, 1]", "--payload", "n=2")
    typed(n2, "add", "docs", "--id", "up/1", "--vector", "[0.1, 1]", "--payload", "n=3")
    wait_until("all nodes", lambda: len(found_on(n3, "docs", [1.0, 0.0]) or ()) == 3)
    shown = typed(n3, "search", "docs", "--vector", "[0.9, 0.1]")
    assert [line.split()[1] for line in shown.splitlines()[1:]] == ["east", "up/1", "north"]
    assert all(len(line) <= 80 for line in shown.splitlines())
    shown = typed(n3, "search", "docs", "--like", "east", "--filter", "n>=2", "--filter", "n<3")
    assert [line.split()[1] for line in shown.splitlines()[1:]] == ["north"]
    got = json.loads(typed(n3, "get", "docs", "up/1"))
    assert (got["payload"], got["node"], got["created_by"]) == ({"n": 3}, "n2", "local user 0")
    listed = typed(n3, "list").splitlines()
    assert listed[1].split()[:4] == ["docs", "3", "2", "cosine"]
    typed(n3, "delete", "docs", "east")
    wait_until("all nodes", lambda: len(found_on(n1, "docs", [1.0, 0.0]) or ()) == 2)


def test_mistakes_are_told_in_one_line(swarm: LocalSwarm, tmp_path: Path) -> None:
    n1 = swarm.daemons[0]
    typed(n1, "create", "wrong", "--dimension", "2")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"id": "a", "vector": [1, 2]}\n{"id": "b"}\n')
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "a", "vector": [1, 2]}\n{"id": "b", "vector": [1, 2, 3]}\n')
    for arguments, code, text in (
        (("add", "none", "--vector", "[1]"), 1, "no collection 'none'"),
        (("add", "wrong", "--vector", "[1]"), 2, "has 1 elements"),
        (("add", "wrong", "--vector", "[0, 0]"), 2, "is zero"),
        (("add", "wrong", "--vector", "[1e400, 0]"), 2, "no finite numbers"),
        (("add", "wrong", "--vector", "{"), 2, "is not JSON"),
        (("add", "wrong", "--text", "hello"), 2, "makes no vectors of texts"),
        (("add", "wrong"), 2, "give --vector or --text"),
        (("add", "wrong", "--file", str(lines)), 2, "line 2: an entry has either"),
        (("add", "wrong", "--file", str(other)), 2, "entry 'b'"),
        (("add", "wrong", "--file", str(tmp_path / "no")), 2, "nothing was added"),
        (("create", "wrong", "--dimension", "3"), 1, "is there with dimension 2"),
        (("create", "notes", "--embed"), 2, "makes no vectors of texts"),
        (("create", "a/b", "--dimension", "3"), 2, "not a collection name"),
        (("search", "wrong", "--vector", "[1, 2, 3]"), 2, "has 3 elements"),
        (("search", "wrong", "--vector", "[1, 2]", "-k", "0"), 2, "k is from 1"),
        (("search", "wrong", "--vector", "[1, 2]", "--filter", "x"), 2, "is no FIELD=VALUE"),
        (("search", "wrong", "--vector", "[1, 2]", "--filter", "x={}"), 2, "bounds are"),
        (("get", "wrong", "none"), 1, "no entry 'none'"),
        (("delete", "wrong", "none"), 1, "no entry 'none'"),
        (("drop", "wrong"), 2, "add --yes"),
    ):
        said = typed(n1, *arguments, code=code)
        assert text in said, (arguments, said)
        assert len(said.strip().splitlines()) == 1, said
    assert found_on(n1, "wrong", [1.0, 1.0]) == []


def test_many_are_added_survive_kills_and_a_wiped_index_and_are_equal_everywhere(
    swarm: LocalSwarm, tmp_path: Path
) -> None:
    n1, n2, n3 = swarm.daemons
    rng = random.Random(1)
    lines = tmp_path / "many.jsonl"
    with lines.open("w") as file:
        for number in range(COUNT):
            vector = [rng.gauss(0, 1) for _ in range(DIMENSION)]
            entry = {"id": f"e{number}", "vector": vector, "payload": {"n": number % 10}}
            file.write(json.dumps(entry) + "\n")
    typed(n1, "create", "many", "--dimension", str(DIMENSION), "--metric", "l2")
    assert f"{COUNT} entries are added to many" in typed(n1, "add", "many", "--file", str(lines))
    queries = [[rng.gauss(0, 1) for _ in range(DIMENSION)] for _ in range(5)]

    def told(daemon: Daemon) -> list[object]:
        return [found_on(daemon, "many", query, k=20, filter={"n": {"lt": 5}}) for query in queries]

    wanted = told(n1)
    assert all(isinstance(one, list) and len(one) == 20 for one in wanted)
    for daemon in (n2, n3):
        wait_until("the other nodes", lambda daemon=daemon: told(daemon) == wanted)
    # A kill, and a node whose index is gone, which is made again from what it holds.
    n1.kill()
    n2.kill()
    shutil.rmtree(n2.folder / "data" / "vectors")
    with Client(str(n3.socket)) as client:
        client.vector_delete("many", "e0")
        client.vector_add("many", [{"id": "late", "vector": queries[0], "payload": {"n": 0}}])
    after = told(n3)
    assert after != wanted
    assert after[0][0][0] == "late"  # type: ignore[index]
    n1.start()
    n2.start()
    for daemon in (n1, n2):
        wait_until("a node that is back", lambda daemon=daemon: _told(told, daemon) == after)
    for daemon in swarm.daemons:
        [many] = [one for one in daemon.json("vector", "list") if one["name"] == "many"]
        assert many["entries"] == COUNT
    typed(n2, "drop", "many", "--yes")
    wait_until("all nodes", lambda: _gone(n3, "many"))
    assert "many" not in typed(n3, "list")


def _told(told: object, daemon: Daemon) -> object:
    try:
        return told(daemon)  # type: ignore[operator]
    except SwarmError:
        return None


def _gone(daemon: Daemon, name: str) -> bool:
    with Client(str(daemon.socket)) as client:
        try:
            client.vector_collection(name)
        except NotFound:
            return True
    return False
