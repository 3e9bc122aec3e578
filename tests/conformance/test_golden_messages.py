"""Every message of every family has one encoding, written down here.

A change of layout shows as a difference to `golden_messages.json`: nodes of two versions would
misread each other, so it needs a new format number. Run this file to write the vectors anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from message_samples import batches, families, sample
from msgspec import inspect as shape

from swarmd.state.raft.messages import decode_batch, encode_batch

GOLDEN = Path(__file__).with_name("golden_messages.json")


def vectors() -> dict[str, str]:
    found = {}
    for name, family in sorted(families().items()):
        for message in family.types:
            value = sample(shape.type_info(message))
            found[f"{name}.{message.__name__}"] = family.encode(value).hex()
    return found | {f"batch.{name}": raw.hex() for name, raw in batches().items()}


VECTORS = vectors()


def test_there_is_a_vector_for_every_message_and_no_other() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == sorted(VECTORS)


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_a_message_is_encoded_as_it_always_was(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    assert VECTORS[name] == golden
    if name.startswith("batch."):
        batch = decode_batch(bytes.fromhex(golden))
        assert type(batch.groups[0].ops[0]).__name__ == name.split(".")[1]
        assert encode_batch(batch).hex() == golden
        return
    family = families_by_name[name.split(".")[0]]
    decoded = family.decode(bytes.fromhex(golden))
    assert type(decoded).__name__ == name.split(".")[1]
    assert family.encode(decoded).hex() == golden


families_by_name = families()


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(VECTORS, indent=1) + "\n")
    print(f"{len(VECTORS)} vectors, msgspec {msgspec.__version__}")
