"""swarmd data-key: the key that a data folder is sealed under, made, changed, done away with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.base.errors import BadRequest
from swarmd.cli.swarmd import DaemonGroup

if TYPE_CHECKING:
    from swarmd.config import Config


@click.group(
    cls=DaemonGroup,
    examples=[
        "swarmd data-key new /mnt/stick/swarmd.key",
        "swarmd --data-key-file /mnt/stick/swarmd.key  # a fresh data folder is sealed, and runs",
        "swarmd --data-key-file KEY data-key seal      # one that is in clear",
        "swarmd --data-key-file OLD data-key change NEW",
        "swarmd --data-key-file OLD data-key remove",
    ],
)
def data_key() -> None:
    """Seal the data folder under a key that is kept elsewhere.

    `new` makes a key. A daemon that is started with it (--data-key-file, node.data_key_file) in a
    fresh data folder seals all that it keeps, and starts on it with that key alone. `seal` (for a
    folder that is in clear), `change` and `remove` are for when the daemon is down; if one is
    interrupted, do the same again.
    """


@data_key.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Make a key and write it to FILE (mode 0600). Keep a copy of it: nothing opens without it."""
    from swarmd.identity.sealing import SealingKey

    if file.exists():
        raise BadRequest(f"{file} exists already: name a new file, or delete that one first")
    key = SealingKey.generate()
    key.save(file)
    click.echo(f"{file} holds the new data key {key.id.hex()[:8]}")
    click.echo(f"seal a fresh data folder under it with: swarmd --data-key-file {file}")
    click.echo(f"or one that is in clear: swarmd --data-key-file {file} data-key seal")


@data_key.command()
def seal() -> None:
    """Seal a folder that is in clear, under the key of --data-key-file."""
    config = _config()
    if config.data_key_file is None:
        raise BadRequest("no key was given: swarmd --data-key-file FILE data-key seal")
    _reseal(None, config.data_key_file)
    click.echo(f"from now on start with: swarmd --data-key-file {config.data_key_file}")


@data_key.command()
@click.argument("new", metavar="NEW", type=click.Path(path_type=Path))
def change(new: Path) -> None:
    """Seal everything anew, under the key in the file NEW."""
    config = _config()
    if config.data_key_file is None:
        raise BadRequest("no key was given: swarmd --data-key-file OLD data-key change NEW")
    _reseal(config.data_key_file, new)
    click.echo(f"from now on start with: swarmd --data-key-file {new}")
    click.echo(
        "what the key before is good for: copies of the folder from before, and nothing else"
    )


@data_key.command()
def remove() -> None:
    """Have everything lie in clear again."""
    _reseal(_config().data_key_file, None)
    click.echo("from now on start without --data-key-file and node.data_key_file")


def _reseal(before: Path | None, after: Path | None) -> None:
    from swarmd.app.folder import load_data_key, reseal

    folder = _config().data_folder
    old, new = (None if file is None else load_data_key(file, folder) for file in (before, after))
    reseal(folder, old, new, lambda line: click.echo(line, err=True))


def _config() -> Config:
    config: Config = click.get_current_context().find_root().obj
    return config
