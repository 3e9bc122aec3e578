"""`swarmctl agent new` writes an agent that can be deployed as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from swarmd.agents.spec import load_agent_file
from swarmd.base.errors import BadRequest
from swarmd.cli.agent_template import write_agent
from swarmd.cli.commands.agent import agent
from swarmd.cli.common import BadInput


class Recorder:
    attempt = 1

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("name", ["extractor", "word-count", "3d"])
def test_the_written_agent_is_valid_and_runs(name: str, tmp_path: Path) -> None:
    spec_path, code_path = write_agent(name, tmp_path / "agents")
    spec, folder = load_agent_file(spec_path)
    assert (spec.name, folder) == (name, tmp_path / "agents")
    module, function = spec.entry.split(":")
    assert code_path.name == f"{module}.py"
    names: dict[str, object] = {}
    exec(code_path.read_text(), names)
    run = names[function]
    assert callable(run)
    recorder = Recorder()
    assert run({"text": "two words"}, recorder) == {"words": 2}
    assert run({"name": "f", "content": b"one"}, recorder) == {"words": 1}
    assert recorder.lines == ["attempt 1 reads 9 characters", "attempt 1 reads 3 characters"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_agent("one", tmp_path)
    (tmp_path / "one.toml").unlink()
    (tmp_path / "one.py").write_text("mine")
    with pytest.raises(BadInput, match=r"one\.py exists"):
        write_agent("one", tmp_path)
    assert (tmp_path / "one.py").read_text() == "mine"
    assert not (tmp_path / "one.toml").exists()


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../x", "a/b"])
def test_a_bad_name_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="lower-case"):
        write_agent(name, tmp_path / "agents")
    assert not (tmp_path / "agents").exists()


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(agent, ["new", "extractor", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f"swarmctl agent deploy {tmp_path}/extractor.toml" in done.output
