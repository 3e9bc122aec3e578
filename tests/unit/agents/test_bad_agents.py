"""Every bad agent fails its attempt with a cause; the daemon never fails."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from agenthouse import CONFIG, ECHO, House, Open, lives

from swarmd.agents.attempts import Cause, InstanceState, Outcome
from swarmd.agents.config import AgentsConfig
from swarmd.agents.supervisor import open_supervisor
from swarmd.base.clock import BootClock
from swarmd.state.blobs.messages import BlobRef
from swarmd.wire.codec import unpack


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no licence')", "ValueError: no licence"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("def run(:\n", "SyntaxError"),
        ("x = 1\n", "AttributeError"),
        ("run = 5\n", "is not a function"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("import os; print('so long', flush=True); os._exit(7)", "exited with status 7"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import os\nfor fd in map(int, os.listdir('/proc/self/fd')):\n"
         "  try: fd > 2 and os.write(fd, b'junk' * 9)\n"
         "  except OSError: pass\nimport time; time.sleep(60)", "channel"),
    ],
)  # fmt: skip
async def test_a_crash_on_import_is_an_outcome(house: Open, code: str, said: str) -> None:
    async with house(code) as h:
        outcome = await h.run()
        assert not outcome.ok
        assert outcome.code == Cause.SPAWN_FAILED
        assert said in outcome.message
        await h.until(lambda: h.supervisor.instances() == [])
        if "so long" in code:
            assert outcome.logs == ("so long",)


async def test_an_import_that_hangs_is_killed(house: Open) -> None:
    config = AgentsConfig(start_timeout_s=0.3)
    async with house("import time; time.sleep(600)", config) as h:
        outcome = await h.run()
        assert outcome.code == Cause.SPAWN_FAILED
        assert "0.3 s" in outcome.message


async def test_a_bundle_that_cannot_be_had_is_an_outcome(house: Open) -> None:
    async with house(ECHO) as h:
        h.source.missing = True
        assert (await h.run()).code == "not_found"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('colour')", "KeyError: 'colour'"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def deep(n): return deep(n + 1)\n    deep(0)", "RecursionError"),
        ("class E(Exception):\n        def __str__(self): raise RuntimeError\n    raise E", "E"),
        ("raise ValueError('\\ud800')", "ValueError"),
    ],
)
async def test_what_an_agent_raises_fails_the_attempt_and_spares_the_process(
    house: Open, body: str, said: str
) -> None:
    code = f"def run(value, context):\n    if value: return value\n    {body}\n"
    async with house(code) as h:
        outcome = await h.run()
        assert outcome.code == Cause.RAISED
        assert said in outcome.message.splitlines()[0]
        assert (await h.run(5)).ok
        assert len(h.supervisor.instances()) == 1


@pytest.mark.parametrize(
    "body",
    [
        "return object()",
        "return {1, 2}",
        "return 2 ** 70",
        "x = []; x.append(x); return x",
        "return '\\ud800'",
        "return run",
        "return lambda: 1",
        "return b'x' * (64 * 1024 * 1024 + 1)",
        "return ['y' * 1024 * 1024] * 70",
    ],
)
async def test_a_result_that_cannot_travel_is_refused(house: Open, body: str) -> None:
    code = f"def run(value, context):\n    if value: return value\n    {body}\n"
    async with house(code) as h:
        outcome = await h.run()
        assert outcome.code == Cause.RESULT_REFUSED
        assert (await h.run(5)).ok


async def test_the_largest_result_travels(house: Open) -> None:
    async with house("def run(value, context):\n    return b'x' * (64 * 1024 * 1024 - 5)\n") as h:
        outcome = await h.run()
        assert outcome.ok
        assert len(outcome.result or b"") == 64 * 1024 * 1024


SPINS = {
    "python": "while True: pass",
    "c": "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "stubborn": "import signal, time\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    while True: time.sleep(60)",
}


@pytest.mark.parametrize("kind", sorted(SPINS))
async def test_a_timeout_kills_whatever_it_is_doing(house: Open, kind: str) -> None:
    code = f"def run(value, context):\n    if value: return value\n    {SPINS[kind]}\n"
    async with house(code) as h, trio.open_nursery() as nursery:
        pids: list[int] = []

        async def note() -> None:
            pids.append(await h.pid_of_busy())

        nursery.start_soon(note)
        outcome = await h.run(timeout_s=0.3)
        assert outcome.code == Cause.TIMEOUT
        assert "0.3 s" in outcome.message
        assert not lives(pids[0])
        assert (await h.run(5)).ok


async def test_a_timeout_kills_what_the_agent_forked(house: Open, tmp_path: Path) -> None:
    note = tmp_path / "child"
    code = (
        "import os, time\n"
        "def run(value, context):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        while True: time.sleep(60)\n"
        f"    open({str(note)!r}, 'w').write(str(child))\n"
        "    time.sleep(600)\n"
    )
    async with house(code) as h:
        assert (await h.run(timeout_s=0.4)).code == Cause.TIMEOUT
        child = int(note.read_text())
        await h.until(lambda: not lives(child), within_s=1.0)


async def test_a_forked_child_that_comes_back_does_not_answer(house: Open) -> None:
    code = (
        "import os, time\n"
        "def run(value, context):\n"
        "    if os.fork() == 0:\n"
        "        return 'child'\n"
        "    os.wait()\n"
        "    return 'parent'\n"
    )
    async with house(code) as h:
        for _ in range(3):
            assert unpack((await h.run()).result or b"") == "parent"
        assert len(h.supervisor.instances()) == 1


async def test_a_child_that_holds_the_channel_open_does_not_hide_the_end(house: Open) -> None:
    code = (
        "import os, time\n"
        "def run(value, context):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        time.sleep(3)\n"
        "        os._exit(0)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    async with house(code) as h:
        with trio.fail_after(2):
            outcome = await h.run()
        assert outcome.code == Cause.CRASHED
        assert "SIGKILL" in outcome.message


async def test_garbage_on_stdout_is_a_log_and_no_more(house: Open) -> None:
    code = (
        "import os, sys\n"
        "def run(value, context):\n"
        "    os.write(1, bytes(range(256)) * 40 + b'\\n')\n"
        "    os.write(2, b'\\x00\\x00\\x00\\x05hello\\x1b[31mred\\n')\n"
        "    print('x' * 100_000)\n"
        "    return value\n"
    )
    async with house(code) as h:
        for number in range(3):
            outcome = await h.run(number)
            assert outcome.ok
        texts = [line.text for line in h.supervisor.logs.lines("agent")]
        assert any("hello" in text for text in texts)
        assert all("\x1b" not in text and "\x00" not in text for text in texts)
        assert max(map(len, texts)) <= CONFIG.log_line_bytes_max + 3


async def test_a_flood_of_output_does_not_stop_the_daemon(house: Open) -> None:
    code = (
        "def run(value, context):\n"
        "    while True:\n"
        "        print('noise')\n"
        "        context.log('more noise')\n"
    )
    async with house(code) as h, trio.open_nursery() as nursery:
        nursery.start_soon(h.run)
        await h.pid_of_busy()
        await trio.sleep(0.3)
        gaps = []
        for _ in range(20):
            before = trio.current_time()
            await trio.sleep(0.01)
            gaps.append(trio.current_time() - before)
        nursery.cancel_scope.cancel()
        assert sorted(gaps)[10] < 0.1
        assert len(h.supervisor.logs.lines("agent")) <= CONFIG.log_lines_max


GARBAGE = {
    "bytes": "os.write(fd, bytes(range(100, 164)) * 100)",
    "length": "os.write(fd, b'\\xff\\xff\\xff\\xff')",
    "frame": "os.write(fd, b'\\x00\\x00\\x00\\x02\\x91\\x63')",
    "foreign answer": "os.write(fd, b'\\x00\\x00\\x00\\x05\\x93\\x12\\x7f\\xc4\\x00')",
}


def spoiling(write: str) -> str:
    """The code of an agent that does so with the socket of its channel, and then nothing more."""
    return (
        "import os, stat, time\n"
        "def run(value, context):\n"
        "    if value: return value\n"
        "    for fd in map(int, os.listdir('/proc/self/fd')):\n"
        "        try:\n"
        "            if stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        f"                {write}\n"
        "                print('spoilt', flush=True)\n"
        "        except OSError: pass\n"
        "    time.sleep(600)\n"
    )


@pytest.mark.parametrize("kind", sorted(GARBAGE))
async def test_garbage_on_the_channel_kills_the_process(house: Open, kind: str) -> None:
    async with house(spoiling(GARBAGE[kind])) as h:
        outcome = await h.run()
        assert outcome.code == Cause.GARBAGE
        assert (await h.run(5)).ok


async def test_a_frame_that_never_ends_lasts_until_the_timeout(house: Open) -> None:
    async with house(spoiling("os.write(fd, b'\\x00\\x00\\x10\\x00' + b'd' * 100)")) as h:
        assert (await h.run(5)).ok  # A process is there: its start is not timed.
        outcome = await h.run(timeout_s=1.0)
        assert outcome.code == Cause.TIMEOUT
        assert "spoilt" in str(h.supervisor.logs.lines("agent"))
        assert (await h.run(5)).ok


async def test_garbage_written_while_idle_costs_no_attempt(house: Open) -> None:
    code = (
        "import os, stat, threading, time\n"
        "def spoil():\n"
        "    time.sleep(0.05)\n"
        "    for fd in map(int, os.listdir('/proc/self/fd')):\n"
        "        try:\n"
        "            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b'?' * 99)\n"
        "        except OSError: pass\n"
        "def run(value, context):\n"
        "    threading.Thread(target=spoil).start()\n"
        "    return value\n"
    )
    async with house(code) as h:
        assert (await h.run(1)).ok
        await trio.sleep(0.15)
        assert (await h.run(2)).ok


async def test_a_process_that_closes_its_channel_is_killed(house: Open) -> None:
    closes = "os.closerange(3, 4_096)"
    code = f"import os, time\ndef run(value, context):\n    {closes}\n    time.sleep(600)\n"
    async with house(code) as h:
        # A read under way keeps a closed descriptor's socket open: then the timeout sees to it.
        outcome = await h.run(timeout_s=1.0)
        assert outcome.code in (Cause.CRASHED, Cause.TIMEOUT)
        await h.until(lambda: not any(i.task_id for i in h.supervisor.instances()))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_a_process_killed_at_work_fails_the_attempt_with_that_cause(
    house: Open, how: signal.Signals
) -> None:
    async with (
        house("import time\ndef run(v, c):\n    time.sleep(v)\n    return v\n") as h,
        trio.open_nursery() as nursery,
    ):
        outcomes: list[Outcome] = []

        async def work() -> None:
            outcomes.append(await h.run(600))

        nursery.start_soon(work)
        pid = await h.pid_of_busy()
        os.kill(pid, how)
        await h.until(lambda: bool(outcomes))
        assert outcomes[0].code == Cause.CRASHED
        assert how.name in outcomes[0].message
        await replaced(h, pid)


async def replaced(h: House, pid: int) -> None:
    """Another process takes the place of `pid` at once, without an attempt asking."""
    await h.until(lambda: others(h, pid) != [], within_s=1.0)
    await h.until(lambda: others(h, pid) == [InstanceState.IDLE])


def others(h: House, pid: int) -> list[InstanceState]:
    return [info.state for info in h.supervisor.instances() if info.pid != pid]


async def test_an_idle_process_that_dies_is_replaced(house: Open) -> None:
    async with house(ECHO) as h:
        await h.run()
        pid = h.supervisor.instances()[0].pid
        os.kill(pid, signal.SIGKILL)
        await replaced(h, pid)


async def test_a_process_that_keeps_dying_is_replaced_ever_more_slowly(house: Open) -> None:
    code = (
        "import os, threading, time\n"
        "def die():\n"
        "    time.sleep(0.02)\n"
        "    os._exit(1)\n"
        "threading.Thread(target=die).start()\n" + ECHO
    )
    async with house(code) as h:
        await h.run(1)
        await trio.sleep(1.2)
        assert h.supervisor._spawned <= 6


PARENT = """
import sys, trio
from pathlib import Path
from swarmd.agents.config import AgentsConfig
from swarmd.agents.supervisor import AttemptRun, open_supervisor
from swarmd.base.clock import BootClock
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.blobs.naming import hash_of

class Source:
    async def folder_of(self, bundle):
        return Path(sys.argv[1])

async def main():
    async with open_supervisor(
        AgentsConfig(), folder=Path(sys.argv[2]), bundles=Source(), clock=BootClock()
    ) as supervisor:
        await supervisor.run(AttemptRun(
            "t", 1, 1, "a", "1", BlobRef(hash_of(b""), 0), "agent:run", b"\\xc0", timeout_s=600))

trio.run(main)
"""


@pytest.mark.parametrize("kind", ["python", "c", "stubborn"])
def test_no_process_outlives_a_killed_daemon_by_a_second(tmp_path: Path, kind: str) -> None:
    code = (
        "import os, sys\n"
        "def run(value, context):\n"
        "    child = os.fork()\n"
        "    if child:\n"
        f"        note = open({str(tmp_path / 'pids')!r}, 'w')\n"
        "        note.write(f'{os.getpid()} {child}\\n')\n"
        "        note.close()\n"
        f"    {SPINS[kind]}\n"
    )
    (tmp_path / "agent.py").write_text(code)

    async def story() -> None:
        command = [sys.executable, "-c", PARENT, str(tmp_path), str(tmp_path / "agents")]
        daemon = await trio.lowlevel.open_process(command)
        try:
            pids: list[int] = []
            with trio.fail_after(20):
                while not pids:
                    note = tmp_path / "pids"
                    text = note.read_text() if note.exists() else ""
                    pids = [int(word) for word in text.split()] if text.endswith("\n") else []
                    await trio.sleep(0.01)
            assert all(map(lives, pids))
            daemon.kill()
            with trio.fail_after(1.0):
                while any(map(lives, pids)):  # noqa: ASYNC110
                    await trio.sleep(0.005)
        finally:
            daemon.kill()
            await daemon.wait()

    trio.run(story)


async def test_what_an_agent_leaves_behind_stops_no_start(tmp_path: Path) -> None:
    """Folders deeper than any path, and a folder that is still written to."""

    class Source:
        async def folder_of(self, bundle: BlobRef) -> Path:
            raise AssertionError("nothing is run here")

    scratch = tmp_path / "scratch" / "1"
    scratch.mkdir(parents=True)
    here = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(2_000):
        os.mkdir("x", dir_fd=here)
        below = os.open("x", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    # Whoever still stands in it may go on to write there.
    async with open_supervisor(
        AgentsConfig(), folder=tmp_path, bundles=Source(), clock=BootClock()
    ):
        assert list((tmp_path / "scratch").iterdir()) == []
        with trio.fail_after(10):
            while len(os.listdir(tmp_path)) > 1:  # noqa: ASYNC110 - a thread deletes it
                await trio.sleep(0.01)
    os.close(here)


async def test_an_agents_environment_has_no_code_run_before_it_is_confined(
    house: Open, tmp_path: Path
) -> None:
    early = tmp_path / "early"
    early.mkdir()
    (early / "sitecustomize.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    code = "import os\ndef run(value, context):\n    return os.environ['PYTHONPATH']"
    async with house(code) as h:
        outcome = await h.run(env={"PYTHONPATH": str(early)})
    assert outcome.ok
    assert not (tmp_path / "ran").exists()


LOOKS_AT_ITSELF = """
import ctypes, os, subprocess
def run(value):
    dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
    with open("/proc/self/maps") as maps, open("/dev/null") as null:
        mapped = "python" in maps.read()
        listed = str(null.fileno()) in os.listdir("/proc/self/fd")
    started = subprocess.run(["cat", "/proc/self/comm"], capture_output=True, text=True)
    return [dumpable, mapped, listed, started.stdout]
"""


async def test_nobody_looks_into_an_agent_but_itself(house: Open) -> None:
    async with house(LOOKS_AT_ITSELF) as h:
        outcome = await h.run()
        assert outcome.ok, outcome.message
        assert outcome.result is not None
        assert unpack(outcome.result) == [0, True, True, "cat\n"]
