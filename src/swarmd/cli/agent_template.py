"""What `swarmctl agent new` writes: the smallest agent that does something."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from swarmd.agents.spec import parse_agent
from swarmd.cli.common import BadInput

_SPEC: Final = """\
name = "{name}"
version = "1.0.0"
description = "Counts the words of a text or a file"
runtime = "python"
entry = "{module}:run"

# Attempts at once on one node, longest run of one, and attempts after the first.
concurrency = 4
timeout_s = 300
retries = 3

# Its environment; a secret is set with `swarmctl secret set api-key`.
# [env]
# API_URL = "https://example.org"
# API_KEY = "secret:api-key"

# Topics of the bus that it may publish and subscribe to, by context.bus.
# [bus]
# publish = ["words/*"]
# subscribe = ["texts/*"]
"""

_CODE: Final = '''\
"""The agent {name}: takes a task's input, gives its result."""


def run(item, context):
    """`item` is what was submitted: {{"text": ...}}, or a file as {{"name", "content"}}.

    Give back anything that JSON or msgpack can hold. An exception fails the attempt, which is
    tried again elsewhere; `context.log(...)` shows in `swarmctl agent logs {name}`.
    """
    text = item["content"].decode() if "content" in item else item["text"]
    context.log(f"attempt {{context.attempt}} reads {{len(text)}} characters")
    return {{"words": len(text.split())}}
'''


def write_agent(name: str, folder: Path) -> list[Path]:
    """Write NAME.toml and its module below `folder`; the paths written.

    Raises:
        BadRequest: `name` is not an agent's name.
        BadInput: one of the files exists, or cannot be written. Nothing is overwritten.
    """
    module = "".join(c if c.isalnum() else "_" for c in name)
    if module[:1].isdigit():
        module = f"agent_{module}"
    spec = _SPEC.format(name=name, module=module)
    parse_agent(spec, source=f"{name}.toml")
    files = {folder / f"{name}.toml": spec, folder / f"{module}.py": _CODE.format(name=name)}
    for path in files:
        if path.exists():
            raise BadInput(f"{path} exists already; nothing was written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with path.open("x") as file:
                file.write(text)
    except OSError as error:
        raise BadInput(f"cannot write below {folder}: {error.strerror}") from error
    return list(files)
