"""What can be checked from outside while no daemon answers."""

from __future__ import annotations

from swarmd.base.errors import ConfigError
from swarmd.gateway.doctor import check_config_wrong, check_daemon_down, examine_local
from swarmd.gateway.local_facts import gather
from swarmd.gateway.shapes import Check


def examine(problem: str) -> list[Check]:
    """The checks that need no daemon. `problem` says how it was looked for."""
    from swarmd.app.folder import owner_of
    from swarmd.config import load
    from swarmd.mesh.standing import standing_of

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
        standing=standing_of(folder, owner_of(folder)),
    )
    return checks + examine_local(facts)
