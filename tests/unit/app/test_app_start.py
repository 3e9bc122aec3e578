"""What is refused before a data folder or a swarm is made."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from swarmd.app import run
from swarmd.app.folder import claim
from swarmd.app.start import begin
from swarmd.base.errors import BadRequest, PortTaken, SwarmError, TokenRefused
from swarmd.config import Config, Init, Join, Resume, StartMode, load


def config_in(folder: Path, port: int = 0) -> Config:
    flags = {
        "node.data_folder": str(folder / "data"),
        "node.keys_folder": str(folder / "keys"),
        "node.name": "n1",
        "mesh.bind": "127.0.0.1",
        "mesh.port": port,
        "gateway.socket": str(folder / "sock"),
    }
    return load(file=None, environ={"SWARMD_CONFIG": "/dev/null"}, flags=flags)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (Init("my lab"), BadRequest),
        (Init("x" * 1_000), BadRequest),
        (Join("hello"), TokenRefused),
        (Join("a" * 192), TokenRefused),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_touched(
    tmp_path: Path, mode: StartMode, kind: type[SwarmError]
) -> None:
    with pytest.raises(kind):
        run(config_in(tmp_path), mode)
    assert list(tmp_path.iterdir()) == []


async def test_no_swarm_is_made_on_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = config_in(tmp_path, taken.getsockname()[1])
        folder = claim(config.data_folder)
        said: list[str] = []
        with pytest.raises(PortTaken, match=r"mesh\.port"):
            await begin(config, folder, folder.disk("mesh"), Init("lab"), said.append)
        assert said == []
        assert not config.keys_folder.exists()
        assert await begin(config, folder, folder.disk("mesh"), Resume(), said.append) is None
        folder.close()
