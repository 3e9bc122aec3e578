"""The fuzzer finds what is planted, misses no decoder, and every decoder bears it for a while."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_fuzz
from fuzz_inputs import INPUT_BYTES_MAX, Inputs, packed, unpacked
from fuzz_targets import Target, targets

from swarmd.base.errors import MalformedMessage
from swarmd.base.rng import make_rng

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "swarmd"
BEGINNINGS = ("decode_", "read_", "parse_", "unpack", "open_", "load")
# Names that begin so and take no bytes from outside.
OTHERS = {
    "agents.service.open_agents": "opens a room",
    "agents.spec.load_agent_file": "reads a file for parse_agent",
    "agents.supervisor.open_supervisor": "opens a room",
    "audit.anchors.read_anchors": "asks the store; the seals are judged by open_seal",
    "app.folder.load_data_key": "reads a file of this host; open_body judges what it holds",
    "audit.index.read_index": "reads a file for decode_index",
    "audit.sealed.read_small": "reads a file for open_file",
    "audit.service.open_audit": "opens a room",
    "cli.authority_log.read_asked": "asks a daemon, by read_log",
    "cli.authority_log.read_history": "asks a daemon; what it shows is judged by identity",
    "cli.authority_log.read_log": "asks a daemon, by read_history",
    "cli.authority_log.read_own": "asks a daemon, by read_log",
    "cli.common.open_client": "opens a client",
    "cli.common.read_duration_s": "what a person types; tested as such",
    "cli.inputs.read_inputs": "lists files",
    "cli.job_file.load_job_file": "reads a file for parse_job",
    "identity.keys.read_private_file": "reads a file of this host; open_body judges what it holds",
    "gateway.http.read_body": "reads a request's body within its bounds",
    "gateway.service.open_gateway": "opens a room",
    "base.tls_http.read_fingerprints": "what a person types; tested as such",
    "base.tls_http.read_url": "what a person types; tested as such",
    "gateway.access.service.open_access": "opens a room",
    "gateway.listeners.open_loopback": "opens a socket",
    "gateway.listeners.open_remote": "opens a socket",
    "gateway.listeners.open_socket": "opens a socket",
    "gateway.listeners.open_tls": "reads files of this host",
    "memory.cache.service.open_cache": "opens a room",
    "memory.kv.service.open_memory": "opens a room",
    "memory.vector.embedded.open_engine": "opens files; its tests flip bits in each",
    "memory.vector.embedded.open_vector_index": "opens a room, by open_engine",
    "memory.vector.opening.open_embedded": "opens a room, by open_vector_index",
    "memory.vector.opening.open_pgvector": "opens a room, by open_pgvector_index",
    "memory.vector.pgvector.open_pgvector_index": "asks a database; pg_values decodes what it says",
    "memory.vector.shapes.unpacked": "array of a vector whose length rules.check_vector judged",
    "mesh.discovery.mdns.open_mdns": "opens a room",
    "mesh.discovery.service.open_discovery": "opens a room",
    "mesh.reach.service.open_reach": "opens a room",
    "mesh.bus.service.open_bus": "opens a room",
    "state.crdt.service.open_eventual": "opens a room",
    "state.crdt.types.registers.read_all": "of cells, whose bytes count as nothing if unreadable",
    "mesh.service.open_mesh": "opens a room",
    "mesh.swim.service.open_membership": "opens a room",
    "mesh.transports.carriers.open_carrier": "opens a connection",
    "mesh.transports.streams.open_streams": "opens a room",
    "mesh.transports.udp.open_datagrams": "opens a room",
    "state.blobs.intake.read_good_file": "reads a file; each chunk is held against its hash",
    "state.blobs.service.open_blobs": "opens a room",
    "state.raft.service.open_store": "opens a room",
    "state.raft.storage.open_epochs": "opens files, each of which is a target",
    "state.recipes.service.open_recipes": "opens a room",
    "state.secrets.service.open_secrets": "opens a room",
    "tasks.service.open_tasks": "opens a room",
    "wire.codec.decode_stored": "decode_struct for stored records, each of which is a target",
}


def decoders() -> set[str]:
    """Functions of the source whose name says that they take something in."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if module.startswith("sim."):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
                BEGINNINGS
            ):
                found.add(f"{module}.{node.name}")
    return found


def test_no_decoder_is_forgotten() -> None:
    covered = {name for target in targets().values() for name in target.covers}
    assert decoders() - covered - OTHERS.keys() == set(), "not thrown at: give it a target"
    assert covered | OTHERS.keys() <= decoders(), "it is no more"
    assert not covered & OTHERS.keys()


@pytest.mark.parametrize("name", sorted(targets()))
def test_every_target_bears_what_broke_it_once_and_a_little_more(name: str) -> None:
    kept = run_fuzz.corpus_of(name)
    result = run_fuzz.run(targets()[name], len(kept) + 300, seed=7, kept=kept)
    # Three hundred inputs on a loaded machine say nothing of one in a hundred.
    assert result.ok or result.finding.startswith("one of a hundred"), result
    assert result.inputs == len(kept) + 300


@pytest.mark.parametrize("name", sorted(targets()))
def test_the_samples_of_a_target_get_further_than_its_first_check(name: str) -> None:
    target = targets()[name]
    taken = 0
    for raw in target.samples:
        try:
            target.make()(raw)
        except target.refusals:
            continue
        taken += 1
    assert taken or name == "mesh.carrier", "no sample is sound"


@pytest.mark.parametrize(
    "name", sorted(name for name, target in targets().items() if target.dress and target.values)
)
def test_what_is_dressed_is_as_sound_as_a_sample(name: str) -> None:
    target = targets()[name]
    assert target.dress is not None
    refused: list[Exception] = []
    for value in target.values:
        try:
            target.make()(target.dress(value))
        except target.refusals as error:
            refused.append(error)
    assert not [error for error in refused if isinstance(error, MalformedMessage)]


# ---- what is planted is found --------------------------------------------------------------


def planted(call: Callable[[bytes], Any], **more: Any) -> Target:
    return Target("planted", lambda: call, [packed(["a", 5, {"deep": [1, 2]}])], **more)


def test_an_exception_that_has_no_name_is_found_and_shortened() -> None:
    def take(raw: bytes) -> None:
        if b"deep" in raw and b"\xff" in raw:
            raise KeyError("planted")

    result = run_fuzz.run(planted(take), 50_000)
    assert not result.ok
    assert "KeyError" in result.finding
    assert "test_fuzz_script.py" in result.finding
    assert sorted(bytes.fromhex(result.input)) == sorted(b"deep\xff")


def test_what_only_a_changed_value_reaches_is_found() -> None:
    """It is behind a check that changed bytes hardly pass."""

    def take(raw: bytes) -> None:
        try:
            value = unpacked(raw)
        except Exception as error:
            raise MalformedMessage("x") from error
        if isinstance(value, list) and len(value) == 3 and value[:1] == ["a"]:
            assert value[1] != 2**64 - 1

    dressed = planted(take, dress=packed, values=[["a", 5, {"deep": [1, 2]}]])
    assert "AssertionError" in run_fuzz.run(dressed, 50_000).finding


def test_named_refusals_are_counted_and_are_no_findings() -> None:
    def take(raw: bytes) -> None:
        raise MalformedMessage("no")

    result = run_fuzz.run(planted(take), 500)
    assert (result.ok, result.refused, result.inputs) == (True, 500, 500)


def test_an_input_without_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_fuzz, "HANG_S", 1)
    monkeypatch.setattr(run_fuzz, "_SHRINK_TRIES", 2)

    def take(raw: bytes) -> None:
        while b"deep" in raw:
            try:
                time.sleep(0.01)
            except Exception:  # noqa: BLE001 - as a decoder that catches all would
                continue

    result = run_fuzz.run(planted(take), 1_000)
    assert "takes more than 1 s" in result.finding


def test_slow_inputs_are_found() -> None:
    def take(raw: bytes) -> None:
        end = time.thread_time() + 0.006
        while time.thread_time() < end:
            pass

    result = run_fuzz.run(planted(take), 200)
    assert "one of a hundred inputs takes" in result.finding


def test_memory_that_grows_is_found_and_what_is_renewed_is_not() -> None:
    held: list[bytes] = []
    result = run_fuzz.run(planted(lambda raw: held.append(bytes(20_000) + raw)), 2_000)
    assert "memory grew by" in result.finding
    held.clear()
    made: list[int] = []

    def make() -> Callable[[bytes], Any]:
        made.append(1)
        mine: list[bytes] = []
        return lambda raw: mine.append(raw)

    kept = Target("planted", make, [b"x"], renewed_after=100)
    assert run_fuzz.run(kept, 1_000).ok
    assert len(made) == 10


def test_a_seed_gives_the_same_inputs_and_they_are_bounded() -> None:
    def some(seed: int) -> list[bytes]:
        values = [["a", 5, {"deep": [1, 2]}]]
        inputs = Inputs(make_rng(seed), [b"sample" * 9], dress=packed, values=values)
        return [inputs.next() for _ in range(5_000)]

    assert some(1) == some(1) != some(2)
    assert max(map(len, some(1))) <= INPUT_BYTES_MAX + 1_000
    assert len(set(some(1))) > 3_000


# ---- by hand -------------------------------------------------------------------------------


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "run_fuzz.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_by_hand() -> None:
    done = fuzz("wire", "tasks.task", "--inputs", "200", "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["name"] for one in found} == {"wire.payload", "tasks.task"}
    assert all(one["inputs"] == 200 and not one["finding"] for one in found)
    timed = fuzz("wire", "--seconds", "0.3", "--json")
    assert json.loads(timed.stdout)["took_s"] >= 0.3
    assert set(fuzz("--list").stdout.split()) == set(targets())
    wrong = fuzz("nothing")
    assert wrong.returncode == 2
    assert "no target begins with nothing" in wrong.stderr
    assert fuzz("wire", "--inputs", "0").returncode == 2


# ---- at length -----------------------------------------------------------------------------


@pytest.mark.long
def test_every_decoder_bears_a_hundred_thousand_inputs() -> None:
    results = list(run_fuzz.run_all(sorted(targets()), 100_000, None, 1, 2))
    assert len(results) == len(targets())
    assert [one for one in results if not one.ok] == []
    assert all(one.inputs == 100_000 for one in results)
