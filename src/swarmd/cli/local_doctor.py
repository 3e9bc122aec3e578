"""What can be checked from outside while no daemon answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.base.errors import ConfigError, SwarmError
from swarmd.gateway.doctor import check_config_wrong, check_daemon_down, examine_local
from swarmd.gateway.local_facts import gather
from swarmd.gateway.shapes import Check

if TYPE_CHECKING:
    from swarmd.config import Config
    from swarmd.mesh.standing import Standing


def examine(problem: str) -> list[Check]:
    """The checks that need no daemon. `problem` says how it was looked for."""
    from swarmd.config import load

    checks = [check_daemon_down(problem)]
    try:
        config = load()
    except ConfigError as error:
        return [*checks, check_config_wrong(error.message)]
    folder = config.data_folder
    facts = gather(
        data_folder=folder,
        port=config.mesh.port,
        bind=config.mesh.bind,
        port_is_ours=False,
        standing=_standing(config),
    )
    return checks + examine_local(facts)


def _standing(config: Config) -> Standing | None:
    from swarmd.app.folder import load_data_key, owner_of, room_of
    from swarmd.app.sealed_folder import check
    from swarmd.mesh.standing import Standing, standing_of, was_in_a_swarm

    folder, key_file = config.data_folder, config.data_key_file
    if not was_in_a_swarm(folder):
        return None
    try:
        sealer = None if key_file is None else load_data_key(key_file, folder)
        check(folder, sealer)
    except SwarmError as error:
        return Standing(problem=error.message)
    return standing_of(room_of(folder, "mesh", sealer), owner_of(folder))
