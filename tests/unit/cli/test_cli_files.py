"""Inputs, job files, tables: what the command line reads and draws."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarmd.cli.common import BadInput
from swarmd.cli.inputs import read_inputs
from swarmd.cli.job_file import load_job_file, parse_job
from swarmd.cli.tables import ago, facts, size, table

GOOD = """\
name = "documents"

[input]
suffixes = [".TXT"]

[[stage]]
name = "parse"
agent = "parser"
kind = "map"

[[stage]]
name = "sum"
agent = "adder"
kind = "reduce"
"""


def test_a_job_file_is_read() -> None:
    loaded = parse_job(GOOD, "job.toml")
    assert loaded.suffixes == (".txt",)
    assert loaded.job == {
        "name": "documents",
        "priority": 0,
        "stages": [
            {"name": "parse", "agent": "parser", "kind": "map"},
            {"name": "sum", "agent": "adder", "kind": "reduce"},
        ],
    }


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('kind = "reduce"', 'kind = "fold"', 'job.toml:14: kind: expected "map" or "reduce"'),
        ('agent = "adder"', "agent = 3", "job.toml:13: agent: expected a text"),
        ('agent = "adder"', "", "job.toml:11: agent: missing; expected a text"),
        ('agent = "adder"', 'agnet = "x"', "job.toml:13: agnet: no such key; did you mean agent?"),
        ('name = "sum"', 'name = "parse"', "job.toml:12: name: two stages are named 'parse'"),
        ('name = "documents"', "", "job.toml: name: missing; expected a text"),
        ('name = "documents"', 'nmae = "x"', "job.toml:1: nmae: no such key; did you mean name?"),
        ('[".TXT"]', '["txt"]', "job.toml:4: suffixes: expected a list such as"),
        ("[input]", "[inputs]", "job.toml:3: inputs: no such key; did you mean input?"),
        ("[[stage]]", "[[stage", "job.toml: not TOML"),
        ('name = "documents"', 'name = "d"\npriority = 5000', "job.toml:2: priority: expected"),
    ],
)
def test_mistakes_in_a_job_file_name_line_key_and_expectation(
    old: str, new: str, says: str
) -> None:
    with pytest.raises(BadInput) as caught:
        parse_job(GOOD.replace(old, new), "job.toml")
    assert caught.value.message.startswith(says)


def test_job_files_that_are_none(tmp_path: Path) -> None:
    for raw, says in ((b"\xff", "UTF-8"), (b"#" * 300_000, "at most"), (b"name='x'", "stage")):
        (tmp_path / "job.toml").write_bytes(raw)
        with pytest.raises(BadInput, match=says):
            load_job_file(tmp_path / "job.toml")


def test_inputs_are_named_relative_to_what_they_share(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x.TXT").write_text("x")
    (tmp_path / "a" / "b.txt").write_text("b")
    (tmp_path / "a" / "c.bin").write_text("c")
    (tmp_path / "d.bin").write_text("d")
    found = read_inputs([tmp_path / "a", tmp_path / "d.bin"])
    assert [one.name for one in found] == ["a/b.txt", "a/deep/x.TXT", "d.bin"]
    assert found[0].value == {"name": "a/b.txt", "content": b"b"}
    assert [one.name for one in read_inputs([tmp_path / "a"])] == ["b.txt", "deep/x.TXT"]


def test_files_that_cannot_be_read_are_named_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a")
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with (tmp_path / "big.txt").open("wb") as big:
        os.truncate(big.fileno(), 65 * 1024 * 1024)
    first, second = read_inputs([tmp_path])
    assert first.value == {"name": "a.txt", "unreadable": "Permission denied"}
    assert second.unreadable == "larger than 64 MiB"


def test_folders_without_documents_and_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no"):
        read_inputs([tmp_path])
    with pytest.raises(BadInput, match="does not exist"):
        read_inputs([tmp_path / "none"])


def test_tables_fit_80_columns() -> None:
    text = table(["A", "B"], [["x" * 60, "y" * 60], ["1", "two\nlines"]])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" in lines[1]
    assert lines[2].endswith("two lines")
    assert table(["ID", "B"], [["x" * 40, "y" * 60]], whole=1).splitlines()[1].startswith("x" * 40)
    assert max(map(len, facts([("name", "word " * 60)]).splitlines())) <= 80


def test_sizes_and_times_read_well() -> None:
    assert [size(n) for n in (5, 2048, 3 << 20)] == ["5 B", "2 KiB", "3.0 MiB"]
    assert [ago(s) for s in (5, 120, 7200, 3 * 86400)] == ["5 s", "2 min", "2 h", "3 d"]
