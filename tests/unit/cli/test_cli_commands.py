"""swarmctl against a gateway in a thread: what is printed, and with which exit code."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))

from gateway_fakes import (
    FakeControl,
    FakeMesh,
    FakeStore,
    FakeTasks,
    LiveGateway,
    make_services,
    node_id,
    wait_until,
)

from swarmd.base.ids import to_text
from swarmd.cli.common import run_program
from swarmd.cli.swarmctl import swarmctl
from swarmd.client import Client
from swarmd.identity.entries import AddToken, Policy, open_entry
from swarmd.identity.epochs import Chain
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import decode_token
from swarmd.mesh.discovery.adverts import InterfaceFacts
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.mesh.trust import open_trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft.messages import PIN_PREFIX, PINS_MAX
from swarmd.state.raft.seats import pinned


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway(make_services(tmp_path)) as gateway:
        yield gateway


@pytest.fixture
def ctl(
    live: LiveGateway, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.setenv("SWARMCTL_SOCKET", live.socket)

    def run(*arguments: str) -> Ran:
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_program(swarmctl, "swarmctl", list(arguments))
        out, err = capsysbinary.readouterr()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0, out.decode(), err.decode())

    return run


# ---- the swarm ------------------------------------------------------------------------


def test_status_says_it_in_words_and_in_json(ctl: Run) -> None:
    ran = ctl("status")
    assert ran.code == 0
    assert "swarm        lab" in ran.out
    assert "members      3 alive of 3" in ran.out
    assert "voters       n1, n2, n3; 1 may be lost" in ran.out
    assert "any one node may be lost" in ran.out
    found = ctl("status", "--json").json
    assert (found["alive"], found["coordinator"], len(found["store"]["voters"])) == (3, "n1", 3)
    assert ctl("--json", "status").json["alive"] == 3


def test_members_is_a_table_of_at_most_80_columns(ctl: Run) -> None:
    ran = ctl("members")
    heads, first, *_ = ran.out.splitlines()
    assert heads.split() == ["NAME", "ADDRESS", "STATE", "ROLES", "VERSION", "EXPIRES"]
    assert first.split() == [
        "n1",
        "127.0.0.1:7575",
        "alive",
        "coordinator,worker",
        "0.1.0",
        "20",
        "d",
    ]
    assert max(map(len, ran.out.splitlines())) <= 80
    assert [one["name"] for one in ctl("members", "--json").json] == ["n1", "n2", "n3"]


def test_doctor_prints_findings_and_fails_if_one_does(ctl: Run, live: LiveGateway) -> None:
    live.services.mesh.membership.found = live.services.mesh.membership.members()[:1]  # type: ignore
    live.services.mesh.report = [  # type: ignore[union-attr]
        InterfaceFacts("lo", ("127.0.0.1",), problem="no multicast")
    ]
    ran = ctl("doctor")
    assert ran.code == 1
    assert "fail mDNS lo" in ran.out
    assert "-> check that the interface" in ran.out
    assert "nft add rule" in ran.out or "ufw allow" in ran.out or "iptables" in ran.out
    found = ctl("doctor", "--json").json
    assert {one["name"] for one in found["checks"]} > {"daemon", "port", "clock", "quorum"}


def test_stop_waits_for_the_end(ctl: Run, live: LiveGateway) -> None:
    ran = ctl("stop")
    assert (ran.code, ran.out) == (0, "stopped; `swarmd` brings it back\n")
    wait_until(lambda: not os.path.exists(live.socket))


def test_leave_warns_when_forced(ctl: Run, live: LiveGateway) -> None:
    assert isinstance(live.services.control, FakeControl)
    live.services.control.refuse = True
    refused = ctl("leave")
    assert refused.code == 1
    assert "acknowledged data" in refused.err
    ran = ctl("leave", "--force")
    assert ran.code == 0
    assert "warning: some data is lost" in ran.err


# ---- the strong store -----------------------------------------------------------------


@pytest.fixture
def store(live: LiveGateway) -> FakeStore:
    """Of a voter that leads; the others do not answer."""
    assert isinstance(live.services.mesh, FakeMesh)
    assert isinstance(live.services.store, FakeStore)
    live.services.mesh.link = MemoryNetwork().link(node_id("n1"))
    live.services.store.lead("n2", "n3")
    return live.services.store


def test_raft_status_tells_every_log_and_names_who_is_missing(ctl: Run, store: FakeStore) -> None:
    ran = ctl("raft", "status")
    assert ran.code == 0
    rows = [line.split() for line in ran.out.splitlines()]
    assert rows[0] == ["NODE", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "SILENCE"]
    assert rows[1] == ["n1", "leader", "3", "40", "41", "-", "-"]
    assert rows[3] == ["n3", "missing", "-", "-", "-", "1", "20", "ms"]
    assert "journal      5 KiB, up to entry 42" in ran.out
    assert "snapshot     ends at entry 30" in ran.out
    assert "fsync        last 0.4 ms, slowest 12.3 ms" in ran.out
    assert "n2 is missing: " in ran.err
    found = ctl("raft", "status", "--json").json
    assert found["missing"] == ["n2", "n3"]
    assert [one["lag"] for one in found["voters"]] == [None, 0, 1]
    store.log = None
    assert "n1, no voter" in ctl("raft", "status").out


def test_the_coordinator_is_shown_and_changed(ctl: Run, store: FakeStore) -> None:
    assert "fence        7" in ctl("coordinator", "show").out
    assert ctl("coordinator", "transfer").out == "n2 coordinates\n"
    assert ctl("coordinator", "transfer", "n1", "--json").json == {"coordinator": "n1"}
    assert ctl("coordinator", "transfer", "nobody").code == 1
    store.no_quorum = True
    nobody = ctl("coordinator", "show")
    assert nobody.code == 4
    assert "nobody coordinates now" in nobody.err


def test_voters_are_listed_pinned_and_unpinned(ctl: Run, store: FakeStore) -> None:
    rows = [line.split() for line in ctl("voter", "list").out.splitlines()]
    assert rows[0] == ["NODE", "STATE", "SEAT", "PINNED", "HOST"]
    assert rows[1] == ["n1", "alive", "coordinator", "-", "127.0.0.1"]
    assert rows[2] == ["n2", "alive", "voter", "-", "127.0.0.1"]
    store._voters.pop()
    assert ctl("voter", "pin", "n1").out == "n1 keeps its seat\n"
    assert "n3 gets a seat at the next change" in ctl("voter", "pin", "n3").out
    assert ctl("voter", "pin", "n3").code == 0, "again"
    third = ctl("voter", "list").out.splitlines()[3].split()
    assert third == ["n3", "alive", "spare", "yes", "127.0.0.1"]
    assert [one["pinned"] for one in ctl("voter", "list", "--json").json] == [True, False, True]
    assert ctl("voter", "unpin", "n3").out == "n3 is not pinned\n"
    assert ctl("voter", "unpin", "n3", "--json").json["pinned"] is False
    assert pinned(store.state) == [node_id("n1")]
    unknown = ctl("voter", "pin", "n9")
    assert (unknown.code, "no member is called 'n9'" in unknown.err) == (1, True)


def test_pins_are_bounded_and_of_members_that_may_vote(ctl: Run, store: FakeStore) -> None:
    for number in range(PINS_MAX):
        store.state._set(PIN_PREFIX + node_id(f"gone{number}"), b"", 0)
    full = ctl("voter", "pin", "n1")
    assert (full.code, "unpin one first" in full.err) == (1, True)
    gone = to_text(node_id("gone0"))
    assert ctl("voter", "unpin", gone).code == 0, "also who is no member any more"
    assert ctl("voter", "pin", "n1").code == 0


def test_a_recovery_is_confirmed_and_signed_by_the_right_key(
    ctl: Run, store: FakeStore, tmp_path: Path
) -> None:
    path, wrong = tmp_path / "lab.recovery.key", tmp_path / "wrong.key"
    store.recovery_key.save(path)
    SigningKey.from_seed(b"w" * 32).save(wrong)
    recover = ("voter", "recover", "--recovery-key")
    needless = ctl(*recover, str(path), "--yes", "lab")
    assert (needless.code, "nothing to recover from" in needless.err) == (1, True)
    store.no_quorum = True
    unsure = ctl(*recover, str(path), "--yes", "bal")
    assert (unsure.code, "nothing is changed" in unsure.err) == (2, True)
    assert "is lost for ever" in unsure.err
    assert ctl(*recover, str(path), "--json").code == 2
    assert store.no_quorum
    refused = ctl(*recover, str(wrong), "--yes", "lab")
    assert (refused.code, "is not the recovery key" in refused.err) == (2, True)
    done = ctl(*recover, str(path), "--yes", "lab")
    assert (done.code, done.out) == (0, "n1 goes on alone from revision 0, with 0 keys\n")


# ---- keys -----------------------------------------------------------------------------


def test_kv(ctl: Run, tmp_path: Path) -> None:
    assert ctl("kv", "put", "colour", "blue").out == "colour is at revision 1\n"
    assert ctl("kv", "get", "colour").out == "blue\n"
    assert "colour  1         blue" in ctl("kv", "list").out
    wrong = ctl("kv", "put", "colour", "red", "--expect", "9")
    assert wrong.code == 1
    assert "is at revision 1; expected revision 9" in wrong.err
    (tmp_path / "value").write_bytes(b"\x00\xff")
    assert ctl("kv", "put", "raw", "--file", str(tmp_path / "value")).code == 0
    assert ctl("kv", "get", "raw", "--json").json["value"] == "AP8="
    assert ctl("kv", "delete", "colour").out == "colour is deleted\n"
    gone = ctl("kv", "get", "colour")
    assert (gone.code, gone.err) == (1, "swarmctl: there is no key 'colour'\n")
    assert ctl("kv", "put", "colour").code == 2


def test_no_quorum_is_exit_code_4_and_told_in_json_too(ctl: Run, live: LiveGateway) -> None:
    assert isinstance(live.services.store, FakeStore)
    live.services.store.no_quorum = True
    ran = ctl("kv", "put", "a", "b", "--json")
    assert ran.code == 4
    assert ran.json["error"]["code"] == "no_quorum"
    assert ran.err.count("\n") == 1


# ---- agents ---------------------------------------------------------------------------


def write_agent(folder: Path, text: str = "") -> Path:
    (folder / "adder.py").write_text("def run(input, context):\n    return sum(input)\n")
    path = folder / "adder.toml"
    path.write_text(text or 'name = "adder"\nversion = "1"\nentry = "adder:run"\n')
    return path


def test_agents(ctl: Run, live: LiveGateway, tmp_path: Path) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    path = write_agent(folder)
    assert ctl("agent", "deploy", str(path)).out.startswith("deployed adder 1 (")
    assert "adder  1        python   1" in ctl("agent", "list").out
    assert "entry adder:run" in ctl("agent", "show", "adder").out
    live.services.agents.lines = [  # type: ignore[union-attr]
        (node_id("n2"), SimpleNamespace(wall_ms=5, task_id="t", text="hello")),
        (node_id("n3"), None),
    ]
    logs = ctl("agent", "logs", "adder")
    assert "n2 t hello" in logs.out
    assert "no answer from n3" in logs.err
    assert ctl("agent", "remove", "adder").out == "removed adder\n"
    assert ctl("agent", "show", "adder").code == 1


def test_a_malformed_agent_file_names_line_and_key(ctl: Run, tmp_path: Path) -> None:
    path = write_agent(tmp_path, 'name = "adder"\nversion = "1"\nentry = "adder"\n')
    ran = ctl("agent", "deploy", str(path))
    assert ran.code == 2
    assert f"{path}:3: entry: expected module:function" in ran.err
    assert ran.err.count("\n") == 1
    missing = ctl("agent", "deploy", str(tmp_path / "none.toml"))
    assert (missing.code, missing.err.count("\n")) == (2, 1)


# ---- run ------------------------------------------------------------------------------


def test_run_prints_results(ctl: Run, tmp_path: Path) -> None:
    assert ctl("run", "echo", "--input", '{"n": 3}').out == '{"n": 3}\n'
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.txt").write_text("world")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    ran = ctl("run", "echo", *files)
    assert 'a.txt: {"name": "a.txt", "content": "hello"}' in ran.out
    lines = [json.loads(line) for line in ctl("run", "echo", *files, "--json").out.splitlines()]
    assert {one["name"] for one in lines} == {"a.txt", "b.txt"}
    assert {one["state"] for one in lines} == {"succeeded"}


def test_run_reports_failures_and_exits_1(ctl: Run) -> None:
    ran = ctl("run", "broken", "--input", "1")
    assert ran.code == 1
    assert "dead on n2 after 4 attempts: agent_raised: ValueError: no" in ran.err
    refused = ctl("run", "nobody", "--input", "1")
    assert (refused.code, "there is no agent 'nobody'" in refused.err) == (1, True)


def test_run_detached_prints_ids_that_stay(ctl: Run, live: LiveGateway) -> None:
    task_id = ctl("run", "slow", "--input", "1", "--detach", "--key", "k").out.strip()
    assert ctl("run", "slow", "--input", "1", "--detach", "--key", "k").out.strip() == task_id
    assert f"id        {task_id}" in ctl("task", "show", task_id).out
    assert ctl("task", "cancel", task_id).out == f"{task_id} is cancelled\n"
    listed = ctl("task", "list", "--all", "--json").json["tasks"]
    assert [(one["id"], one["state"]) for one in listed] == [(task_id, "cancelled")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "echo"], "give files, or --input"),
        (["run", "echo", "--input", "{"], "is not JSON"),
        (["run", "echo", "/nonesuch"], "/nonesuch does not exist"),
        (["run", "echo", "/"], "is a folder"),
        (["run", "echo", "--input", "1", "--timeout", "soon"], "expected like 90s"),
        (["run", "echo", "--input", "1", "--retires", "1"], "did you mean '--retries'?"),
        (["rnu", "echo"], "did you mean 'run'?"),
        (["agent", "lits"], "did you mean 'list'?"),
        (["agents", "list"], "did you mean 'agent'?"),
        (["task", "list", "--state", "done"], "'done' is not one of 'pending'"),
        (["task", "show"], "Missing argument 'ID'"),
        (["frobnicate"], "one of: members, status"),
        (["token", "create", "--ttl", "-3m"], "expected like 90s"),
        (["job", "run", "/nonesuch.toml", "/tmp"], "cannot read job file"),
    ],
)
def test_every_mistake_is_one_helpful_line(ctl: Run, arguments: list[str], says: str) -> None:
    ran = ctl(*arguments)
    assert ran.code == 2
    assert says.lower() in ran.err.lower()
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("swarmctl: ")


def test_ctrl_c_cancels_the_tasks(live: LiveGateway) -> None:
    command = [sys.executable, "-m", "swarmd.cli.swarmctl", "--socket", live.socket]
    process = subprocess.Popen(
        [*command, "run", "slow", "--input", "1"], stderr=subprocess.PIPE, text=True
    )
    tasks = live.services.tasks
    assert isinstance(tasks, FakeTasks)
    wait_until(lambda: tasks.records, 20)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "1 of 1 tasks cancelled" in err
    assert [one.state for one in tasks.records.values()] == ["cancelled"]


# ---- jobs -----------------------------------------------------------------------------

PIPELINE = """\
name = "documents"

[[stage]]
name = "parse"
agent = "{agent}"

[[stage]]
name = "sum"
agent = "adder"
kind = "reduce"
"""


def write_job(folder: Path, agent: str = "parser") -> tuple[str, str]:
    documents = folder / "documents"
    (documents / "sub").mkdir(parents=True)
    (documents / "a.txt").write_text("a")
    (documents / "sub" / "b.md").write_text("b")
    (documents / "skipped.bin").write_text("c")
    (folder / "pipeline.toml").write_text(PIPELINE.format(agent=agent))
    return str(folder / "pipeline.toml"), str(documents)


def test_jobs(ctl: Run, live: LiveGateway, tmp_path: Path) -> None:
    file, folder = write_job(tmp_path)
    found = ctl("job", "run", file, folder, "--json").json
    assert found["result"] == {"items": 2}
    assert found["state"] == "succeeded"
    tasks = live.services.tasks
    assert isinstance(tasks, FakeTasks)
    assert tasks.job_specs[0].item_count == 2
    ran = ctl("job", "run", file, folder)
    assert ran.out == '{"items": 2}\n'
    assert "4 of 4 tasks done" in ran.err
    assert found["job"] in ctl("job", "list").out
    shown = ctl("job", "show", found["job"], "--result").out
    assert "sum    adder   reduce" in shown
    assert shown.endswith('{"items": 2}\n')


def test_a_job_that_fails_says_why(ctl: Run, tmp_path: Path) -> None:
    ran = ctl("job", "run", *write_job(tmp_path, "broken"))
    assert ran.code == 1
    assert "failed: task_failed: it broke" in ran.err


def test_a_detached_job_stays_until_cancelled(ctl: Run, tmp_path: Path) -> None:
    job_id = ctl("job", "run", *write_job(tmp_path, "slow"), "--detach").out.strip()
    assert ctl("job", "cancel", job_id).out == f"{job_id} is cancelled\n"


# ---- tokens ---------------------------------------------------------------------------


def test_a_token_is_signed_here_and_only_its_public_half_leaves(
    ctl: Run, live: LiveGateway, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    SigningKey.generate().save(keys / "lab.admin.key")
    ran = ctl("token", "create", "--uses", "3", "--ttl", "10m")
    assert ran.code == 0
    token = decode_token(ran.out)
    assert isinstance(live.services.store, FakeStore)
    [entry] = live.services.store.authority
    envelope, added = open_entry(entry)
    assert isinstance(added, AddToken)
    assert (added.uses, added.expires_ms) == (3, 1_000_000 + 600_000)
    assert added.token_public == token.key.public
    assert token.seed not in envelope.payload
    assert "good for 3 joins within 10 min" in ran.err
    assert decode_token(ctl("token", "create", "--json").json["token"])


def test_the_lowest_version_is_not_raised_above_what_a_living_member_speaks(
    ctl: Run, live: LiveGateway, tmp_path: Path
) -> None:
    genesis, _, admin, _ = init_swarm("lab", "n1")
    live.services.trust = trust = open_trust(SimDisk(World(1), "trust"), genesis)
    trust.epochs = Chain(genesis)
    (tmp_path / "keys").mkdir()
    admin.save(tmp_path / "keys" / "lab.admin.key")
    membership = live.services.mesh.membership  # type: ignore[union-attr]
    n1, n2, n3 = membership.members()
    membership.found = [  # type: ignore[attr-defined]
        replace(n1, protocol=3),
        replace(n2, protocol=2),
        replace(n3, protocol=1, state=MemberState.DEAD),
    ]
    assert isinstance(live.services.store, FakeStore)
    ran = ctl("authority", "min-version", "3")
    assert ran.code == 2
    assert "n2 speaks version 2: upgrade them first" in ran.err
    assert live.services.store.authority == []
    assert ctl("authority", "min-version", "2").code == 0
    assert ctl("authority", "min-version", "3", "--force").code == 0
    said = [open_entry(entry)[1] for entry in live.services.store.authority]
    assert [one.min_version for one in said if isinstance(one, Policy)] == [2, 3]


def test_without_the_admin_key_it_says_where_to_go(ctl: Run) -> None:
    ran = ctl("token", "create", "--admin-key", "/nonesuch")
    assert ran.code == 2
    assert "--admin-key" in ran.err
    assert ran.err.count("\n") == 1


# ---- no daemon ------------------------------------------------------------------------


def test_a_daemon_that_is_down(ctl: Run, tmp_path: Path) -> None:
    ran = ctl("--socket", str(tmp_path / "none.sock"), "status")
    assert ran.code == 3
    assert "none.sock (no such socket)" in ran.err
    assert "start it with `swarmd`" in ran.err
    assert ran.err.count("\n") == 1


def test_doctor_works_without_a_daemon(
    ctl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARMD_NODE_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.setenv("SWARMD_MESH_PORT", "0")
    monkeypatch.setenv("SWARMD_MESH_BIND", "127.0.0.1")
    ran = ctl("--socket", str(tmp_path / "none.sock"), "doctor")
    assert ran.code == 1
    assert "fail daemon" in ran.out
    assert "ok   port" in ran.out
    assert "ok   data folder" in ran.out
    monkeypatch.setenv("SWARMD_MESH_PROT", "1")
    ran = ctl("--socket", str(tmp_path / "none.sock"), "doctor")
    assert "did you mean SWARMD_MESH_PORT?" in " ".join(ran.out.split())


# ---- completion, help, start-up -------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts(ctl: Run, shell: str) -> None:
    script = ctl("completion", shell).out
    assert f"_SWARMCTL_COMPLETE={shell}_complete" in script


def test_names_are_completed_from_the_daemon(live: LiveGateway) -> None:
    environ = {
        **os.environ,
        "SWARMCTL_SOCKET": live.socket,
        "_SWARMCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "swarmctl --node ",
        "COMP_CWORD": "2",
    }
    command = [sys.executable, "-c", "from swarmd.cli.swarmctl import main; main()"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,n1", "plain,n2", "plain,n3"], done.stderr


def test_every_command_has_help_with_the_common_options(ctl: Run) -> None:
    for words in (["status"], ["agent", "deploy"], ["job", "run"], ["kv", "put"], ["run"]):
        ran = ctl(*words, "--help")
        assert ran.code == 0
        assert "--json" in ran.out
        assert "--node" in ran.out
        assert max(map(len, ran.out.splitlines())) <= 80, words


def test_a_command_imports_no_heavy_library(live: LiveGateway) -> None:
    """What is imported is what a command costs; the budget is 300 ms from the shell."""
    code = (
        "import sys\n"
        "from swarmd.cli.swarmctl import swarmctl\n"
        f"sys.argv = ['swarmctl', '--socket', {live.socket!r}, 'status']\n"
        "swarmctl.main(standalone_mode=False)\n"
        "heavy = {'trio', 'rich', 'cryptography', 'structlog', 'starlette', 'zeroconf', 'anyio'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_ctrl_c_in_the_submit_cancels_too(
    ctl: Run, live: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks may be there already: their keys tell which."""
    submit = Client.submit
    interrupts = [1]

    def interrupted(self: Client, tasks: Any, **options: Any) -> Any:
        found = submit(self, tasks, **options)
        if interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Client, "submit", interrupted)
    ran = ctl("run", "slow", "--input", "1")
    assert ran.code == 130
    assert "1 of 1 tasks cancelled" in ran.err
    assert len(live.services.tasks.records) == 1  # type: ignore[union-attr]


def test_progress_is_drawn_on_a_terminal_only(live: LiveGateway) -> None:
    command = [sys.executable, "-m", "swarmd.cli.swarmctl", "--socket", live.socket]
    arguments = ["run", "echo", "--input", "1", "--input", "2"]
    quiet = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert quiet.stderr == ""
    master, slave = pty.openpty()
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    drawn = b""
    try:
        while chunk := os.read(master, 65536):
            drawn += chunk
    except OSError:
        pass  # How a pseudo-terminal says that its other side is closed.
    out, _ = process.communicate(timeout=20)
    os.close(master)
    assert process.returncode == 0
    assert b"tasks" in drawn
    assert sorted(line[-1:] for line in out.splitlines()) == [b"1", b"2"]
