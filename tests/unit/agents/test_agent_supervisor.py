"""Real worker processes: turns, reuse, replacement, cancel, environment, cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from agenthouse import CONFIG, ECHO, Open, lives, resident_kib
from msgspec import structs

from swarmd.agents import supervisor
from swarmd.agents.attempts import InstanceState
from swarmd.agents.config import AgentsConfig
from swarmd.base.errors import Busy, ShuttingDown
from swarmd.observe.redaction import Redactor
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.blobs.naming import hash_of
from swarmd.wire.codec import unpack


async def test_an_agent_answers_and_its_process_is_used_again(house: Open) -> None:
    async with house("import os\ndef run(value, context):\n    return [value, os.getpid()]\n") as h:
        first = await h.run({"a": [1, b"x", None, 2.5]})
        second = await h.run("again")
        assert first.ok
        assert second.ok
        assert unpack(first.result or b"")[0] == {"a": [1, b"x", None, 2.5]}
        assert unpack(first.result or b"")[1] == unpack(second.result or b"")[1]
        (info,) = h.supervisor.instances()
        assert (info.state, info.attempts) == (InstanceState.IDLE, 2)


async def test_context_tells_the_attempt_and_passes_on_log_and_progress(house: Open) -> None:
    code = (
        "def run(value, context):\n"
        "    context.log('half')\n"
        "    context.progress(1, 2)\n"
        "    context.progress(2, 2)\n"
        "    print('printed')\n"
        "    return [context.task_id, context.idempotency_key, context.attempt,"
        " context.fence, context.cancelled]\n"
    )
    seen: list[tuple[float, float]] = []
    async with house(code) as h:
        attempt = h.attempt(None, task_id="t", attempt=3, fence=99)
        outcome = await h.supervisor.run(attempt, lambda done, total: seen.append((done, total)))
        assert unpack(outcome.result or b"") == ["t", "t", 3, 99, False]
        assert sorted(outcome.logs) == ["half", "printed"]
        assert seen == [(1.0, 2.0), (2.0, 2.0)]
        lines = h.supervisor.logs.lines("agent")
        assert {(line.task_id, line.attempt) for line in lines} == {("t", 3)}


async def test_an_agent_may_leave_the_context_out(house: Open) -> None:
    async with house("def run(value):\n    return value + 1\n") as h:
        assert unpack((await h.run(1)).result or b"") == 2


async def test_one_attempt_at_a_time_per_process_and_the_rest_wait_in_order(house: Open) -> None:
    code = (
        "import time\n"
        "def run(value, context):\n"
        "    began = time.monotonic()\n"
        "    time.sleep(0.05)\n"
        "    return [value, began, time.monotonic()]\n"
    )
    spans: list[tuple[int, float, float]] = []
    async with house(code) as h:

        async def one(number: int) -> None:
            value = unpack((await h.run(number, concurrency=2)).result or b"")
            spans.append((value[0], value[1], value[2]))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, number)
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert len(h.supervisor.instances()) == 2
    starts = [number for number, _, _ in sorted(spans, key=lambda span: span[1])]
    assert all(abs(number - place) <= 1 for place, number in enumerate(starts)), starts
    for _, began, _ in spans:
        assert sum(b <= began < e for _, b, e in spans) <= 2


async def test_too_many_waiting_are_refused(house: Open) -> None:
    config = AgentsConfig(attempts_max=1, waiting_max=1)
    async with (
        house("import time\ndef run(v, c):\n    time.sleep(5)\n", config) as h,
        trio.open_nursery() as nursery,
    ):
        for _ in range(2):
            nursery.start_soon(h.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(Busy):
            await h.run()
        nursery.cancel_scope.cancel()


async def test_cancel_lets_a_willing_agent_finish_and_keeps_its_process(house: Open) -> None:
    code = (
        "import time\n"
        "def run(value, context):\n"
        "    while value and not context.cancelled: time.sleep(0.005)\n"
        "    return 'done'\n"
    )
    async with house(code) as h:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(h.run, 1)
            pid = await h.pid_of_busy()
            nursery.cancel_scope.cancel()
        assert (await h.run(0)).ok
        assert [i.pid for i in h.supervisor.instances()] == [pid]


async def test_a_thread_left_behind_that_asks_for_cancel_takes_no_attempt_away(
    house: Open,
) -> None:
    code = (
        "import threading\n"
        "def ask(context):\n"
        "    while not context.cancelled: pass\n"
        "def run(value, context):\n"
        "    if value < 3: threading.Thread(target=ask, args=(context,), daemon=True).start()\n"
        "    return value\n"
    )
    async with house(code) as h:
        for number in range(20):
            assert unpack((await h.run(number)).result or b"") == number
        assert len(h.supervisor.instances()) == 1


async def test_a_cancel_that_comes_too_late_is_not_the_next_attempts(house: Open) -> None:
    code = (
        "import time\n"
        "def run(value, context):\n"
        "    time.sleep(value)\n"
        "    return context.cancelled if value == 0 else None\n"
    )
    async with house(code) as h:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(h.run, 0.1)
            pid = await h.pid_of_busy()
            nursery.cancel_scope.cancel()
        assert unpack((await h.run(0)).result or b"") is False
        assert h.supervisor.instances()[0].pid == pid


async def test_cancel_kills_an_unwilling_agent_before_it_returns(house: Open) -> None:
    async with house("import time\ndef run(v, c):\n    time.sleep(600)\n") as h:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(h.run)
            pid = await h.pid_of_busy()
            nursery.cancel_scope.cancel()
        assert not lives(pid)
        assert h.supervisor.instances() == []


async def test_a_large_payload_that_is_never_read_can_be_cancelled(house: Open) -> None:
    code = "import os, signal\ndef run(v, c):\n    return len(v)\n"
    async with house(code) as h:
        await h.run("warm")
        os.kill(h.supervisor.instances()[0].pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(h.run, b"x" * 32 * 1024 * 1024)
            await h.pid_of_busy()
            nursery.cancel_scope.cancel()
        assert h.supervisor.instances() == []
        assert unpack((await h.run(b"x" * 32 * 1024 * 1024)).result or b"") == 32 * 1024 * 1024


async def test_unused_processes_end(house: Open) -> None:
    async with house(ECHO, AgentsConfig(idle_s=0.2)) as h:
        await h.run()
        pid = h.supervisor.instances()[0].pid
        await h.until(lambda: not lives(pid) and not h.supervisor._pools, within_s=3.0)
        assert (await h.run(3)).ok


async def test_the_longest_unused_makes_room(house: Open) -> None:
    async with house(ECHO, AgentsConfig(attempts_max=2, instances_max=2)) as h:
        for name in ("a", "b", "c"):
            assert (await h.run(1, agent=name)).ok
        assert [i.agent for i in h.supervisor.instances()] == ["b", "c"]


async def test_a_replaced_agents_processes_end(house: Open) -> None:
    async with house(ECHO) as h:
        await h.run(1)
        old = h.supervisor.instances()[0].pid
        new = BlobRef(hash_of(b"new"), 1)
        await h.run(1, bundle=new)
        h.supervisor.retire("agent", keep=new)
        await h.until(lambda: not lives(old))
        assert [i.attempts for i in h.supervisor.instances()] == [1]


async def test_a_removed_agents_busy_process_ends_after_its_attempt(house: Open) -> None:
    code = "import time\ndef run(v, c):\n    time.sleep(v)\n    return v\n"
    async with house(code) as h:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(h.run, 0.2)
            pid = await h.pid_of_busy()
            h.supervisor.retire("agent")
        await h.until(lambda: not lives(pid))
        assert h.supervisor.instances() == []


async def test_what_nobody_uses_is_not_replaced(house: Open) -> None:
    async with house(ECHO, AgentsConfig(idle_s=0.6)) as h:
        await h.run(1)
        (pool,) = h.supervisor._pools.values()
        pool.used_at -= 10
        os.kill(h.supervisor.instances()[0].pid, signal.SIGKILL)
        await h.until(lambda: not h.supervisor.instances())
        await trio.sleep(0.3)
        assert h.supervisor._spawned == 1


async def test_nothing_starts_while_it_closes(house: Open) -> None:
    async with house(ECHO) as h:
        await h.run(1)
        assert h.supervisor.bundles() == {hash_of(b"x")}
    with pytest.raises(ShuttingDown):
        await h.run(1)


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="instances_max"):
        AgentsConfig(attempts_max=10, instances_max=5)


async def test_children_see_a_clean_environment(
    house: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARMD_JOIN_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    code = "import os\ndef run(v, c):\n    return [dict(os.environ), os.getcwd(), os.getpgrp()]\n"
    async with house(code) as h:
        value = unpack((await h.run(env={"COLOUR": "red"})).result or b"")
        environ, folder, group = value
        # Python itself may coerce the locale's category.
        assert set(environ) - {"LC_CTYPE"} == {"PATH", "HOME", "LANG", "COLOUR"}
        assert "scratch" in folder
        assert group == h.supervisor.instances()[0].pid


async def test_only_its_own_descriptors_reach_a_child(house: Open) -> None:
    code = "import os\ndef run(v, c):\n    return len(os.listdir('/proc/self/fd'))\n"
    async with house(code) as h:
        # Standard three, channel, lifeline, and the listing itself.
        assert unpack((await h.run()).result or b"") == 6


async def test_what_an_agent_starts_does_not_inherit_the_channel(house: Open) -> None:
    code = (
        "import subprocess\n"
        "def run(v, c):\n"
        "    out = subprocess.run(['ls', '/proc/self/fd'], capture_output=True, close_fds=False)\n"
        "    return len(out.stdout.split())\n"
    )
    async with house(code) as h:
        assert unpack((await h.run()).result or b"") <= 4


async def test_scratch_folders_go_with_their_process(house: Open, tmp_path: Path) -> None:
    async with house("def run(v, c):\n    open('mess', 'w').write('x')\n    return 1\n") as h:
        await h.run()
        assert len(list((tmp_path / "agents" / "scratch").iterdir())) == 1
    assert list((tmp_path / "agents" / "scratch").iterdir()) == []


async def test_no_process_and_no_descriptor_stays_behind(house: Open) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with house("import time\ndef run(v, c):\n    time.sleep(v)\n    return v\n") as h:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(h.run, 600)
            await h.run(0)
            pids = [i.pid for i in h.supervisor.instances()]
            assert len(pids) == 2
            nursery.cancel_scope.cancel()
        await h.run(0)
        pids += [i.pid for i in h.supervisor.instances()]
    assert not any(map(lives, pids))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_a_worker_starts_fast_and_small(house: Open) -> None:
    async with house(ECHO) as h:
        await h.run()
        times = []
        for number in range(3):
            began = trio.current_time()
            assert (await h.run(agent=f"agent-{number}")).ok
            times.append(trio.current_time() - began)
        pid = h.supervisor.instances()[0].pid
        assert resident_kib(pid) < 15 * 1024
        # 0.05 s on an idle machine; the bound leaves room for a busy one.
        assert min(times) < 0.5


def test_the_child_imports_nothing_but_the_standard_library_and_msgpack() -> None:
    listing = subprocess.run(
        [sys.executable, "-P", "-c",
         "import sys; before = set(sys.modules); import swarmd.sdk.worker;"
         "print(*(m for m in set(sys.modules) - before))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    own = {name.split(".")[0] for name in listing} - set(sys.stdlib_module_names)
    # msgpack's compiled part registers two modules of its own.
    assert {name for name in own if "cython" not in name} == {"swarmd", "msgpack"}
    assert {name for name in listing if name.startswith("swarmd.")} == {
        "swarmd.sdk", "swarmd.sdk.context", "swarmd.sdk.protocol", "swarmd.sdk.worker",
    }  # fmt: skip


# ---- environments -----------------------------------------------------------------------

TELL = """
import os

def run(value, context):
    password = os.environ["PASSWORD"]
    if value == "raise":
        raise ValueError(("x" * 4_090 + password) + "\\n" + "y" * 9_000 + password)
    if value == "log":
        print("it is", password, flush=True)
        context.log("x" * 16_380 + password)
    return [len(password), os.getpid()]
"""
REFERS = {"PASSWORD": "secret:db"}
RAISES_WITH_A_SECRET = """
import os
def run(value):
    before, after = value
    raise ValueError("x" * before + os.environ["PASSWORD"] + "y" * after)
"""


async def test_a_secret_is_given_and_never_told(house: Open) -> None:
    async with house(TELL) as h:
        h.environments.secrets["db"] = ("the password of all", 5)
        assert unpack((await h.run("log", env=REFERS)).result or b"")[0] == 19
        raised = await h.run("raise", env=REFERS)
        texts = [raised.message, *(line.text for line in h.supervisor.logs.lines("agent"))]
        assert any("it is [secret db]" in text for text in texts)
        for text in texts:
            assert not [at for at in range(12) if "the password of all"[at : at + 4] in text]


async def test_what_could_not_be_opened_for_now_has_not_begun(house: Open) -> None:
    async with house(ECHO) as h:
        h.environments.secrets["db"] = ("a password", 5)
        h.environments.reachable = False
        outcome = await h.run(1, env=REFERS)
        assert (outcome.ok, outcome.code, outcome.not_begun) == (False, "unavailable", True)
        h.environments.reachable = True
        assert (await h.run(1, env=REFERS)).ok
        del h.environments.secrets["db"]
        h.environments.secrets["other"] = ("a password", 5)
        outcome = await h.run(1, env={"OTHER": "secret:db"})
        assert (outcome.code, outcome.not_begun) == ("not_found", False)


async def test_many_long_secrets_do_not_hold_up_the_loop(
    house: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked for is made in another thread."""
    made_in = []

    def make(values: Any) -> Redactor:
        made_in.append(threading.get_ident())
        return Redactor(values)

    monkeypatch.setattr(supervisor, "Redactor", make)
    async with house(ECHO) as h:
        h.environments.secrets["db"] = ("a password", 5)
        assert (await h.run(1, env=REFERS)).ok
        assert (await h.run(1)).ok
    assert len(made_in) == 1
    assert threading.get_ident() not in made_in


@pytest.mark.parametrize("length", [0, 4_040, 4_080, 4_095, 4_500, 7_900, 20_000])
async def test_no_part_of_a_secret_is_left_where_an_error_was_cut(house: Open, length: int) -> None:
    """Wherever the value is in a line of that length, whether or not the story was cut, too."""
    value = "The=Password/Of+All=These"
    async with house(RAISES_WITH_A_SECRET) as h:
        h.environments.secrets["db"] = (value, 5)
        places = {0, length - 60, length // 2, *range(3_700, min(length, 4_120), 20)}
        for before in sorted(place for place in places if 0 <= place <= length):
            outcome = await h.run([before, max(0, length - before)], env=REFERS)
            assert outcome.message.startswith("ValueError: ")
            parts = {value[at : at + 4] for at in range(len(value) - 3)}
            assert not [part for part in parts if part in outcome.message]


async def test_a_process_with_an_old_secret_takes_no_more_attempts(house: Open) -> None:
    async with house(TELL) as h:
        h.environments.secrets["db"] = ("first value", 5)
        first = unpack((await h.run(env=REFERS)).result or b"")
        assert unpack((await h.run(env=REFERS)).result or b"") == first
        h.environments.secrets["db"] = ("another value", 6)
        second = unpack((await h.run(env=REFERS)).result or b"")
        assert second[0] == len("another value")
        assert second[1] != first[1]
        await h.until(lambda: not lives(first[1]))


async def test_an_idle_process_with_an_old_secret_ends_by_itself(house: Open) -> None:
    async with house(TELL, structs.replace(CONFIG, idle_s=0.4)) as h:
        h.environments.secrets["db"] = ("first value", 5)
        _, pid = unpack((await h.run(env=REFERS)).result or b"")
        h.environments.secrets["db"] = ("another value", 6)
        await h.until(lambda: not lives(pid), within_s=5)


async def test_what_cannot_be_opened_is_an_outcome(house: Open) -> None:
    async with house(TELL) as h:
        outcome = await h.run(env=REFERS)
        assert (outcome.ok, outcome.code) == (False, "not_found")
        assert "no secret db" in outcome.message
        h.environments.secrets["db"] = ("now it is there", 5)
        assert (await h.run(env=REFERS)).ok
