"""The roof: one node from its data folder to its API.

`folder` claims the data folder, `start` settles which swarm the node is in, `node` opens
every service from the ground up and closes in reverse, `control` is what the API may ask of
the node itself.
"""

from __future__ import annotations

from swarmd.app.node import run

__all__ = ["run"]
