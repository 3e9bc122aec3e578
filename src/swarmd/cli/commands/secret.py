"""swarmctl secret: values that agents get in their environment and nobody is shown.

A value is read from the terminal, a file or standard input; an argument could be seen in the list
of processes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.base.errors import BadRequest
from swarmd.cli.common import (
    SwarmGroup,
    complete_secrets,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import ago, table

if TYPE_CHECKING:
    from swarmd.gateway.shapes import SecretInfo


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl secret set db-password             # asks for the value",
        "swarmctl secret set tls-key --file key.pem",
        "pass show db | swarmctl secret set db-password",
        "swarmctl secret list",
        "swarmctl secret delete db-password",
    ],
)
def secret() -> None:
    """Secrets: encrypted in the swarm, handed to agents that refer to them.

    An agent file refers to one with a line such as DB_PASSWORD = "secret:db-password" below
    [env].
    """


@secret.command(
    "set",
    examples=[
        "swarmctl secret set db-password",
        "swarmctl secret set tls-key --file key.pem --exact",
    ],
)
@click.argument("name", shell_complete=complete_secrets)
@click.option(
    "--file",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    metavar="FILE",
    help="Read the value from FILE, - for standard input.",
)
@click.option("--exact", is_flag=True, help="Keep the newline at the end of what is read.")
def set_(name: str, file: Path | None, exact: bool) -> None:
    """Give the secret NAME a value. It is never shown again.

    Agents get it with processes that start from now on; idle ones end within seconds.
    """
    value = _value(name, file, exact=exact)
    with open_client() as client:
        found = client.set_secret(name, value)
    if wants_json():
        print_json(found)
    else:
        say(f"the secret {name} is set (version {found.version})")


def _value(name: str, file: Path | None, *, exact: bool) -> str:
    from swarmd.base.errors import TooLarge
    from swarmd.base.limits import SECRET_BYTES_MAX

    # With the newline that is left out, and one byte that shows that there are more.
    most = SECRET_BYTES_MAX + 2
    if file is None and sys.stdin.isatty():
        typed: str = click.prompt(
            f"value of {name}", hide_input=True, confirmation_prompt="again", err=True
        )
        return typed
    try:
        if file is None or str(file) == "-":
            raw = sys.stdin.buffer.read(most + 1)
        else:
            with file.open("rb") as opened:
                raw = opened.read(most + 1)
    except OSError as error:
        raise BadRequest(f"cannot read {file}: {error.strerror or error}") from error
    if len(raw) > most:
        raise TooLarge(f"a secret has at most {SECRET_BYTES_MAX} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise BadRequest("a secret is text: encode what is none, as base64") from None
    if exact:
        return text
    return text.removesuffix("\n").removesuffix("\r")


@secret.command("list", examples=["swarmctl secret list", "swarmctl secret list --json"])
def list_() -> None:
    """Show which secrets there are and who uses them; never a value."""
    with open_client() as client:
        found = client.secrets()
    if wants_json():
        print_json(found)
        return
    rows = [
        [one.name, str(one.version), _age(one), one.set_by, ", ".join(one.used_by) or "-"]
        for one in found
    ]
    click.echo(table(["NAME", "VERSION", "SET", "BY", "USED BY"], rows))
    for one in found:
        if not one.readable:
            warn(f"{one.name} cannot be read: its key is lost unless a member brings it back; "
                 "set it again")  # fmt: skip


def _age(one: SecretInfo) -> str:
    import time

    return f"{ago(max(0.0, time.time() - one.set_ms / 1000))} ago"


@secret.command(
    examples=["swarmctl secret delete db-password", "swarmctl secret delete db-password --force"]
)
@click.argument("name", shell_complete=complete_secrets)
@click.option("--force", is_flag=True, help="Also if agents refer to it; they start no more.")
def delete(name: str, force: bool) -> None:
    """Delete the secret NAME; refused while agents refer to it."""
    with open_client() as client:
        done = client.delete_secret(name, force=force)
    if wants_json():
        print_json(done)
    else:
        say(done.message)
