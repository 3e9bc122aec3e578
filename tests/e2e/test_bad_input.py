"""Every mistake a person can make is answered with one helpful line, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from localswarm import BIN, Daemon, LocalSwarm, can_hide, file_for_agents, wait_until
from mistakes import (
    QUICK,
    beside,
    failing,
    pid_of,
    refused,
    sentence,
    short_folder,
    start_refused,
)

from swarmd.client import Client
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import decode_token, encode_token

AGENTS = Path(__file__).parent / "agents"
NO_QUORUM_S = 8.0  # 5 s in the swarm, and the start of four commands at once on a busy machine.


@pytest.fixture(scope="module")
def lab() -> Iterator[LocalSwarm]:
    """Three daemons with three voters, for all tests of this file."""
    with short_folder() as root, LocalSwarm(root, 3, settings=QUICK) as swarm:
        swarm.form()
        yield swarm


@pytest.fixture
def alone(folder: Path) -> Iterator[Daemon]:
    """A daemon with a fresh folder that knows no seeds and is not started."""
    with LocalSwarm(folder / "s", 1) as swarm:
        yield swarm[0]


def view(swarm: LocalSwarm) -> Any:
    """What must not change: who is a member, and who votes."""
    members = Client(swarm[0].socket).members()
    return sorted((one.name, one.node_id) for one in members)


def has_no_trust(daemon: Daemon) -> bool:
    """Nothing of any swarm is in its folder."""
    data = daemon.folder / "data"
    return not list(data.glob("mesh/*")) and not list(data.glob("raft/*"))


# ---- words that do not exist ----------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("swarmctl statsu", "no such command 'statsu'; did you mean 'status'?"),
        ("swarmctl task run", "no such command 'run'; did you mean `swarmctl run`?"),
        ("swarmctl kv gte colour", "did you mean 'get'?"),
        ("swarmctl frobnicate", "one of: members, status, doctor"),
        ("swarmctl status --jsno", "'--jsno'"),
        ("swarmctl token create --ttl soon", "expected like 90s, 10m, 2h or 1d"),
        ("swarmctl token create --uses 0", "'--uses'"),
        ("swarmctl kv put colour", "give either VALUE or --file"),
        ("swarmctl run", "AGENT"),
        ("swarmd --inti lab", "'--init'"),
        ("swarmd status", "swarmctl status"),
        ("swarmd --init", "'--init' requires an argument"),
        ("swarmd --init lab --join x", "give one of the two"),
        ("swarmd --set mesh.prot=1", "did you mean port?"),
        ("swarmd --set mesh.port=none", "mesh.port"),
        ("swarmd --set port", "expected SECTION.KEY=VALUE"),
        ("swarmd --port 99999", "mesh.port"),
        ("swarmd --join @/nowhere", "cannot read the join token from /nowhere"),
    ],
)
def test_a_word_that_does_not_exist_is_answered_with_one_that_does(words: str, said: str) -> None:
    program, *arguments = words.split()
    done = subprocess.run(
        [str(BIN / program), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in sentence(done, program)


def test_a_mistake_in_the_configuration_file_is_named_by_line(alone: Daemon) -> None:
    file = alone.folder / "swarmd.toml"
    good = file.read_text()
    for text, said in [
        ("[mesh]\nprot = 1\n", ":2: unknown key 'prot' in [mesh]; did you mean port?"),
        ("[mesg]\n", ":1: unknown section [mesg]; did you mean mesh?"),
        ('\n[mesh]\nport = "x"\n', ":3: mesh.port = 'x': expected `int`"),
        ("[mesh\n", "is not TOML"),
    ]:
        file.write_text(text)
        assert said in refused(alone)
    file.write_text(good)
    file.unlink()
    assert "No such file" in refused(alone)


# ---- nobody there ---------------------------------------------------------------------


def test_whom_agents_cannot_run_as_is_said_before_a_swarm_is_made(alone: Daemon) -> None:
    alone.write_config(agents={"user": "no-such-user"})
    alone.start("--init", "lab")
    assert alone.process is not None
    assert alone.process.wait(20) != 0
    alone.write_config()
    last = alone.log.read_text().splitlines()[-1]
    assert last.startswith("swarmd: agents.user = 'no-such-user': ")
    assert not (alone.folder / "data" / "mesh").exists()
    assert not (alone.folder / "keys").exists()


def test_a_daemon_that_is_down_is_named_with_how_to_start_it(alone: Daemon) -> None:
    said = failing(alone, "status", code=3)
    assert f"no swarmd answers at {alone.socket} (no such socket)" in said
    assert "start it with `swarmd`" in said
    assert "swarmd --init NAME" in said
    assert "--socket" in said
    answered = json.loads(alone.ctl("kv", "get", "colour", "--json").stdout)
    assert answered["error"]["code"] == "daemon_down"
    assert str(alone.socket) in failing(
        alone, "--socket", "/nowhere.sock", "--socket", str(alone.socket), "members", code=3
    )


@contextlib.contextmanager
def another_program(path: Path, answer: bytes) -> Iterator[None]:
    """Something that is no swarmd listens on a socket and answers everything alike."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(1_000)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\x13garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html/>",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 7\r\n\r\n<html/>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\nshort",
    ],
    ids=["closes", "garbage", "ssh", "html", "error", "cut"],
)
def test_the_socket_of_another_program_is_found_out(alone: Daemon, answer: bytes) -> None:
    alone.folder.mkdir(parents=True, exist_ok=True)
    with another_program(alone.socket, answer):
        done = alone.ctl("status")
    assert done.returncode in (1, 4)
    assert len(done.stderr.splitlines()) == 1
    assert str(alone.socket) in sentence(done, "swarmctl")


def test_a_file_in_the_socket_s_place_is_no_daemon(alone: Daemon) -> None:
    alone.socket.write_text("not a socket")
    assert "nothing listens there" in failing(alone, "status", code=3)
    # A daemon does not delete what it did not make.
    assert str(alone.socket) in refused(alone)
    assert alone.socket.read_text() == "not a socket"


# ---- tokens ---------------------------------------------------------------------------


def test_tokens_that_are_no_good_are_refused_and_nothing_is_written(lab: LocalSwarm) -> None:
    """Mistyped, cut, unknown, expired, used up: a sentence each."""
    made = lab[0].json("token", "create", "--uses", "1", "--ttl", "3s")["token"]
    made_at = time.monotonic()
    before = view(lab)
    stranger = beside(lab, "stranger", 5)
    mistyped = made[:40] + ("a" if made[40] != "a" else "b") + made[41:]
    forged = encode_token(replace(decode_token(made), seed=b"7" * 32))
    assert "mistyped" in refused(stranger, "--join", "-", stdin=mistyped)
    assert "not copied whole" in refused(stranger, "--join", "-", stdin=made[:-9])
    assert "no join token in standard input" in refused(stranger, "--join", "-", stdin="\n")
    assert "is not a swarm name" in refused(stranger, "--init", "my lab")
    assert not (stranger.folder / "data").exists(), "refused before anything is touched"
    assert "not known to this swarm" in refused(stranger, "--join", "-", stdin=forged)
    time.sleep(max(0.0, made_at + 3.2 - time.monotonic()))
    said = refused(stranger, "--join", "-", stdin=made)
    assert "expired" in said
    assert "ask for a new one" in said
    assert has_no_trust(stranger)
    assert view(lab) == before


@pytest.mark.long
def test_a_token_is_used_up_and_of_one_swarm(lab: LocalSwarm, folder: Path) -> None:
    """A token typed bare joins with a warning; after that it is spent, for others as well."""
    token = lab[0].json("token", "create", "--uses", "1")["token"]
    fourth = beside(lab, "n4", 4)
    fourth.start("--join", token)
    wait_until("n4 is ready", lambda: (fourth.try_json("status") or {}).get("ready"))
    log = fourth.log.read_text()
    assert "joined the swarm lab" in log
    assert "swarmd: warning: a token on the command line shows in the process list" in log
    before = view(lab)
    assert "n4" in dict(before)

    stranger = beside(lab, "late", 5)
    said = refused(stranger, "--join", "-", stdin=token)
    assert "used up" in said
    assert lab[0].address in said
    with LocalSwarm(folder / "o", 1) as other:
        other.form()
        theirs = other[0].json("token", "create")["token"]
        said = refused(stranger, "--join", "-", stdin=theirs)
        assert "for another swarm" in said
        assert has_no_trust(stranger)

        # Again, on the same swarm: one line and nothing changed. On another: refused.
        in_use = refused(fourth, "--join", "-", stdin=theirs)
        assert f"in use by a running swarmd (process {pid_of(fourth)})" in in_use
        assert "--data-folder" in in_use
        fourth.kill()
        said = refused(fourth, "--join", "-", stdin=theirs)
        assert "is in the swarm lab" in said
        assert "another --data-folder" in said
    said = refused(fourth, "--init", "other")
    assert "is in the swarm lab" in said
    assert "start `swarmd` without --init" in said
    for arguments in (["--join", "-"], ["--init", "lab"]):
        fourth.log.write_text("")
        fourth.start(*arguments, stdin=token)
        wait_until("n4 is back", lambda: (fourth.try_json("status") or {}).get("ready"))
        [line] = [one for one in fourth.log.read_text().splitlines() if "[info" not in one]
        assert line.startswith("this node is in the swarm lab")
        assert line.endswith("already; nothing changed")
        fourth.kill()
    assert view(lab) == before
    # Its seat would be of no use to the tests that follow.
    fourth.start()
    wait_until("n4 is back", lambda: (fourth.try_json("status") or {}).get("ready"))
    assert fourth.ctl("leave").returncode == 0


def test_a_swarm_that_is_not_there_is_named(lab: LocalSwarm) -> None:
    """Neither at the seed, nor without any."""
    token = lab[0].json("token", "create")["token"]
    stranger = beside(lab, "lost", 5)
    stranger.write_config(mesh={"mdns": False, "seeds": ["127.0.0.77:9"]})
    said = refused(stranger, "--join", "-", stdin=token, code=4)
    assert "127.0.0.77:9" in said
    stranger.write_config(mesh={"mdns": False})
    said = refused(stranger, "--join", "-", stdin=token, code=4)
    assert "--seed HOST" in said
    assert has_no_trust(stranger)


def test_bare_swarmd_on_an_empty_folder_waits_and_tells_both_ways_in(alone: Daemon) -> None:
    alone.start()
    status = wait_until("the daemon answers", lambda: alone.try_json("status"))
    assert status["ready"] is False
    log = alone.log.read_text()
    assert "swarmd --init NAME" in log
    assert "swarmd --join -" in log
    done = alone.ctl("status")
    assert done.returncode == 0
    assert "not ready: this node is in no swarm yet" in done.stdout
    assert Client(alone.socket).ready() is False
    for words in (["members"], ["kv", "put", "colour", "blue"], ["token", "create"]):
        assert "swarmd --init NAME" in failing(alone, *words, code=4)
    pid_of(alone)


# ---- the data folder ------------------------------------------------------------------


def made_once(daemon: Daemon) -> Path:
    """A data folder in which a daemon has run."""
    daemon.start()
    wait_until("the daemon answers", lambda: daemon.try_json("status"))
    daemon.terminate()
    return daemon.folder / "data"


def test_a_data_folder_of_another_node_is_refused(alone: Daemon) -> None:
    data = made_once(alone)
    key = data / "node.key"
    own = key.read_bytes()
    key.unlink()
    SigningKey.generate().save(key)
    said = refused(alone)
    assert str(data) in said
    assert "copied from another node" in said
    key.write_bytes(b"garbage")
    assert str(key) in refused(alone, code=1)
    key.write_bytes(own)
    key.chmod(0o644)
    said = refused(alone, code=1)
    assert str(key) in said
    assert "chmod 600" in said
    key.unlink()
    said = refused(alone, code=1)
    assert f"{key} is missing" in said
    (data / "node").write_bytes(b"torn")
    assert str(data / "node") in refused(alone, code=1)


def test_a_folder_of_something_else_is_refused_and_left_alone(alone: Daemon) -> None:
    data = alone.folder / "data"
    data.mkdir()
    (data / "thesis.tex").write_text("years of work")
    said = refused(alone, "--init", "lab")
    assert "not a swarmd data folder (it holds thesis.tex)" in said
    assert "--data-folder" in said
    assert sorted(p.name for p in data.iterdir()) in (["thesis.tex"], ["lock", "thesis.tex"])
    (data / "thesis.tex").unlink()
    (data / "lock").unlink(missing_ok=True)
    data.rmdir()
    data.write_text("a file")
    said = refused(alone, "--init", "lab")
    assert f"cannot make the data folder {data}" in said
    assert "--data-folder" in said


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("ro", "is not writable by this user; choose another with --data-folder"),
        ("size=16k", "is full"),
        ("size=16m", "is full: 15 MiB are free and 64 are needed"),
    ],
)
def test_a_folder_that_takes_no_writes_is_refused(alone: Daemon, options: str, said: str) -> None:
    assert can_hide(), "needs mount namespaces"
    data = alone.folder / "data"
    data.mkdir()
    mount = f"mount -t tmpfs -o {options} none '{data}'"
    if options == "size=16k":
        mount += f" && ! head -c 1M /dev/zero > '{data}/lost+found' 2>/dev/null"
    under = ["unshare", "--mount", "-r", "sh", "-c", f'{mount}; exec "$@"', "sh"]
    done = start_refused(alone, under=under)
    assert done.returncode == 2
    sentence_read = sentence(done, "swarmd")
    assert said in sentence_read
    assert str(data) in sentence_read


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_taken_port_names_the_setting_and_nothing_is_made(
    alone: Daemon, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind((alone.address, alone.port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        said = refused(alone, "--init", "lab")
    assert f"port {alone.port} of {alone.address} is taken" in said
    assert "mesh.port" in said
    assert has_no_trust(alone)
    assert not (alone.folder / "keys").exists()


# ---- agent and job files --------------------------------------------------------------

AGENT = 'name = "a"\nversion = "1"\nentry = "a:run"\nruntime = "python"\n'
STAGE = '[[stage]]\nname = "parse"\nagent = "parser"\nkind = "map"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (AGENT + "timeuot_s = 3\n", ":5: timeuot_s: no such key; did you mean timeout_s?"),
        (AGENT.replace('"a:run"', '"a"'), ':3: entry: expected module:function, such as'),
        (AGENT.replace("python", "cobol"), ':4: runtime: expected "python"'),
        (AGENT + 'retries = "many"\n', ":5: retries: expected `int`, got `str`"),
        (AGENT.replace('version = "1"\n', ""), "version: missing; expected a version such as"),
        (AGENT + "name\n", "not TOML: Expected '=' after a key in a key/value pair (at line 5"),
        (AGENT + 'folder = "/etc"\n', ":5: folder: expected a folder beside or below it"),
    ],
)  # fmt: skip
def test_a_malformed_agent_file_is_answered_with_line_key_and_what_was_expected(
    lab: LocalSwarm, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    assert f"{file}{said}" in failing(lab[0], "agent", "deploy", str(file), code=2).replace(
        f"{file}: ", str(file)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('nmae = "j"\n' + STAGE, ":1: nmae: no such key; did you mean name?"),
        ('name = "j"\n' + STAGE.replace("map", "mpa"), ':5: kind: expected "map" or "reduce"'),
        ('name = "j"\n', "stage: expected at least one [[stage]] section"),
        ('name = "j"\npriority = "high"\n' + STAGE, ":2: priority: expected an integer"),
        ('name = "j"\n' + STAGE.replace('agent = "parser"\n', ""), ":2: agent: missing"),
        ('name = "j\n' + STAGE, "not TOML: "),
    ],
)  # fmt: skip
def test_a_malformed_job_file_is_answered_with_line_key_and_what_was_expected(
    lab: LocalSwarm, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "j.toml"
    file.write_text(text)
    heard = failing(lab[0], "job", "run", str(file), str(file), code=2)
    assert f"{file}{said}" in heard.replace(f"{file}: ", str(file))


# ---- names of nothing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["kv", "get", "nothing"], 1, "nothing"),
        (["kv", "delete", "nothing", "--expect", "3"], 1, "nothing"),
        (["kv", "put", "colour", "blue", "--expect", "99999"], 1, "colour"),
        (["kv", "put", "k" * 1_100, "v"], 2, "key"),
        (["kv", "put", "", "v"], 2, "key"),
        (["task", "show", "nosuchtask"], 1, "nosuchtask"),
        (["task", "cancel", "nosuchtask"], 1, "nosuchtask"),
        (["job", "show", "nosuchjob"], 1, "nosuchjob"),
        (["job", "cancel", "nosuchjob"], 1, "nosuchjob"),
        (["agent", "show", "nosuchagent"], 1, "nosuchagent"),
        (["agent", "logs", "nosuchagent"], 1, "nosuchagent"),
        (["agent", "remove", "nosuchagent"], 1, "nosuchagent"),
        (["run", "nosuchagent", "--input", "1"], 1, "nosuchagent"),
        (["run", "nosuchagent", "--input", "{1"], 2, "is not JSON"),
        (["run", "nosuchagent", "/nowhere.txt"], 2, "/nowhere.txt does not exist"),
        (["--node", "nosuchnode", "status"], 1, "nosuchnode"),
        (["agent", "deploy", "/nowhere.toml"], 2, "/nowhere.toml: No such file"),
        (["job", "run", "/nowhere.toml", "/tmp"], 2, "/nowhere.toml: No such file"),
        (["token", "create", "--admin-key", "/nowhere"], 2, "no admin key at /nowhere"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_name_of_nothing_is_one_line(
    lab: LocalSwarm, words: list[str], code: int, said: str
) -> None:
    assert said in failing(lab[1], *words, code=code)


def test_a_value_that_is_too_large_is_refused(lab: LocalSwarm, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * (1024 * 1024 + 1))
    said = failing(lab[2], "kv", "put", "large", "--file", str(large), code=2)
    assert said == "a value of 1048577 bytes; at most 1048576 are allowed"
    assert "large" in failing(lab[2], "kv", "get", "large", code=1)


def test_a_token_needs_the_swarm_s_own_admin_key(lab: LocalSwarm, tmp_path: Path) -> None:
    stranger = tmp_path / "other.admin.key"
    SigningKey.generate().save(stranger)
    said = failing(lab[0], "token", "create", "--admin-key", str(stranger), code=2)
    assert f"{stranger} is not an admin key of the swarm lab" in said
    stranger.write_text("garbage")
    stranger.chmod(0o600)
    assert str(stranger) in failing(lab[0], "token", "create", "--admin-key", str(stranger), code=1)


# ---- no majority ----------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.long
def test_without_a_majority_everything_is_answered_in_time(lab: LocalSwarm, tmp_path: Path) -> None:
    """`no_quorum` within 5 s and exit code 4, not a hang; afterwards all is as before."""
    first, *others = lab.daemons
    assert first.ctl("agent", "deploy", str(AGENTS / "ledger.toml")).returncode == 0
    assert first.ctl("kv", "put", "colour", "blue").returncode == 0
    job = tmp_path / "j.toml"
    job.write_text('name = "j"\n' + STAGE.replace("parser", "ledger"))
    agent = tmp_path / "a" / "a.toml"
    agent.parent.mkdir()
    agent.write_text(AGENT)
    (agent.parent / "a.py").write_text("def run(item, context):\n    return item\n")
    for daemon in others:
        daemon.kill()
    asked = [
        ["kv", "put", "colour", "red"],
        ["kv", "get", "colour"],
        ["kv", "list"],
        ["run", "ledger", "--input", "1", "--detach"],
        ["job", "run", str(job), str(job), "--detach"],
        ["agent", "deploy", str(agent)],
        ["agent", "remove", "ledger"],
        ["token", "create"],
    ]
    Client(first.socket).members()

    def ask(words: list[str]) -> tuple[str, str, float]:
        began = time.monotonic()
        done = first.ctl(*words, "--json")
        took_s = time.monotonic() - began
        assert done.returncode == 4, (words, done.returncode, done.stderr)
        return json.loads(done.stdout)["error"]["code"], sentence_of(done), took_s

    def sentence_of(done: subprocess.CompletedProcess[str]) -> str:
        assert "Traceback" not in done.stderr
        [line] = done.stderr.splitlines()
        return line

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, asked))
    for words, (code, line, took_s) in zip(asked, answers, strict=True):
        # What is kept as blobs first is refused for want of nodes to keep it.
        few = (
            {"no_quorum", "insufficient_copies"} if words[0] in ("job", "agent") else {"no_quorum"}
        )
        assert code in few, (words, line)
        assert took_s < NO_QUORUM_S, (words, took_s)
        assert "majority" in line or "voters" in line or "other nodes" in line, line
    assert "no_quorum" in first.ctl("status").stdout
    assert first.ctl("members").returncode == 0
    assert first.ctl("doctor").returncode == 1
    for daemon in others:
        lab.restart(daemon)
    lab.wait_whole()
    assert first.ctl("kv", "put", "colour", "green").returncode == 0
    assert others[0].ctl("kv", "get", "colour").stdout == "green\n"
    assert others[1].ctl("agent", "deploy", str(agent)).returncode == 0
    assert others[1].ctl("run", "a", "--input", "5").stdout.strip() == "5"


# ---- impatience -----------------------------------------------------------------------


def test_a_second_ctrl_c_ends_at_once(folder: Path) -> None:
    """Of a command whose daemon does not answer, and of a daemon that has work to finish."""
    payload = json.dumps(
        {"ledger": str(file_for_agents(folder / "ledger")), "key": "k", "ms": 60_000}
    )
    with LocalSwarm(folder / "s", 1) as swarm:
        swarm.form()
        daemon = swarm[0]
        assert daemon.ctl("agent", "deploy", str(AGENTS / "ledger.toml")).returncode == 0
        command = [str(BIN / "swarmctl"), "--socket", str(daemon.socket), "run", "ledger"]
        with subprocess.Popen(
            [*command, "--input", payload],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            wait_until("task runs", lambda: daemon.json("status")["tasks"]["running"] == 1)
            daemon.pause()
            running.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                running.wait(0.5)
            running.send_signal(signal.SIGINT)
            assert running.wait(3) == 130
            assert running.stderr is not None
            assert running.stderr.read().strip().endswith("swarmctl: interrupted")
            daemon.resume()
        assert daemon.ctl("run", "ledger", "--input", payload, "--detach").returncode == 0
        wait_until("task runs", lambda: daemon.json("status")["tasks"]["running"] >= 1)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGINT)
        wait_until("it is stopping", lambda: "stopping" in daemon.log.read_text())
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(0.5)
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(3) == 130
        assert "Traceback" not in daemon.log.read_text()
