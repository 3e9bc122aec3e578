"""Ten real daemons that find each other by multicast DNS alone, and what befalls their hosts.

`scripts/hosts` lets the same things come one after the other, and for longer; here some of them
come together. After each all views are equal again, and nobody who was well was ever held dead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts_ground import Ground, ten_hosts
from hosts_quota import Quota, controller, remove_groups
from hosts_scenarios import (
    IdleStreams,
    InterfaceDown,
    NewAddresses,
    OneWay,
    Partition,
    Paused,
    RollingRestart,
    Scenario,
    play,
)
from localswarm import wait_until
from nethosts import missing_tools

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.hosts, pytest.mark.alone]


@pytest.fixture
def ground(folder: Path) -> Iterator[Ground]:
    reason = missing_tools()
    if reason:
        pytest.skip(reason)
    with ten_hosts(folder) as made:
        yield made


def test_ten_hosts_bear_what_befalls_networks_and_hold_nobody_dead_who_is_well(
    ground: Ground,
) -> None:
    """While the ten are two halves, a process of one half stands still for half of the time, and in
    the other one, once it knows that it is alone, nothing passes between two in one direction."""
    together: list[tuple[Scenario | tuple[float, Scenario], ...]] = [
        (IdleStreams(),),
        (Partition(), (5.0, Paused()), (20.0, OneWay())),
        (InterfaceDown(held_s=12.0), (3.0, NewAddresses())),
        (RollingRestart(),),
    ]
    print(f"formed in {ground.form():.1f} s")
    for scenarios in together:
        play(ground, *scenarios)
    ground.note_ended()
    assert ground.problems == []
    assert ground.false_deaths() == []


def test_who_is_under_a_quota_hardly_runs_and_the_group_goes_in_any_case() -> None:
    folder = controller()
    if os.getuid() != 0 or folder is None:
        pytest.skip("no control groups of processor time can be made here")
    groups = f"swarmd-hosts-{os.getpid()}-*"
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        quota = Quota(os.getpid(), "closed", 0.05)
        try:
            quota.take(busy.pid)
            wait_until("it is kept from running", lambda: quota.throttled_s() > 0.3, timeout_s=9)
        finally:
            quota.close()
            busy.kill()
    assert not list(folder.glob(groups))
    Quota(os.getpid(), "forgotten", 0.05)
    assert list(folder.glob(groups))
    remove_groups(os.getpid())
    assert not list(folder.glob(groups))


def test_ctrl_c_leaves_nothing_behind() -> None:
    reason = missing_tools()
    if reason or controller() is None:
        pytest.skip(reason or "no control groups of processor time can be made here")
    command = [str(ROOT / "scripts" / "hosts")]
    script = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    mark = f"swarmd-hosts-{script.pid}-"
    folder = Path(tempfile.gettempdir())
    wait_until("a daemon runs", lambda: _processes(mark), timeout_s=60)
    script.send_signal(signal.SIGINT)
    assert script.wait(60) == 130
    wait_until("all have ended", lambda: not _processes(mark), timeout_s=5)
    assert not list(folder.glob(f"{mark}*"))


def _processes(mark: str) -> list[str]:
    """Those whose command line holds `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in text:
            found.append(text)
    return found
