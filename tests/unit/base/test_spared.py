"""Modules that a process does without."""

from __future__ import annotations

import subprocess
import sys

import pytest

from swarmd.base.spared import spared

# What a daemon without multicast DNS has no use for, though its libraries import it.
UNUSED = ("h2", "hpack", "http.server", "rich", "urllib.request", "zeroconf")


def test_what_is_spared_is_absent_only_meanwhile() -> None:
    with spared({"colorsys": {"rgb_to_hsv": 3}, "this": None}):
        from colorsys import rgb_to_hsv

        assert rgb_to_hsv == 3  # type: ignore[comparison-overlap]
        with pytest.raises(ImportError):
            import this  # noqa: F401
    import colorsys

    assert colorsys.rgb_to_yiq(0, 0, 0) == (0, 0, 0)


def test_what_is_loaded_already_stays() -> None:
    with spared({"sys": None}):
        import sys as found
    assert found is sys


def test_a_daemon_does_not_load_what_it_does_not_use_and_leaves_it_to_others() -> None:
    script = (
        "import sys, swarmd.cli.swarmd, swarmd.app.node; "
        f"print([name for name in {UNUSED} if name in sys.modules]); "
        "import h2.connection, http.server, rich.progress, urllib.request, wsgiref.simple_server; "
        "print(h2.connection.H2Connection.__name__, urllib.request.urlopen.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\nH2Connection urlopen\n"), done.stderr
