"""The client: keys, failover between daemons, and what is never repeated."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))

from gateway_fakes import FakeStore, FakeTasks, LiveGateway, make_services

from swarmd.base.errors import (
    BadRequest,
    MalformedMessage,
    NoQuorum,
    SwarmError,
    TimedOut,
    Unreachable,
)
from swarmd.client import ApiError, Client, TaskInput, default_socket
from swarmd.client.requests import MSGPACK


class Scripted:
    """A daemon that answers each connection as it is told."""

    def __init__(self, path: Path, *answers: Callable[[socket.socket, bytes], None]) -> None:
        self.requests: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answers = answers
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            connection, _ = self._listener.accept()
            with connection:
                request = connection.recv(65536)
                if b"Content-Length" in request and request.endswith(b"\r\n\r\n"):
                    request += connection.recv(65536)
                self.requests.append(request)
                answer(connection, request)
        self._listener.close()


def hang_up(connection: socket.socket, request: bytes) -> None:
    connection.close()


def reply(value: Any, status: str = "200 OK") -> Callable[[socket.socket, bytes], None]:
    body = msgspec.msgpack.encode(value)

    def answer(connection: socket.socket, request: bytes) -> None:
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {MSGPACK}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)

    return answer


def key_in(request: bytes) -> str:
    body = request.partition(b"\r\n\r\n")[2]
    return str(msgspec.msgpack.decode(body)["tasks"][0]["key"])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[LiveGateway, LiveGateway]]:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with (
        LiveGateway(make_services(folders[0])) as first,
        LiveGateway(make_services(folders[1], name="n2")) as second,
    ):
        second.services.tasks = first.services.tasks  # One swarm, two daemons.
        yield first, second


def test_a_submit_that_broke_off_is_repeated_with_the_same_key(tmp_path: Path) -> None:
    daemon = Scripted(tmp_path / "s", hang_up, reply([{"id": "t", "created": False}]))
    [one] = Client(tmp_path / "s").submit([{"agent": "a"}])
    assert one.id == "t"
    first, second = daemon.requests
    assert key_in(first) == key_in(second) != ""


def test_a_daemon_that_keeps_hanging_up_is_given_up(tmp_path: Path) -> None:
    Scripted(tmp_path / "s", hang_up, hang_up)
    with pytest.raises(Unreachable, match="went away during the request"):
        Client(tmp_path / "s").submit([{"agent": "a"}])


def test_the_next_daemon_takes_over(pair: tuple[LiveGateway, LiveGateway]) -> None:
    first, second = pair
    client = Client([first.socket, second.socket])
    assert client.status().node == "n1"
    [one] = client.submit([TaskInput(agent="slow", key="k")])
    first.stop()
    assert client.status().node == "n2"
    assert client.submit([TaskInput(agent="slow", key="k")])[0].id == one.id


def test_a_stream_of_results_goes_on_through_another_daemon(
    pair: tuple[LiveGateway, LiveGateway],
) -> None:
    first, second = pair
    client = Client([first.socket, second.socket])
    ids = [one.id for one in client.submit([{"agent": "echo", "input": 1}, {"agent": "slow"}])]
    results = client.results(ids)
    assert next(results).state == "succeeded"
    first.stop()
    tasks = second.services.tasks
    assert isinstance(tasks, FakeTasks)
    Client(second.socket).cancel([ids[1]])
    assert [one.state for one in results] == ["cancelled"]


def test_job_events_go_on_through_another_daemon(pair: tuple[LiveGateway, LiveGateway]) -> None:
    first, second = pair
    client = Client([first.socket, second.socket])
    job = client.submit_job({"name": "j", "stages": [{"name": "s", "agent": "slow"}]}, [])
    events = client.job_events(job.id)
    assert next(events).state == "running"
    first.stop()
    Client(second.socket).cancel_job(job.id)
    assert list(events)[-1].state == "cancelled"


def test_a_write_without_a_key_is_never_repeated(tmp_path: Path) -> None:
    """Whether it was carried out is unknown, and it says so."""
    daemon = Scripted(tmp_path / "s", hang_up, reply({}))
    with pytest.raises(Unreachable, match="unknown"):
        Client([tmp_path / "s", tmp_path / "other"]).kv_put("a", b"1")
    assert len(daemon.requests) == 1


def test_a_write_goes_to_the_next_daemon_if_nothing_was_sent(
    pair: tuple[LiveGateway, LiveGateway], tmp_path: Path
) -> None:
    client = Client([str(tmp_path / "none"), pair[1].socket])
    assert client.kv_put("a", b"1").mod_revision == 1


def test_no_quorum_is_told_at_once_unless_asked_to_wait(
    pair: tuple[LiveGateway, LiveGateway],
) -> None:
    first, _ = pair
    tasks = first.services.tasks
    assert isinstance(tasks, FakeTasks)
    submit = tasks.submit
    refusals = [1, 1]

    async def unready(specs: Any) -> Any:
        if refusals:
            refusals.pop()
            raise NoQuorum("no majority")
        return await submit(specs)

    tasks.submit = unready  # type: ignore[method-assign]
    client = Client(first.socket)
    with pytest.raises(NoQuorum):
        client.submit([{"agent": "echo"}])
    assert client.submit([{"agent": "echo"}], retry_s=5)[0].created


def test_many_and_large_tasks_go_in_several_requests(
    pair: tuple[LiveGateway, LiveGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.client.calls.REQUEST_BYTES", 1_000)
    monkeypatch.setattr("swarmd.client.calls.SUBMIT_TASKS_MAX", 4)
    client = Client(pair[0].socket)
    found = client.submit([{"agent": "echo", "input": "x" * 300} for _ in range(9)])
    assert len({one.id for one in found}) == 9
    tasks = pair[0].services.tasks
    assert isinstance(tasks, FakeTasks)
    assert tasks.submits == 5  # Two of 300 characters each, ids and keys included.


def test_every_socket_that_was_tried_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    with pytest.raises(SwarmError) as caught:
        Client([tmp_path / "none", tmp_path / "stale"]).status()
    assert caught.value.code == "daemon_down"
    assert "none (no such socket)" in caught.value.message
    assert "stale (nothing listens there)" in caught.value.message


def test_a_daemon_that_does_not_answer_times_out(tmp_path: Path) -> None:
    release = threading.Event()
    Scripted(tmp_path / "s", lambda connection, request: release.wait(5) and None)
    with pytest.raises(TimedOut):
        Client(tmp_path / "s", timeout_s=0.1).status()
    release.set()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply({"x": 1}), MalformedMessage),
        (reply("boo", "500 Oops"), MalformedMessage),
        (reply({"error": {"code": "brand_new", "message": "m"}}, "500 Oops"), ApiError),
    ],
)
def test_answers_that_make_no_sense_are_errors(
    tmp_path: Path, answer: Callable[[socket.socket, bytes], None], kind: type[SwarmError]
) -> None:
    Scripted(tmp_path / "s", answer)
    with pytest.raises(kind):
        Client(tmp_path / "s").status()


def test_the_socket_is_found_by_variable_or_folder() -> None:
    assert default_socket({"SWARMCTL_SOCKET": "/x"}) == "/x"
    assert default_socket({"HOME": "/h", "XDG_RUNTIME_DIR": "/r"}).endswith("swarmd/swarmd.sock")
    with pytest.raises(BadRequest):
        Client([])


def test_reads_are_repeated_when_a_kept_connection_was_closed(
    pair: tuple[LiveGateway, LiveGateway],
) -> None:
    """Also a write: it takes a fresh connection, so that none is found broken too late."""
    first, _ = pair
    client = Client(first.socket)
    client.status()
    stale = client._connection
    assert stale is not None
    assert stale.sock is not None
    stale.sock.shutdown(socket.SHUT_RDWR)
    assert client.status().node == "n1"
    assert client._connection is not stale
    assert isinstance(first.services.store, FakeStore)
    client.kv_put("a", b"1")
    assert first.services.store.revision == 1
