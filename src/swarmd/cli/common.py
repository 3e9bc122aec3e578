"""What both programs share: groups, common options, errors as one line, exit codes.

Exit codes: 0 done, 1 the work failed, 2 usage, 3 daemon unreachable, 4 no quorum or timeout,
130 interrupted. A mistake is answered with one line on stderr that says what to do; with
--json the error also goes to stdout as `{"error": {...}}`.

Modules of commands are imported when their command is typed or completed, never before: what
is imported is most of what a command costs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Never

import click

from swarmd.base.errors import (
    BadRequest,
    Compacted,
    ConfigError,
    Conflict,
    DataFolderRefused,
    NotFound,
    PortTaken,
    SwarmError,
    TokenRefused,
    Unavailable,
)
from swarmd.base.lapse import TTL_MAX_S, TTL_MIN_S

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from swarmd.client import Client

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_DAEMON_DOWN: Final = 3
EXIT_NO_QUORUM: Final = 4
EXIT_INTERRUPTED: Final = 130

# What a lock, an election or a barrier takes if the command does not say.
TTL_S: Final = 15.0
WAIT_S: Final = 60.0

_JSON: Final = "swarmd.json"
_SOCKETS: Final = "swarmd.sockets"
_KEY_FILE: Final = "swarmd.key_file"
_FINGERPRINT: Final = "swarmd.fingerprint"
_KEY_FILE_BYTES_MAX: Final = 16_384
_NODE: Final = "swarmd.node"
_COMPLETION_TIMEOUT_S: Final = 1.0
_HELP_CHARS: Final = 160

HOW_TO_START: Final = (
    "start it with `swarmd` (first host: `swarmd --init NAME`; other hosts: `swarmd --join -`), "
    "or name its socket with --socket"
)


class BadInput(ConfigError):
    """A file or value that the user gave is wrong; the message names the place."""

    code = "bad_input"


class Failed(SwarmError):
    """The work was done and failed; what is to be said was said already, or is the message."""

    code = "failed"


admin_key_option = click.option(
    "--admin-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Admin key of the swarm; default: SWARM.admin.key among the keys.",
)

# ---- commands and groups --------------------------------------------------------------


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            context.meta[name] = value

    return callback


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_remember(_JSON),
            help="Print JSON.",
        ),
        click.Option(
            ["--socket"],
            multiple=True,
            expose_value=False,
            callback=_remember(_SOCKETS),
            metavar="PATH|URL",
            type=click.Path(),
            help="Daemon's socket or https://host:port; repeat to fail over. [SWARMCTL_SOCKET]",
        ),
        click.Option(
            ["--api-key-file"],
            expose_value=False,
            callback=_remember(_KEY_FILE),
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="File with the API key or session to show. [SWARMCTL_API_KEY: the key itself]",
        ),
        click.Option(
            ["--fingerprint"],
            expose_value=False,
            callback=_remember(_FINGERPRINT),
            metavar="SHA256",
            help="Certificate(s) that https daemons must show, by commas. [SWARMCTL_FINGERPRINT]",
        ),
        click.Option(
            ["--node"],
            expose_value=False,
            callback=_remember(_NODE),
            metavar="NAME|ID",
            shell_complete=complete_members,
            help="Member that shall answer; the daemon forwards to it.",
        ),
    ]


class SwarmCommand(click.Command):
    """A command with the options that all have."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params += _common_options()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_examples(self.examples, formatter)


def _format_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    if examples:
        formatter.write_paragraph()
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class SwarmGroup(click.Group):
    """A group whose commands live in modules named by `lazy`: name -> (module:name, help)."""

    command_class: type[click.Command] | None = SwarmCommand

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, tuple[str, str]] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})
        self.examples = examples
        self.params += _common_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            top = ctx.find_root()
            if isinstance(top.command, click.Group) and name in top.command.list_commands(top):
                hint = f"did you mean `{top.info_name} {name}`?"
            else:
                hint = suggest(name, known, ", ".join(known))
            raise click.UsageError(f"no such command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing the modules of any."""
        rows = [
            (name, self.lazy[name][1] if name in self.lazy else self._short_help(name))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _short_help(self, name: str) -> str:
        return self.commands[name].get_short_help_str(_HELP_CHARS)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_examples(self.examples, formatter)


def suggest(wrong: str, known: Sequence[str], otherwise: str) -> str:
    """ "did you mean X?" if something known is close, else "one of: ..."."""
    import difflib

    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"one of: {otherwise}"


# ---- what a command asks for ----------------------------------------------------------


def wants_json() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_JSON))


def node_asked() -> str | None:
    return click.get_current_context().meta.get(_NODE)


@contextlib.contextmanager
def open_client(*, timeout_s: float = 60.0, local: bool = False) -> Iterator[Client]:
    """The client that --socket and --node describe.

    Args:
        local: the daemon of this machine itself, whatever --node says: it decides what is
            signed here, and no other member may.
    """
    node = None if local else click.get_current_context().meta.get(_NODE)
    with _client(node, timeout_s) as client:
        yield client


@contextlib.contextmanager
def client_of(node: str, *, timeout_s: float = 60.0) -> Iterator[Client]:
    """The client that --socket describes, for the member `node` whatever --node says."""
    with _client(node, timeout_s) as client:
        yield client


def _client(node: str | None, timeout_s: float) -> Client:
    from swarmd.client import Client

    meta = click.get_current_context().meta
    return Client(
        list(meta.get(_SOCKETS, ())) or None,
        node=node,
        timeout_s=timeout_s,
        api_key=_api_key(meta.get(_KEY_FILE)),
        fingerprint=meta.get(_FINGERPRINT) or os.environ.get("SWARMCTL_FINGERPRINT", ""),
    )


def _api_key(file: Path | None) -> str:
    """The credential to show; none is shown over a socket unless one is named."""
    if file is None:
        return os.environ.get("SWARMCTL_API_KEY", "")
    try:
        with open(file, "rb") as opened:
            return opened.read(_KEY_FILE_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no key"
        raise BadInput(f"cannot read an API key from {file}: {why}") from error


def print_json(value: Any) -> None:
    """One JSON document on stdout. Bytes appear as base64."""
    import msgspec

    raw = msgspec.json.encode(value)
    if sys.stdout.isatty():
        raw = msgspec.json.format(raw, indent=2)
    sys.stdout.write(raw.decode() + "\n")


def say(text: str) -> None:
    """A line on stdout, unless JSON is wanted there."""
    if not wants_json():
        click.echo(text)


def warn(text: str) -> None:
    """A line on stderr."""
    click.echo(text, err=True)


def read_duration_s(text: str) -> float:
    """Seconds in "90", "90s", "10m", "2h" or "1d".

    Raises:
        click.BadParameter: anything else, or nothing above zero.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
    number = text.strip()
    unit = 1.0
    if number[-1:] in units:
        unit, number = units[number[-1]], number[:-1]
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{text!r} is not a duration: expected like 90s, 10m, 2h or 1d")
    return seconds


class Duration(click.ParamType[float]):
    """Seconds, written with a unit."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, int | float):
            return float(value)
        return read_duration_s(value)


class Size(click.ParamType[int]):
    """Bytes, written with a unit."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        units = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "B": 1}
        text = value.strip()
        unit = next((one for one in units if text.endswith(one)), "")
        number = text.removesuffix(unit).strip()
        if not (number.isascii() and number.isdigit()):
            self.fail(f"{value!r} is not a size: expected like 4096, 512KiB, 64MiB or 1GiB")
        return int(number) * units.get(unit, 1)


class Ttl(Duration):
    """How long a lease lasts."""

    def convert(self, value: object, param: object, ctx: object) -> float:
        seconds = super().convert(value, param, ctx)
        if not TTL_MIN_S <= seconds <= TTL_MAX_S:
            raise click.BadParameter(f"a lease lasts from {TTL_MIN_S:g} s to 24 h")
        return seconds


class Wait(Duration):
    """A length of time, which may be 0."""

    def convert(self, value: object, param: object, ctx: object) -> float:
        if isinstance(value, str) and value.strip() in ("0", "0s"):
            return 0.0
        return super().convert(value, param, ctx)


# ---- completion -----------------------------------------------------------------------


def _completed(
    context: click.Context, incomplete: str, ask: Callable[[Client], list[str]]
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    try:
        with context.scope(cleanup=False), open_client(timeout_s=_COMPLETION_TIMEOUT_S) as client:
            names = ask(client)
    except SwarmError:
        return []  # Completing must not print; the command itself will say what is wrong.
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_members(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return _completed(ctx, incomplete, lambda client: [one.name for one in client.members()])


def complete_agents(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return _completed(ctx, incomplete, lambda client: [one.name for one in client.agents()])


def complete_tasks(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return _completed(ctx, incomplete, lambda client: [one.id for one in client.tasks().tasks])


def complete_secrets(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return _completed(ctx, incomplete, lambda client: [one.name for one in client.secrets()])


def complete_leases(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return _completed(ctx, incomplete, lambda client: [str(one.id) for one in client.leases()])


def complete_jobs(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return _completed(ctx, incomplete, lambda client: [one.id for one in client.jobs()])


# ---- running a program ----------------------------------------------------------------


def exit_code_of(error: SwarmError) -> int:
    """The exit code that an error ends a command with."""
    if error.code == "daemon_down":
        return EXIT_DAEMON_DOWN
    if isinstance(error, Unavailable):
        return EXIT_NO_QUORUM
    if isinstance(error, NotFound | Conflict | Compacted):
        return EXIT_FAILED
    if isinstance(error, BadRequest | DataFolderRefused | PortTaken | TokenRefused):
        return EXIT_USAGE
    return EXIT_FAILED


def run_program(group: click.Command, name: str, arguments: list[str] | None = None) -> Never:
    """Run a program to its end: whatever goes wrong is one line and an exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    # What follows "--" is another program's.
    wanted_json = "--json" in given[: given.index("--") if "--" in given else None]
    try:
        code = group.main(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message)
        sys.exit(EXIT_USAGE)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else name
        message = " ".join(error.format_message().split()).rstrip(".")
        _fail(name, "usage", f"{message} (see `{path} --help`)", EXIT_USAGE, wanted_json)
    except click.ClickException as error:
        _fail(name, "failed", error.format_message(), error.exit_code, wanted_json)
    except (click.Abort, KeyboardInterrupt):
        _fail(name, "interrupted", "interrupted", EXIT_INTERRUPTED, False)
    except SwarmError as error:
        message = error.message
        if error.code == "daemon_down":
            message += "; " + HOW_TO_START
        _fail(name, error.code, message, exit_code_of(error), wanted_json, error.retryable)
    except BrokenPipeError:
        # The reader went away (`| head`). Python must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


def _fail(
    name: str, code: str, message: str, exit_code: int, as_json: bool, retryable: bool = False
) -> Never:
    if message:
        click.echo(f"{name}: {message}", err=True)
    if as_json:
        print_json({"error": {"code": code, "message": message, "retryable": retryable}})
    sys.exit(exit_code)
