"""What an agent file says, checked key by key.

An agent file is TOML beside the agent's code. Its mistakes are told as `file:line: key:
what was expected`, because an author reads them, not a program. The folder that is packed is
the file's own unless `folder` names one below it; neither is part of the spec, so that no
path ever leaves the machine.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from swarmd.base.errors import BadRequest
from swarmd.base.names import check_name
from swarmd.mesh.bus.topics import check_filter

Mode = Literal["default", "exclusive", "at_most_once"]

_SPEC_BYTES_MAX: Final = 64 * 1024
_NAME: Final = r"^[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?$"
_VERSION: Final = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$"
_PART: Final = r"[A-Za-z_][A-Za-z0-9_]{0,99}"
_ENTRY: Final = rf"^{_PART}(\.{_PART}){{0,8}}:{_PART}$"
ENV_MAX: Final = 64
# An environment's value that begins so names a secret of the swarm.
_REFERENCE: Final = "secret:"
_VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"

Text = Annotated[str, Meta(max_length=1_024)]
Word = Annotated[str, Meta(pattern=_NAME)]
Variable = Annotated[str, Meta(pattern=_VARIABLE)]


class Resources(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one attempt needs; 0 asks for nothing in particular."""

    millicores: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    memory_bytes: Annotated[int, Meta(ge=0)] = 0


class BusRights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topics of the bus that an agent may publish and subscribe to; none by default.

    One may end with `*`. Single subscribers are `@NAME`, and `@*` all of them.
    """

    publish: Annotated[tuple[Text, ...], Meta(max_length=32)] = ()
    subscribe: Annotated[tuple[Text, ...], Meta(max_length=32)] = ()

    def __post_init__(self) -> None:
        for topic in (*self.publish, *self.subscribe):
            try:
                check_filter(topic)
            except BadRequest as error:
                raise ValueError(f"`$.bus`: {error.message}") from error


class AgentSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent as its author describes it. `entry` is `module:function` within the folder."""

    name: Word
    version: Annotated[str, Meta(pattern=_VERSION)]
    entry: Annotated[str, Meta(pattern=_ENTRY)]
    description: Text = ""
    role: Word = "worker"
    runtime: Literal["python"] = "python"
    # Attempts at once on one node.
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 4
    timeout_s: Annotated[float, Meta(gt=0, le=7 * 86_400)] = 300.0
    # Attempts after the first before a task is given up.
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    mode: Mode = "default"
    capabilities: Annotated[tuple[Word, ...], Meta(max_length=32)] = ()
    env: Annotated[
        dict[Annotated[str, Meta(pattern=_VARIABLE)], Text], Meta(max_length=ENV_MAX)
    ] = msgspec.field(default_factory=dict)
    resources: Resources = Resources()
    bus: BusRights = BusRights()

    def __post_init__(self) -> None:
        for variable, text in self.env.items():
            if "\0" in text:
                raise ValueError(f"`$.env`: {variable}: no NUL characters")
            reference_of(text)

    @property
    def secrets(self) -> list[str]:
        """Names of the secrets that its environment refers to, sorted."""
        return sorted({name for name in map(reference_of, self.env.values()) if name is not None})


def reference_of(text: str) -> str | None:
    """The name of the secret that an environment's value refers to; None if it is a plain one.

    Raises:
        ValueError: it refers to what is no name of a secret.
    """
    if not text.startswith(_REFERENCE):
        return None
    name = text.removeprefix(_REFERENCE)
    try:
        check_name(name, "secret")
    except BadRequest as error:
        raise ValueError(f"`$.env`: {error.message}") from error
    return name


# What a pattern means, for people.
_EXPECTED: Final = {
    "name": "lower-case letters, digits and . _ - (at most 63)",
    "role": "one word such as queen, worker or specialist",
    "version": "a version such as 1.0.0",
    "entry": 'module:function, such as "extractor:run"',
    "capabilities": "a list of lower-case words",
    "bus": 'a table of lists of topics, such as publish = ["orders/*"]',
    "env": 'a table of NAME = text, or NAME = "secret:NAME-OF-A-SECRET"',
    "runtime": '"python"',
    "mode": '"default", "exclusive" or "at_most_once"',
}


def load_agent_file(path: Path) -> tuple[AgentSpec, Path]:
    """The spec in a TOML file and the folder that holds the agent's code.

    Raises:
        BadRequest: names the file, the line, the key and what was expected.
    """
    if not _is_toml(path):
        raise BadRequest(f"{path}: the name of an agent file ends with .toml: rename it")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"cannot read agent file {path}: {error.strerror}") from error
    if len(raw) > _SPEC_BYTES_MAX:
        raise BadRequest(f"{path}: an agent file has at most {_SPEC_BYTES_MAX} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path}: an agent file is UTF-8 text") from error
    spec, folder_name = _read(text, str(path))
    base = path.parent.resolve()
    folder = (base / folder_name).resolve()
    if not folder.is_relative_to(base) or not folder.is_dir():
        raise BadRequest(_at(text, str(path), "folder", "expected a folder beside or below it"))
    return spec, folder


def is_agent_file(path: Path) -> bool:
    """Whether a file describes an agent, this one or another: then it is no part of its code."""
    if not _is_toml(path):
        return False
    try:
        with path.open("rb") as opened:
            table = tomllib.loads(opened.read(_SPEC_BYTES_MAX + 1).decode())
    except (OSError, ValueError, RecursionError):
        return False
    return {"name", "version", "entry"} <= table.keys()


def _is_toml(path: Path) -> bool:
    return path.suffix.lower() == ".toml"


def parse_agent(text: str, *, source: str = "agent") -> AgentSpec:
    """The spec in TOML `text`. Raises BadRequest naming `source`, line, key and expectation."""
    return _read(text, source)[0]


def check_spec(value: Any) -> AgentSpec:
    """The spec in a plain mapping, as it comes over HTTP. Raises BadRequest naming the key."""
    try:
        return msgspec.convert(value, AgentSpec, strict=True)
    except msgspec.ValidationError as error:
        key, expected = _explain(str(error))
        raise BadRequest(f"agent: {key}: {expected}") from error


def _read(text: str, source: str) -> tuple[AgentSpec, str]:
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # Also an integer of 5,000 digits.
        raise BadRequest(f"{source}: not TOML: {error}") from error
    folder = table.pop("folder", ".")
    if not isinstance(folder, str):
        raise BadRequest(_at(text, source, "folder", "expected a string"))
    try:
        return msgspec.convert(table, AgentSpec, strict=True), folder
    except UnicodeEncodeError as error:
        raise BadRequest(f"{source}: it holds what is no text: {error.reason}") from error
    except msgspec.ValidationError as error:
        key, expected = _explain(str(error))
        raise BadRequest(_at(text, source, key, expected)) from error


def _explain(message: str) -> tuple[str, str]:
    """The key that a validation error is about, and what was expected of it."""
    unknown = re.search(r"unknown field `([^`]*)`", message)
    if unknown:
        key = unknown[1]
        close = difflib.get_close_matches(key, [*AgentSpec.__struct_fields__, "folder"], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return key, f"no such key{hint}"
    missing = re.search(r"missing required field `([^`]*)`", message)
    if missing:
        key = missing[1]
        return key, f"missing; expected {_EXPECTED.get(key, 'a value')}"
    place = re.search(r"`\$\.?([^`]*)`", message)
    key = re.split(r"[.\[]", place[1])[0] if place and place[1] else "agent"
    if "regex" in message or "enum" in message or key in ("env", "capabilities"):
        return key, f"expected {_EXPECTED.get(key, 'another value')}"
    said = message.split(" - at ")[0]
    return key, said[:1].lower() + said[1:]


def _at(text: str, source: str, key: str, problem: str) -> str:
    """`source:line: key: problem`; without the line where the key is not in the file."""
    pattern = re.compile(rf"\s*(\[\s*)?[\"']?{re.escape(key)}[\"']?\s*[.=\]]")
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.match(line):
            return f"{source}:{number}: {key}: {problem}"
    return f"{source}: {key}: {problem}"
