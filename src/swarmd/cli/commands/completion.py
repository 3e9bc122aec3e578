"""swarmctl completion: the script that a shell evaluates."""

from __future__ import annotations

import click

from swarmd.cli.common import SwarmCommand

_SHELLS = ["bash", "zsh"]


@click.command(
    cls=SwarmCommand,
    examples=[
        'eval "$(swarmctl completion bash)"   # in ~/.bashrc',
        'eval "$(swarmctl completion zsh)"    # in ~/.zshrc',
        'eval "$(swarmctl completion bash --program swarmd)"',
    ],
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.option("--program", type=click.Choice(["swarmctl", "swarmd"]), default="swarmctl")
def completion(shell: str, program: str) -> None:
    """Print the completion script for SHELL."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell
    variable = f"_{program.upper()}_COMPLETE"
    command = click.Group(program)
    maker = kind(command, {}, program, variable)
    # The check of bash's version that `source()` adds would start a shell each time.
    click.echo(maker.source_template % maker.source_vars())
