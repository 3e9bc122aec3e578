"""swarmd: the daemon's command line. It reads the configuration and the token, then runs.

A token typed on the command line works but can be seen in the process list, so there are
three better ways: standard input or a prompt (`--join -`), a file (`--join @FILE`), and the
environment variable SWARMD_JOIN_TOKEN.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Never

import click

from swarmd import __version__
from swarmd.base.errors import TokenRefused
from swarmd.cli.common import SwarmGroup, print_json, run_program

if TYPE_CHECKING:
    from swarmd.config import Config, StartMode

TOKEN_VARIABLE: Final = "SWARMD_JOIN_TOKEN"
# What --join stands for alone; nobody can type it.
_WITHOUT_TOKEN: Final = "\0"
_TOKEN_FILE_BYTES_MAX: Final = 64 * 1024
# Flag -> the setting it gives.
_SHORTCUTS: Final = {
    "node_name": "node.name",
    "data_folder": "node.data_folder",
    "data_key_file": "node.data_key_file",
    "log_level": "node.log_level",
    "port": "mesh.port",
    "bind": "mesh.bind",
    "seed": "mesh.seeds",
    "mdns": "mesh.mdns",
    "interface": "mesh.interfaces",
    "daemon_socket": "gateway.socket",
}


class DaemonGroup(SwarmGroup):
    """`swarmd` alone runs the daemon; the nouns `config` and `data-key` do not."""

    command_class = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The daemon is no client: none of the options that name one.
        of_clients = ("json", "node", "socket", "api_key_file", "fingerprint")
        self.params = [one for one in self.params if one.name not in of_clients]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from swarmd.cli.swarmctl import LAZY

        if ctx.parent is None and args[0] in LAZY:
            raise click.UsageError(f"to ask a daemon that runs: `swarmctl {args[0]}`", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=DaemonGroup,
    invoke_without_command=True,
    lazy={
        "config": ("swarmd.cli.swarmd:config", "Show the settings and where they come from."),
        "data-key": ("swarmd.cli.commands.data_key:data_key", "Seal the data folder under a key."),
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    examples=[
        "swarmd --init lab                  # first host",
        "swarmd --join -                    # other hosts: asks for the token",
        "swarmd --join @token --seed host1  # where multicast does not reach",
        "swarmd --join                      # without a token: an admin approves it",
        "swarmd                             # from then on",
        "swarmd --data-key-file /mnt/stick/swarmd.key  # seal the data folder",
    ],
)
@click.option("--init", "init", metavar="NAME", help="Make a new swarm.")
@click.option(
    "--join",
    "join",
    metavar="TOKEN",
    is_flag=False,
    flag_value=_WITHOUT_TOKEN,
    help="Join a swarm: - reads the token from standard input, @FILE from a file. "
    f"Without TOKEN, wait until an admin approves this node. [{TOKEN_VARIABLE}]",
)
@click.option(
    "--swarm",
    metavar="FINGERPRINT",
    default="",
    help="With --join alone: the swarm to join, as `swarmctl status` shows it there.",
)
@click.option("--config", "file", type=click.Path(path_type=Path), help="Read this TOML file.")
@click.option("--node-name", metavar="NAME", help="Name of this node; default: the host's.")
@click.option("--data-folder", metavar="FOLDER", help="Where keys, journals and blobs are kept.")
@click.option("--data-key-file", metavar="FILE", help="Seal the data folder under this key.")
@click.option("--port", type=int, help="Mesh port, TCP and UDP. [7575]")
@click.option("--bind", multiple=True, metavar="ADDRESS", help="Listen here; may be repeated.")
@click.option("--seed", multiple=True, metavar="HOST[:PORT]", help="Known member; may be repeated.")
@click.option("--mdns/--no-mdns", default=None, help="Find members by multicast DNS.")
@click.option("--interface", multiple=True, metavar="NAME", help="Interface for multicast DNS.")
@click.option("--socket", "daemon_socket", metavar="PATH", help="Where the API listens.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any other setting."
)
@click.version_option(__version__, prog_name="swarmd", message="%(prog)s %(version)s")
def swarmd(
    init: str | None,
    join: str | None,
    swarm: str,
    file: Path | None,
    settings: tuple[str, ...],
    **shortcuts: Any,
) -> int:
    """Run this host's node of a swarm.

    The first host makes the swarm with --init and prints a join token; the others --join it.
    From then on `swarmd` alone is enough.
    """
    from swarmd.config import load

    context = click.get_current_context()
    flags = _flags(settings, shortcuts)
    loaded = load(file=file, flags=flags)
    context.obj = loaded
    if context.invoked_subcommand is not None:
        if init is not None or join is not None:
            raise click.UsageError("--init and --join run the daemon: give no command with them")
        return 0
    return _run(loaded, start_mode(init, join, swarm))


def _flags(settings: tuple[str, ...], shortcuts: dict[str, Any]) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    for flag, key in _SHORTCUTS.items():
        value = shortcuts.get(flag)
        if value is not None and value != ():
            flags[key] = list(value) if isinstance(value, tuple) else value
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting!r}: expected SECTION.KEY=VALUE")
        flags[key.strip()] = value.strip()
    return flags


def start_mode(init: str | None, join: str | None, swarm: str = "") -> StartMode:
    """What to start as. Reads the token from where the user put it.

    Raises:
        TokenRefused: there is no token where it was said to be.
    """
    from swarmd.config import Ask, Init, Join, Resume

    if init is not None and join is not None:
        raise click.UsageError("--init makes a swarm, --join enters one: give one of the two")
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if swarm and (join != _WITHOUT_TOKEN or token):
        raise click.UsageError(
            "--swarm goes with --join alone: a token names its swarm, and --init makes one"
        )
    if init is not None:
        return Init(init)
    if join is not None and join != _WITHOUT_TOKEN:
        return Join(_read_token(join))
    if token:
        return Join(token)
    return Resume() if join is None else Ask(swarm)


def _read_token(given: str) -> str:
    if given == "-":
        text = _prompt() if sys.stdin.isatty() else sys.stdin.read(_TOKEN_FILE_BYTES_MAX)
        where = "standard input"
    elif given.startswith("@"):
        where = given[1:]
        try:
            with open(where, encoding="utf-8") as file:
                text = file.read(_TOKEN_FILE_BYTES_MAX)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise TokenRefused(f"cannot read the join token from {where}: {reason}") from error
    else:
        text, where = given, "--join"
        click.echo(
            "swarmd: warning: a token on the command line shows in the process list: "
            "use --join -, --join @FILE or SWARMD_JOIN_TOKEN",
            err=True,
        )
    token = text.strip()
    if not token:
        raise TokenRefused(
            f"there is no join token in {where}: make one with `swarmctl token create` on a member"
        )
    return token


def _prompt() -> str:
    from getpass import getpass

    return getpass("join token: ")


def _run(config: Config, start: StartMode) -> int:
    from swarmd.app import run
    from swarmd.app.memory import calm_collector, share_one_heap

    share_one_heap()
    calm_collector()
    code: int = run(config, start)
    return code


# ---- swarmd config --------------------------------------------------------------------


@click.group(cls=DaemonGroup, examples=["swarmd config show", "swarmd config example"])
def config() -> None:
    """Show the settings."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--changed", is_flag=True, help="Only what is not at its default.")
def show(as_json: bool, changed: bool) -> None:
    """Print every setting and where its value came from."""
    from swarmd.cli.config_text import toml_value

    loaded: Config = click.get_current_context().obj
    found = [one for one in loaded.describe() if not changed or one.source != "default"]
    if as_json:
        print_json([{"key": one.key, "value": one.value, "source": one.source} for one in found])
        return
    # Not cut to 80 columns: values and paths are there to be read whole.
    width = max((len(one.key) for one in found), default=0)
    for one in found:
        click.echo(f"{one.key:<{width}} = {toml_value(one.value)}  # {one.source}")
    if not changed:
        click.echo(f"# data folder {loaded.data_folder}, keys {loaded.keys_folder}")
        click.echo(f"# socket {loaded.socket_path}, node name {loaded.node_name}")


@config.command()
def example() -> None:
    """Print a configuration file with every key, its default and what it trades."""
    from swarmd.cli.config_text import render_example

    click.echo(render_example(), nl=False)


@config.command()
def reference() -> None:
    """Print the tables of docs/configuration.md."""
    from swarmd.cli.config_text import render_reference

    click.echo(render_reference(), nl=False)


def main() -> Never:
    """Entry point of the console script."""
    run_program(swarmd, "swarmd")


if __name__ == "__main__":
    main()
