"""Which swarm a node is in: made, joined, resumed; repeated, refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.app.folder import DataFolder, claim
from swarmd.app.start import begin
from swarmd.base.errors import AlreadyExists, BadRequest, Forbidden, TokenRefused, Unreachable
from swarmd.config import Config, Init, Join, Resume, StartMode, load
from swarmd.identity.tokens import Moment, encode_token, new_token
from swarmd.mesh.trust import has_trust


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    claimed = claim(tmp_path / "data")
    yield claimed
    claimed.close()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    flags = {
        "node.name": "n1",
        "node.keys_folder": str(tmp_path / "keys"),
        "mesh.mdns": False,
        "mesh.seeds": ["127.0.0.1:1"],
        "mesh.bind": ["127.78.0.1"],  # Nobody else's, so that no port there is in use by chance.
    }
    return load(environ={}, flags=flags)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Talk:
    def __init__(self, config: Config, folder: DataFolder) -> None:
        self.config, self.folder = config, folder
        self.said: list[str] = []

    async def start(self, mode: StartMode) -> object:
        disk = self.folder.disk("mesh")
        return await begin(self.config, self.folder, disk, mode, self.said.append)

    def in_a_swarm(self) -> bool:
        return has_trust(self.folder.disk("mesh"))


@pytest.fixture
def talk(config: Config, folder: DataFolder) -> Talk:
    return Talk(config, folder)


async def test_an_empty_folder_is_in_no_swarm(talk: Talk) -> None:
    assert await talk.start(Resume()) is None
    assert not talk.in_a_swarm()


async def test_init_makes_a_swarm_and_keys_outside_the_data_folder(
    talk: Talk, tmp_path: Path
) -> None:
    await talk.start(Init("lab"))
    assert talk.in_a_swarm()
    keys = sorted(p.name for p in (tmp_path / "keys").iterdir())
    assert keys == ["lab.admin.key", "lab.recovery.key"]
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in (tmp_path / "keys").iterdir())
    assert not list((tmp_path / "data").rglob("*admin*"))


async def test_init_again_is_one_line_and_changes_nothing(talk: Talk, tmp_path: Path) -> None:
    await talk.start(Init("lab"))
    before = contents(tmp_path)
    talk.said.clear()
    assert await talk.start(Init("lab")) is not None
    assert len(talk.said) == 1
    assert "already; nothing changed" in talk.said[0]
    assert contents(tmp_path) == before


async def test_another_swarm_is_refused(talk: Talk) -> None:
    await talk.start(Init("lab"))
    with pytest.raises(Forbidden, match="in the swarm lab"):
        await talk.start(Init("office"))
    other = new_token(b"x" * 32, Moment(0, b"x" * 32, 1, b"x" * 16), role="member", expires_ms=1)
    with pytest.raises(Forbidden, match="the token is for another"):
        await talk.start(Join(encode_token(other)))


async def test_keys_of_an_earlier_swarm_are_not_overwritten(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "lab.admin.key").write_text("precious")
    with pytest.raises(AlreadyExists, match="key of an earlier swarm"):
        await talk.start(Init("lab"))
    assert (tmp_path / "keys" / "lab.admin.key").read_text() == "precious"
    assert not talk.in_a_swarm()


@pytest.mark.parametrize("name", ["", "two words", "../up", "x" * 200])
async def test_a_bad_name_is_refused_before_anything_is_written(
    talk: Talk, tmp_path: Path, name: str
) -> None:
    with pytest.raises(BadRequest):
        await talk.start(Init(name))
    assert not talk.in_a_swarm()
    assert not (tmp_path / "keys").exists()


async def test_a_join_that_fails_leaves_nothing(talk: Talk) -> None:
    with pytest.raises(TokenRefused):
        await talk.start(Join("notatoken"))
    token = new_token(b"x" * 32, Moment(0, b"x" * 32, 1, b"x" * 16), role="member", expires_ms=1)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        await talk.start(Join(encode_token(token)))
    assert not talk.in_a_swarm()
