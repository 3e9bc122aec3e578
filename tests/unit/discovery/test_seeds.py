"""Seeds as people write them."""

from __future__ import annotations

import pytest

from swarmd.base.errors import ConfigError
from swarmd.mesh.discovery.static import parse_address, resolve


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("alpha", ("alpha", 7575)),
        ("alpha:1", ("alpha", 1)),
        (" 10.0.0.1:65535 ", ("10.0.0.1", 65_535)),
        ("fd00::1", ("fd00::1", 7575)),
        ("[fd00::1]", ("fd00::1", 7575)),
        ("[fd00::1]:80", ("fd00::1", 80)),
    ],
)
def test_what_is_an_address(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, default_port=7575) == address


@pytest.mark.parametrize(
    "text",
    ["", ":1", "a:", "a:0", "a:65536", "a:x", "a:-1", "a:²", "[::1", "[::1]x", "[::1]:", "a b",
     "http://a", "[]:1"],
)  # fmt: skip
def test_what_is_none_is_quoted(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text, default_port=7575)
    assert repr(text) in caught.value.message


async def test_names_are_resolved_and_failures_named() -> None:
    found, failures = await resolve(
        [("127.0.0.1", 1), ("localhost", 1), ("no.such.host.invalid", 2), ("::1", 3)]
    )
    assert ("127.0.0.1", 1) in found
    assert ("::1", 3) in found
    assert len(found) == len(set(found))
    assert len(failures) == 1
    assert "no.such.host.invalid:2" in failures[0]
