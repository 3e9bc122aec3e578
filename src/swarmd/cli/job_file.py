"""Job files: TOML that names the stages of a pipeline.

    name = "documents"

    [input]                      # optional
    suffixes = [".txt", ".md"]   # which files of a folder are taken

    [[stage]]
    name = "parse"
    agent = "parser"
    kind = "map"                 # once per item; "reduce": once over all, in order

Every mistake is told as `FILE:LINE: key: what was expected`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swarmd.cli.common import BadInput
from swarmd.cli.inputs import SUFFIXES

KINDS: Final = ("map", "reduce")
_JOB_KEYS: Final = ("name", "priority", "input", "stage")
_INPUT_KEYS: Final = ("suffixes",)
_STAGE_KEYS: Final = ("name", "agent", "kind")
_FILE_BYTES_MAX: Final = 256 * 1024
_STAGES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class JobFile:
    """`job` is what the API takes; `suffixes` say which files of a folder are inputs."""

    job: dict[str, Any]
    suffixes: tuple[str, ...]


def load_job_file(path: Path) -> JobFile:
    """Read a job file. Raises BadInput naming file, line, key and what was expected."""
    try:
        raw = path.read_bytes()
        text = raw[: _FILE_BYTES_MAX + 1].decode()
    except OSError as error:
        raise BadInput(f"cannot read job file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: a job file is UTF-8 text") from error
    if len(raw) > _FILE_BYTES_MAX:
        raise BadInput(f"{path}: a job file has at most {_FILE_BYTES_MAX} bytes")
    return parse_job(text, str(path))


def parse_job(text: str, source: str) -> JobFile:
    """Like `load_job_file`, for text."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # Also an integer of 5,000 digits.
        raise BadInput(f"{source}: not TOML: {error}") from error
    reader = _Reader(text, source)
    reader.known(table, _JOB_KEYS, section="")
    name = reader.text(table, "name", section="")
    priority = table.get("priority", 0)
    if type(priority) is not int or not -1_000 <= priority <= 1_000:
        raise reader.wrong("", "priority", "expected an integer between -1000 and 1000")
    stages = table.get("stage")
    if not isinstance(stages, list) or not stages or not isinstance(stages[0], dict):
        raise reader.wrong("", "stage", "expected at least one [[stage]] section")
    if len(stages) > _STAGES_MAX:
        raise reader.wrong("", "stage", f"expected at most {_STAGES_MAX} stages")
    read = [_stage(reader, stage, index) for index, stage in enumerate(stages)]
    names = [stage["name"] for stage in read]
    for index, one in enumerate(names):
        if one in names[:index]:
            raise reader.wrong("stage", "name", f"two stages are named {one!r}", index)
    job = {"name": name, "priority": priority, "stages": read}
    return JobFile(job, _suffixes(reader, table.get("input", {})))


def _stage(reader: _Reader, stage: dict[str, Any], index: int) -> dict[str, str]:
    reader.known(stage, _STAGE_KEYS, section="stage", index=index)
    kind = stage.get("kind", "map")
    if kind not in KINDS:
        raise reader.wrong("stage", "kind", f'expected "map" or "reduce", not {kind!r}', index)
    return {
        "name": reader.text(stage, "name", section="stage", index=index),
        "agent": reader.text(stage, "agent", section="stage", index=index),
        "kind": kind,
    }


def _suffixes(reader: _Reader, table: Any) -> tuple[str, ...]:
    if not isinstance(table, dict):
        raise reader.wrong("", "input", "expected a section [input]")
    reader.known(table, _INPUT_KEYS, section="input")
    suffixes = table.get("suffixes", list(SUFFIXES))
    fine = isinstance(suffixes, list) and suffixes
    if not fine or not all(isinstance(one, str) and one.startswith(".") for one in suffixes):
        raise reader.wrong("input", "suffixes", 'expected a list such as [".txt", ".md"]')
    return tuple(one.lower() for one in suffixes)


class _Reader:
    """Finds the line of a key, for messages."""

    def __init__(self, text: str, source: str) -> None:
        self._lines = text.splitlines()
        self._source = source

    def known(
        self, table: dict[str, Any], keys: tuple[str, ...], *, section: str, index: int = 0
    ) -> None:
        for key in table:
            if key not in keys:
                close = difflib.get_close_matches(key, keys, n=1)
                hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(keys)}"
                raise self.wrong(section, key, f"no such key; {hint}", index)

    def text(self, table: dict[str, Any], key: str, *, section: str, index: int = 0) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value.strip():
            said = "missing; expected a text" if key not in table else "expected a text"
            raise self.wrong(section, key, said, index)
        return value

    def wrong(self, section: str, key: str, problem: str, index: int = 0) -> BadInput:
        line = self._line(section, key, index)
        place = f"{self._source}:{line}" if line else self._source
        return BadInput(f"{place}: {key}: {problem}")

    def _line(self, section: str, key: str, index: int) -> int:
        """The line of `key` in the `index`-th `section`, else of the section, else 0."""
        current, seen, head = "", -1, 0
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[+\s*([\w.-]+)\s*\]+", line)
            if header:
                current = header[1]
                seen += current == section
                if current == section and seen == index:
                    head = number
                if section == "" and current == key:
                    return number
            elif current != section or (section and seen != index):
                continue
            elif re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return number
        return head
