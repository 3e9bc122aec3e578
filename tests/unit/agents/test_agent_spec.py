"""Agent files: what is good is read, what is bad is told by line, key and expectation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swarmd.agents.bundle import pack_bundle, read_bundle
from swarmd.agents.spec import (
    AgentSpec,
    Resources,
    check_spec,
    is_agent_file,
    load_agent_file,
    parse_agent,
)
from swarmd.base.errors import BadRequest

GOOD = """\
name = "extractor"
version = "1.0.0"
entry = "extractor:run"
"""
FULL = (
    GOOD
    + """\
description = "Draws out words"
role = "specialist"
runtime = "python"
concurrency = 2
timeout_s = 60
retries = 0
mode = "exclusive"
capabilities = ["gpu", "big-memory"]

[env]
COLOUR = "red"

[resources]
millicores = 500
memory_bytes = 1000000
"""
)


def test_defaults_are_filled_in() -> None:
    spec = parse_agent(GOOD)
    assert (spec.concurrency, spec.timeout_s, spec.retries, spec.mode) == (4, 300.0, 3, "default")


def test_every_key_is_read() -> None:
    assert parse_agent(FULL) == AgentSpec(
        name="extractor",
        version="1.0.0",
        entry="extractor:run",
        description="Draws out words",
        role="specialist",
        concurrency=2,
        timeout_s=60.0,
        retries=0,
        mode="exclusive",
        capabilities=("gpu", "big-memory"),
        env={"COLOUR": "red"},
        resources=Resources(millicores=500, memory_bytes=1_000_000),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 1\n", "agent.toml:1: name: expected `str`, got `int`"),
        ('name = "A b"\n', "agent.toml:1: name: expected lower-case letters"),
        ('name = "a"\nversion = "1"\n', "agent.toml: entry: missing; expected module:function"),
        ('name = "a"\nversion = ""\n', "agent.toml:2: version: expected a version such as"),
        (GOOD.replace("r:run", "r.run"), "agent.toml:3: entry: expected module:function"),
        (GOOD.replace("extractor:run", "/etc/x:run"), "agent.toml:3: entry: expected"),
        (GOOD + "timout_s = 1\n", "agent.toml:4: timout_s: no such key; did you mean timeout_s?"),
        (GOOD + "concurrency = 0\n", "agent.toml:4: concurrency: expected `int` >= 1"),
        (GOOD + 'concurrency = "4"\n', "agent.toml:4: concurrency: expected `int`, got `str`"),
        (GOOD + "timeout_s = 0\n", "agent.toml:4: timeout_s: expected `float` > 0"),
        (GOOD + "retries = 1000\n", "agent.toml:4: retries: expected `int` <= 100"),
        (GOOD + 'mode = "twice"\n', 'agent.toml:4: mode: expected "default", "exclusive"'),
        (GOOD + 'runtime = "perl"\n', 'agent.toml:4: runtime: expected "python"'),
        (GOOD + "capabilities = [1]\n", "agent.toml:4: capabilities: expected a list"),
        (GOOD + "[env]\nA = 1\n", "agent.toml:4: env: expected a table of NAME = text"),
        (GOOD + '[env]\n"A B" = "1"\n', "agent.toml:4: env: expected a table"),
        (GOOD + "[resources]\ncores = 1\n", "agent.toml:5: cores: no such key"),
        (GOOD + "folder = 1\n", "agent.toml:4: folder: expected a string"),
        ("name = \n", "not TOML: Invalid value (at line 1"),
        ("a = " + "[" * 20_000, "not TOML"),
    ],
)
def test_a_mistake_names_line_key_and_expectation(text: str, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_agent(text, source="agent.toml")
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_what_comes_over_http_is_checked_alike() -> None:
    good = {"name": "a", "version": "1", "entry": "a:run", "capabilities": ["x"]}
    assert check_spec(good).capabilities == ("x",)
    bads: list[Any] = [{}, [], None, {**good, "entry": "x"}, {**good, "extra": 1}]
    for bad in bads:
        with pytest.raises(BadRequest):
            check_spec(bad)


def test_the_folder_is_the_files_own_or_one_below(tmp_path: Path) -> None:
    file = tmp_path / "agents" / "a.toml"
    (tmp_path / "agents" / "code").mkdir(parents=True)
    file.write_text(GOOD)
    assert load_agent_file(file)[1] == tmp_path / "agents"
    file.write_text('folder = "code"\n' + GOOD)
    assert load_agent_file(file)[1] == tmp_path / "agents" / "code"
    for bad in ("..", "/etc", "nowhere", "../agents2"):
        file.write_text(f'folder = "{bad}"\n' + GOOD)
        with pytest.raises(BadRequest, match=r"a\.toml:1: folder: expected a folder"):
            load_agent_file(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"nowhere\.toml: No such file"):
        load_agent_file(tmp_path / "nowhere.toml")
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(BadRequest, match="UTF-8"):
        load_agent_file(binary)
    binary.write_bytes(b"#" * 100_000)
    with pytest.raises(BadRequest, match="at most"):
        load_agent_file(binary)


def test_an_agent_file_has_a_name_that_shows_it_is_one(tmp_path: Path) -> None:
    """Else it would be taken for a part of some agent's code."""
    for name in ("agent", "agent.conf", "agent.toml.old", ".toml"):
        (tmp_path / name).write_text(GOOD)
        with pytest.raises(BadRequest, match=r"ends with \.toml: rename it"):
            load_agent_file(tmp_path / name)
    (tmp_path / "agent.Toml").write_text(GOOD)
    assert load_agent_file(tmp_path / "agent.Toml")[0].name


def test_references_to_secrets() -> None:
    spec = parse_agent(
        GOOD
        + """
[env]
A = "secret:db-password"
B = "secret:db-password"
C = "secret:other.key"
D = "plain"
"""
    )
    assert spec.secrets == ["db-password", "other.key"]


@pytest.mark.parametrize("value", ["secret:", "secret:a/b", "secret:-a", "secret:" + "a" * 129])
def test_a_reference_to_what_is_no_secret_is_told_by_line(value: str) -> None:
    with pytest.raises(BadRequest, match="env") as caught:
        parse_agent(GOOD + f'[env]\nA = "{value}"\n', source="a.toml")
    assert caught.value.message.startswith("a.toml:4: env: ")


def test_files_of_agents_are_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "shouts.TOML").write_text(GOOD)
    (tmp_path / "other.toml").write_text(GOOD + 'env = { A = "hidden" }\nnonsense = 1\n')
    (tmp_path / "settings.toml").write_text('name = "not an agent"\n')
    (tmp_path / "broken.toml").write_text("= =")
    (tmp_path / "agent.py").write_text("")
    names = [name for name, _ in read_bundle(pack_bundle(tmp_path, leave_out=is_agent_file))]
    assert names == ["agent.py", "broken.toml", "settings.toml"]
