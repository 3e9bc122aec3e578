"""The keeper ends a command, and all that it started, before its lease can lapse."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmd.cli.keeper import Ended, KeeperGone, Kept, boot_ns, keep

S = 1_000_000_000
FAR = 3_600 * S


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """Where commands write what they want known."""
    return tmp_path / "note"


def start(script: str, note: Path, *, stop_s: float = 3_600, kill_s: float = 3_600) -> Kept:
    now = boot_ns()
    environ = {"PATH": os.environ["PATH"], "NOTE": str(note)}
    kept = keep(
        ["sh", "-c", script],
        environ,
        stop_at_ns=now + int(stop_s * S),
        kill_at_ns=now + int(kill_s * S),
    )
    kept.wait_started()
    return kept


def run(script: str, note: Path) -> Ended:
    kept = start(script, note)
    ended = kept.ended()
    kept.close()
    return ended


def until(holds: Callable[[], object], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)  # What processes do sets no event.


def noted(note: Path, lines: int = 1) -> list[str]:
    """The lines that the command wrote, once there are so many."""
    until(lambda: note.exists() and note.read_text().count("\n") >= lines)
    return note.read_text().splitlines()


def runs(pid: int) -> bool:
    """True for a process that runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -PIPE $$", 141)],
)
def test_the_end_is_told_as_a_shell_tells_it(script: str, code: int, note: Path) -> None:
    ended = run(script, note)
    assert (ended.exit_code, ended.lapsed) == (code, False)


def test_what_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for program, kind in (("/nowhere/to/be/found", FileNotFoundError), (plain, PermissionError)):
        far = boot_ns() + FAR
        kept = keep([str(program)], dict(os.environ), stop_at_ns=far, kill_at_ns=far)
        with pytest.raises(kind):
            kept.wait_started()
        kept.close()


def test_a_command_is_told_to_end_and_may_do_so_in_order(note: Path) -> None:
    script = (
        "trap 'echo ended >> $NOTE; exit 0' TERM; echo up >> $NOTE; while :; do sleep 0.01; done"
    )
    kept = start(script, note)
    noted(note)
    now = boot_ns()
    kept.set_deadlines(now + S // 3, now + FAR)
    ended = kept.ended()
    assert (ended.exit_code, ended.lapsed) == (0, True)
    assert noted(note, 2) == ["up", "ended"]
    assert boot_ns() > now + S // 3
    kept.close()


def test_a_command_that_does_not_listen_is_killed(note: Path) -> None:
    kept = start("trap '' TERM; echo up >> $NOTE; while :; do sleep 0.01; done", note)
    noted(note)
    now = boot_ns()
    kept.set_deadlines(now + S // 10, now + S // 2)
    ended = kept.ended()
    assert (ended.exit_code, ended.lapsed) == (137, True)
    assert boot_ns() > now + S // 2
    kept.close()


def test_deadlines_that_move_on_end_nothing(note: Path) -> None:
    began = boot_ns()
    script = "trap 'exit 3' USR1; echo up >> $NOTE; while :; do sleep 0.01; done"
    kept = start(script, note, stop_s=2.0, kill_s=2.5)
    kept.set_deadlines(began + FAR, began + FAR)
    noted(note)
    until(lambda: boot_ns() > began + 3 * S)
    kept.send_signal(signal.SIGUSR1)
    ended = kept.ended()
    assert (ended.exit_code, ended.lapsed) == (3, False)
    kept.close()


def test_once_told_to_end_a_command_has_no_way_back(note: Path) -> None:
    """A renewal that comes through after SIGTERM: the command would not know."""
    script = "trap 'echo told >> $NOTE' TERM; echo up >> $NOTE; while :; do sleep 0.01; done"
    kept = start(script, note)
    noted(note)
    kept.set_deadlines(boot_ns() + S // 10, boot_ns() + S)
    noted(note, 2)
    kept.set_deadlines(boot_ns() + FAR, boot_ns() + FAR)
    ended = kept.ended()
    assert (ended.exit_code, ended.lapsed) == (137, True)
    kept.close()


def test_an_order_to_kill_ends_it_at_once(note: Path) -> None:
    kept = start("trap '' TERM; echo up >> $NOTE; while :; do sleep 0.01; done", note)
    noted(note)
    kept.kill()
    assert kept.ended() == Ended(signal.SIGKILL, True)
    kept.close()


def test_what_the_command_leaves_behind_ends_with_it(note: Path) -> None:
    """In its group and out of it, ignoring SIGTERM and not."""
    script = """
        sh -c 'echo $$ >> $NOTE; exec sleep 1000' &
        sh -c 'trap "" TERM; echo $$ >> $NOTE; while :; do sleep 0.01; done' &
        setsid sh -c 'echo $$ >> $NOTE; (setsid sh -c "echo \\$\\$ >> $NOTE; sleep 1000" &) ;
            exec sleep 1000' &
        while [ $(wc -l < $NOTE) -lt 4 ]; do sleep 0.01; done; exit 5
    """
    note.write_text("")
    ended = run(script, note)
    assert (ended.exit_code, ended.lapsed) == (5, False)
    pids = [int(line) for line in noted(note, 4)]
    assert [pid for pid in pids if runs(pid)] == []


def test_the_command_ends_when_swarmctl_has_died(note: Path) -> None:
    kept = start("echo $$ >> $NOTE; exec sleep 1000", note)
    [pid] = map(int, noted(note))
    kept._channel.close()
    until(lambda: not runs(pid))
    kept.close()


def test_the_command_dies_with_its_keeper(note: Path) -> None:
    kept = start("echo $$ >> $NOTE; sleep 1000 & echo $! >> $NOTE; wait", note)
    pids = [int(line) for line in noted(note, 2)]
    os.kill(kept._keeper, signal.SIGKILL)
    with pytest.raises(KeeperGone):
        kept.ended()
    until(lambda: not any(map(runs, pids)))
    kept.close()


def test_an_order_that_crosses_with_the_end_does_not_hide_how_it_ended(note: Path) -> None:
    """Closing a socket with orders unread makes an error of what the other side reads next."""
    kept = start("echo $PPID >> $NOTE; sleep 0.2; exit 7", note)
    keeper = int(noted(note)[0])
    os.kill(keeper, signal.SIGSTOP)
    until(lambda: not runs(kept.pid))
    for _ in range(3):
        kept.set_deadlines(boot_ns() + FAR, boot_ns() + FAR)
    os.kill(keeper, signal.SIGCONT)
    until(lambda: not runs(keeper))
    ended = kept.ended()
    assert (ended.exit_code, ended.lapsed) == (7, False)
    kept.close()


def test_signals_reach_the_whole_group(note: Path) -> None:
    script = """
        trap 'echo parent >> $NOTE; wait; exit 9' USR1
        sh -c 'trap "echo child >> $NOTE; exit 0" USR1; echo up >> $NOTE
               while :; do sleep 0.01; done' &
        wait
    """
    kept = start(script, note)
    noted(note)
    kept.send_signal(signal.SIGUSR1)
    assert kept.ended().exit_code == 9
    assert sorted(noted(note, 3)) == ["child", "parent", "up"]
    kept.close()


def test_a_command_finds_signals_as_a_shell_leaves_them(note: Path) -> None:
    """Not ignored, as they are by its keeper; and nothing is open that was not open before."""
    listing = ["sh", "-c", "ls /proc/self/fd | wc -l"]
    before = subprocess.run(listing, close_fds=False, stdout=subprocess.PIPE, check=True).stdout
    script = "grep -E 'SigIgn|SigBlk' /proc/self/status > $NOTE.1; ls /proc/self/fd | wc -l > $NOTE"
    assert run(script, note).exit_code == 0
    assert int(noted(note)[0]) == int(before)
    status = Path(f"{note}.1").read_text().split()
    assert int(status[1], 16) == 0, status
    assert int(status[3], 16) & sum(1 << (s - 1) for s in (1, 2, 3, 13, 15, 20, 25)) == 0, status


def test_a_command_under_a_lease_cannot_be_suspended_from_the_terminal(note: Path) -> None:
    kept = start("echo $$ >> $NOTE; kill -TSTP $$; echo on >> $NOTE", note)
    assert kept.ended().exit_code == 0
    assert noted(note, 2)[1] == "on"
    kept.close()


def test_a_stopped_command_is_killed_all_the_same(note: Path) -> None:
    kept = start("kill -STOP $$", note)
    until(lambda: Path(f"/proc/{kept.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    kept.set_deadlines(boot_ns() + S // 10, boot_ns() + S // 3)
    ended = kept.ended()
    assert (ended.exit_code, ended.lapsed) == (137, True)
    kept.close()


def test_a_signal_that_comes_while_the_command_starts_is_not_lost(note: Path) -> None:
    """It is handled only once there is somebody to pass it on to."""
    known: list[Kept] = []

    def attach(kept: Kept) -> None:
        # To this thread, not to one that other tests of this process have left.
        signal.raise_signal(signal.SIGUSR1)
        known.append(kept)

    before = signal.signal(signal.SIGUSR1, lambda number, _: known[0].send_signal(number))
    try:
        now = boot_ns()
        kept = keep(
            ["sleep", "60"],
            {"PATH": os.environ["PATH"]},
            stop_at_ns=now + FAR,
            kill_at_ns=now + FAR,
            attach=attach,
        )
        kept.wait_started()
        assert kept.ended() == Ended(signal.SIGUSR1, False)
        kept.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
