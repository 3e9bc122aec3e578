"""Fixtures: hosts in network namespaces, with the built wheel installed in a place of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from apart import run_outside
from localswarm import let_agents_through
from nethosts import NetHosts, missing_tools

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def three_hosts() -> Iterator[NetHosts]:
    """Three hosts on one bridge."""
    reason = missing_tools()
    if reason:
        pytest.skip(reason)
    with NetHosts(3) as hosts:
        yield hosts


@pytest.fixture
def folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="swarmd-hosts-"))
    let_agents_through(root)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of this tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("src", "pyproject.toml", "README.md", "LICENSE"):
        origin = ROOT / name
        if origin.is_dir():
            ignore = shutil.ignore_patterns("*.egg-info", "__pycache__")
            shutil.copytree(origin, source / name, ignore=ignore)
        else:
            shutil.copy(origin, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    run_outside([*command, str(out), str(source)])
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def environments(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three clean virtual environments with nothing but the wheel and what it needs."""
    made = []
    for number in (1, 2, 3):
        path = tmp_path_factory.mktemp(f"host{number}") / "venv"
        let_agents_through(path.parent)
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        install = [str(path / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        run_outside([*install, *constraints, str(wheel)])
        made.append(path)
    return made
