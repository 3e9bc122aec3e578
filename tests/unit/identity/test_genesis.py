"""The genesis: one encoding, sound fields, a name that is safe to print."""

from __future__ import annotations

import msgspec
import pytest

from swarmd.base.errors import BadRequest, MalformedMessage
from swarmd.base.names import check_name
from swarmd.identity.genesis import decode_genesis, encode_genesis, init_swarm
from swarmd.identity.keys import SigningKey


def test_a_new_swarm_has_keys_of_its_own_and_an_id_that_survives_encoding() -> None:
    genesis, node, admin, recovery = init_swarm("lab", "alpha")
    assert len({node.public, admin.public, recovery.public}) == 3
    assert (genesis.first_node_public, genesis.admin_public) == (node.public, admin.public)
    assert decode_genesis(encode_genesis(genesis)) == genesis
    assert len(genesis.swarm_id) == 32
    assert init_swarm("lab", "alpha", node_key=node)[0].swarm_id != genesis.swarm_id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("name", "a/b"),
        ("first_node_name", ""),
        ("nonce", b"short"),
        ("admin_public", b"x" * 31),
        ("recovery_public", b""),
        ("first_node_public", SigningKey.from_seed(b"z" * 32).public),
        ("first_node_certificate", b"junk"),
    ],
)
def test_an_unsound_field_is_refused(field: str, value: object) -> None:
    genesis = init_swarm("lab")[0]
    bent = msgspec.structs.replace(genesis, **{field: value})
    with pytest.raises(MalformedMessage):
        decode_genesis(encode_genesis(bent))


def test_another_encoding_of_the_same_genesis_is_refused() -> None:
    raw = encode_genesis(init_swarm("lab")[0])
    assert raw[1] == 1  # The version, as a fixint; 0xcc 1 says the same in two bytes.
    with pytest.raises(MalformedMessage, match="one encoding"):
        decode_genesis(raw[:1] + b"\xcc\x01" + raw[2:])
    with pytest.raises(MalformedMessage, match="too large"):
        decode_genesis(raw + bytes(5_000))


@pytest.mark.parametrize(
    "name", ["", " ", "-a", "a-", "a b", "a/b", "..", "a\n", "é", "x" * 129, "\x1b[31m"]
)
def test_a_name_that_could_confuse_a_table_or_a_path_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        check_name(name, "node")


@pytest.mark.parametrize("name", ["a", "lab", "node-1.example_2"])
def test_ordinary_names_pass(name: str) -> None:
    check_name(name, "node")
