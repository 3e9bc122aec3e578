"""Root on a member's host changes what is kept of the audit log; somebody floods it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.audit.chain import Sealed
from swarmd.audit.records import Batch, decode_batch, decode_seal, hashes_of, links_of
from swarmd.audit.segments import frame_of, frames_in
from swarmd.client import Client
from swarmd.wire.codec import encode_struct


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    """Three daemons, whose audit logs are named in the store every second."""
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    with LocalSwarm(root, 3, settings={"audit": {"anchor_s": 1}}) as three:
        three.form()
        for number in range(6):
            with Client(str(three[0].socket)) as admin:
                admin.open_session(60)
                # Each in a batch of its own.
                wait_until(
                    "it is recorded",
                    lambda n=number: len(admin.audit(kind="session.opened").records) > n,
                )
        yield three
    shutil.rmtree(root, ignore_errors=True)


def copy_of(holder: Daemon, node: Daemon, stream: str = "access") -> Path:
    """The file in which `holder` keeps what `node` recorded of a stream."""
    node_id = node.json("status")["node_id"]
    found = sorted((holder.folder / "data" / "audit").glob(f"{node_id}.{stream[0]}.*.log"))
    assert found
    return found[-1]


def quiet(path: Path) -> bytes:
    """The file's bytes, once nothing has been written to it for a while."""
    seen = [path.read_bytes()]

    def still() -> bool:
        time.sleep(2.5)
        seen.append(path.read_bytes())
        return seen[-1] == seen[-2]

    wait_until("nothing more is recorded", still)
    return seen[-1]


def rewritten(raw: bytes, index: int, change: Callable[[Batch], Batch | None]) -> bytes:
    """A file's bytes with one batch changed, everything that takes no key made to fit."""
    begin = raw[: raw.index(b"SWAF")]
    parts = []
    for number, frame in enumerate(frames_in(raw)):
        batch: Batch | None = decode_batch(frame.raw)
        if number == index and batch is not None:
            batch = change(batch)
        if batch is not None:
            seal = decode_seal(batch.seal)[1]
            parts.append(frame_of(Sealed(encode_struct(batch), seal, batch.seal)))
    return begin + b"".join(parts)


def relinked(batch: Batch, records: tuple[bytes, ...]) -> Batch:
    seal = decode_seal(batch.seal)[1]
    return Batch(batch.seal, records, links_of(hashes_of(seal.previous, records)))


def verified(daemon: Daemon) -> tuple[list[dict[str, Any]], str]:
    """What `swarmctl audit --verify` finds, and what it says on stderr."""
    done = daemon.ctl("audit", "--verify", "--json")
    found = json.loads(done.stdout.splitlines()[0])
    listed = [one | {"node": node["node"]} for node in found["nodes"] for one in node["findings"]]
    assert done.returncode == (1 if listed else 0), done.stderr
    return listed, done.stderr


def sound(daemon: Daemon) -> bool:
    return not verified(daemon)[0]


def refusals(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.json(
        "audit", "--kind", "access.refused", "--of", daemon.name, "--last", "1000"
    )
    return found


def attacks_on(good: bytes) -> dict[str, tuple[bytes, int]]:
    """What root can make of a file without the node's key, and the first record that is wrong."""
    frames = list(frames_in(good))
    target = next(
        index
        for index, frame in enumerate(frames[:-1])
        if b"session.opened" in frame.raw and frame.first == frame.last
    )
    first = frames[target].first
    flipped = bytearray(good)
    flipped[good.index(b"session.opened", frames[target - 1].end if target else 0)] ^= 1
    [record] = decode_batch(frames[target].raw).records
    other = record.replace(b"session.opened", b"session.closed")
    assert other != record
    return {
        "a flipped byte": (bytes(flipped), first),
        "a changed record, hashes made anew": (
            rewritten(good, target, lambda batch: relinked(batch, (other,))),
            first,
        ),
        "a batch dropped": (rewritten(good, target, lambda batch: None), first),
        "a record twice": (
            rewritten(good, target, lambda batch: relinked(batch, (record, record))),
            first,
        ),
        "the tail cut off": (good[: frames[-2].end], frames[-1].first),
    }


def test_tampering_is_named(swarm: LocalSwarm) -> None:
    """A byte, a record, a batch, a tail, on the disk of a member that runs; then as it was."""
    n1, n2, n3 = swarm.daemons
    wait_until("all of them keep all", lambda: sound(n1))
    path = copy_of(n3, n1)
    good = quiet(path)
    for what, (bad, number) in attacks_on(good).items():
        path.write_bytes(bad)
        found, said = verified(n2)
        first_found = {key: found[0][key] for key in ("node", "holder", "number")}
        assert first_found == {"node": "n1", "holder": "n3", "number": number}, what
        assert "in the copy of n3" in said, what
        path.write_bytes(good)
    wait_until("as it was", lambda: sound(n2))


def test_a_node_that_hides_its_own_tail_is_found(swarm: LocalSwarm) -> None:
    """Its daemon is stopped, the end of its own log cut off, and it goes on as if nothing was."""
    n1, n2, n3 = swarm.daemons
    path = copy_of(n2, n2, "security")
    assert n2.terminate() == 0
    frames = list(frames_in(path.read_bytes()))
    path.write_bytes(path.read_bytes()[: frames[-2].end])
    n2.start()
    swarm.wait_whole()
    wait_until("it goes on", lambda: len(n1.json("audit", "--of", "n2", "--kind", "node.s")) > 2)

    def found() -> list[dict[str, Any]]:
        told = [one for one in verified(n3)[0] if one["node"] == "n2"]
        return [one for one in told if "gone from the disk of their node" in one["what"]]

    [one] = wait_until("it is found", found)
    assert one["number"] == frames[-1].first
    # What was cut off is there all the same, in the copies of the others.
    kinds = [record["kind"] for record in n3.json("audit", "--of", "n2")]
    assert "node.stopped" in kinds


def test_guessing_does_not_flood_the_audit_log(swarm: LocalSwarm) -> None:
    n3, began = swarm[2], time.monotonic()
    with Client(str(n3.socket), api_key="swk_" + "a" * 64) as guesser:
        for _ in range(400):
            with pytest.raises(Exception, match="API key"):
                guesser.status()
    wait_until("what was only counted is told", lambda: "times more" in str(refusals(n3)))
    told = refusals(n3)
    assert {one["stream"] for one in told} == {"access"}
    # Fifty at once, one in five seconds, and a count in ten.
    took_s = time.monotonic() - began
    assert 50 < len(told) <= 50 + took_s / 5 + took_s / 10 + 2
