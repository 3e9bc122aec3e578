"""What a daemon's log must not cost."""

from __future__ import annotations

import subprocess
import sys


def test_the_log_does_not_load_what_draws_and_leaves_it_to_others() -> None:
    script = (
        "import sys, swarmd.observe.log; assert 'rich' not in sys.modules, 'loaded'; "
        "import rich.progress; print(rich.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "rich\n"), done.stderr


def test_a_log_of_others_that_draws_goes_on() -> None:
    script = (
        "import rich; import swarmd.observe.log; import sys; assert sys.modules['rich'] is rich; "
        "swarmd.observe.log.configure('info', json=False, node='n1'); "
        "swarmd.observe.log.get_logger('room').info('event', size=1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "event" in done.stderr
    assert "size=1" in done.stderr
