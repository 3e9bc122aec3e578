"""The settings as text: the example file and the reference page, made from the sections.

The comment above a field in a room's `config.py` is its documentation, everywhere.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from swarmd.config import ENV_PREFIX, SECTIONS

_WIDTH: Final = 96
_HEAD: Final = """\
# Every setting of swarmd with its default and what it trades. Nothing here is needed: a node
# without a file is a sensible, safe node. Copy what you change to /etc/swarmd/swarmd.toml, or
# without root to ~/.config/swarmd/swarmd.toml, or name another file with --config.
#
# Rank: flag > environment > file > default. [mesh] port is SWARMD_MESH_PORT in the environment
# (lists: items separated by commas; tables: KEY=VALUE so) and `--set mesh.port=7575` on the
# command line.
# `swarmd config show` tells where each value came from.
"""


@dataclass(frozen=True, slots=True)
class Documented:
    """One setting with the comment that stands above it."""

    section: str
    name: str
    default: Any
    comment: str

    @property
    def variable(self) -> str:
        return f"{ENV_PREFIX}{self.section}_{self.name}".upper()


def documented() -> Iterator[Documented]:
    """Every setting in the order of the sections. A field without a comment is an error."""
    for section, kind in SECTIONS.items():
        comments = comments_of(inspect.getsource(kind))
        for item in msgspec.structs.fields(kind):
            default = item.default
            if default is msgspec.NODEFAULT and item.default_factory is not msgspec.NODEFAULT:
                default = item.default_factory()
            assert default is not msgspec.NODEFAULT, f"{section}.{item.name} has no default"
            comment = comments.get(item.name, "")
            assert comment, f"{section}.{item.name} has no comment saying what it trades"
            yield Documented(section, item.name, msgspec.to_builtins(default), comment)


def comments_of(source: str) -> dict[str, str]:
    """Field -> the comment lines above it, in the source of a class.

    A field directly below another one shares its comment.
    """
    found: dict[str, str] = {}
    above: list[str] = []
    last = ""
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("#"):
            above.append(text.lstrip("# ").rstrip())
        elif field := re.match(r"    (\w+):", line):
            last = " ".join(above) or last
            found[field[1]] = last
            above = []
        else:
            above, last = [], ""
    return found


def toml_value(value: Any) -> str:
    """A default as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        items = ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items())
        return "{ " + items + " }" if items else "{}"
    if isinstance(value, int | float):
        return repr(value)
    return msgspec.json.encode(value).decode()


def render_example() -> str:
    """configs/swarmd.example.toml: every key, at its default."""
    lines = [_HEAD]
    section = ""
    for item in documented():
        if item.section != section:
            section = item.section
            lines.append(f"[{section}]")
        lines += textwrap.wrap(item.comment, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"{item.name} = {toml_value(item.default)}\n")
    return "\n".join(lines).rstrip() + "\n"


def render_reference() -> str:
    """The tables of docs/configuration.md."""
    lines: list[str] = []
    section = ""
    for item in documented():
        if item.section != section:
            section = item.section
            lines += [
                "",
                f"## [{section}]",
                "",
                "| key | default | what it trades |",
                "|---|---|---|",
            ]
        comment = item.comment.replace("|", "\\|")
        lines.append(f"| `{item.name}` | `{toml_value(item.default)}` | {comment} |")
    return "\n".join(lines).strip() + "\n"
