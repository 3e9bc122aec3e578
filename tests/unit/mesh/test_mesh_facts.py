"""Which configured names and addresses cannot be what they should be."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from swarmd.mesh import facts
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.facts import HOST_NAME, NameFacts, loopback_names, missing_binds

NAMES = {"h1": "127.0.1.1", "h2": "10.0.0.2", "me": "127.0.1.1"}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(addresses: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], list[str]]:
        [(host, port)] = addresses
        found = NAMES.get(host, host if host[0].isdigit() or ":" in host else "")
        return ([(found, port)] if found else []), []

    monkeypatch.setattr(facts, "resolve", resolve)
    monkeypatch.setattr(socket, "gethostname", lambda: "h9")


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({"advertise": ("h1",)}, [("mesh.advertise", "h1", "127.0.1.1")]),
        ({"advertise": ("127.0.0.1:9",)}, [("mesh.advertise", "127.0.0.1:9", "127.0.0.1")]),
        ({"advertise": ("h2:7", "h1:7")}, [("mesh.advertise", "h1:7", "127.0.1.1")]),
        ({"advertise": ("[::1]:7",)}, [("mesh.advertise", "[::1]:7", "::1")]),
        ({"seeds": ("h1", "h2", "nowhere")}, [("mesh.seeds", "h1", "127.0.1.1")]),
        # Written as an address, a seed of this host is meant so; on loopback all are.
        ({"seeds": ("127.0.0.1",)}, []),
        ({"seeds": ("h1",), "advertise": ("h1",), "bind": ("127.0.0.1",)}, []),
        ({"advertise": ("h2",)}, []),
    ],
)
async def test_names_that_mean_this_host_alone_are_found(
    config: dict[str, Any], wrong: list[tuple[str, str, str]]
) -> None:
    found = await loopback_names(MeshConfig(**config))
    assert found == [NameFacts(*one) for one in wrong]


async def test_this_host_s_own_name_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "me")
    assert await loopback_names(MeshConfig()) == [NameFacts(HOST_NAME, "me", "127.0.1.1")]


def test_addresses_to_listen_on_that_are_gone_are_found() -> None:
    config = MeshConfig(bind=("10.0.0.1", "127.0.0.1", "::", "2001:db8::1"))
    assert missing_binds(config, ["10.0.0.1", "2001:db8::1"]) == []
    assert missing_binds(config, ["10.0.0.9"]) == ["10.0.0.1", "2001:db8::1"]
