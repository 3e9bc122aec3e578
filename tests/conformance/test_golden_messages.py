"""Every message of every family has one encoding, written down here.

A change of layout shows as a difference to `golden_messages.json`: nodes of two versions would
misread each other, so it needs a new format number. Run this file to write the vectors anew.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect as shape

import swarmd
from swarmd.state.raft.messages import Batch, Group, Operation, decode_batch, encode_batch
from swarmd.wire.codec import Family

GOLDEN = Path(__file__).with_name("golden_messages.json")


def families() -> dict[str, Family]:
    """Every family that the source defines, by name."""
    found: dict[str, Family] = {}
    for module in pkgutil.walk_packages(swarmd.__path__, "swarmd."):
        if module.name == "swarmd.sdk.worker" or ".sim" in module.name:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Family):
                assert found.setdefault(value.name, value) is value, f"two are named {value.name}"
    return found


def sample(kind: shape.Type, depth: int = 0) -> Any:
    """One fixed value of a type: the same for the same type, on every machine."""
    if isinstance(kind, shape.IntType):
        return max(kind.ge or 0, 7 if kind.le is None or kind.le >= 7 else kind.le)
    if isinstance(kind, shape.FloatType):
        return 1.5
    if isinstance(kind, shape.BoolType):
        return True
    if isinstance(kind, shape.StrType):
        return "a" * max(kind.min_length or 0, 3)
    if isinstance(kind, shape.BytesType):
        return b"\x01" * max(kind.min_length or 0, 3)
    if isinstance(kind, shape.NoneType):
        return None
    if isinstance(kind, shape.EnumType):
        return next(iter(kind.cls))
    if isinstance(kind, shape.LiteralType):
        return kind.values[0]
    if isinstance(kind, shape.TupleType):
        return tuple(sample(item, depth + 1) for item in kind.item_types)
    if isinstance(kind, shape.VarTupleType):
        return (sample(kind.item_type, depth + 1),) if depth < 6 else ()
    if isinstance(kind, shape.ListType):
        return [sample(kind.item_type, depth + 1)] if depth < 6 else []
    if isinstance(kind, shape.DictType):
        return {sample(kind.key_type, depth + 1): sample(kind.value_type, depth + 1)}
    if isinstance(kind, shape.UnionType):
        return sample(kind.types[0], depth + 1)
    if isinstance(kind, shape.StructType):
        return kind.cls(**{f.name: sample(f.type, depth + 1) for f in kind.fields})
    raise AssertionError(f"no sample for {kind}")


def vectors() -> dict[str, str]:
    found = {}
    for name, family in sorted(families().items()):
        for message in family.types:
            value = sample(shape.type_info(message))
            found[f"{name}.{message.__name__}"] = family.encode(value).hex()
    for operation in get_args(Operation):
        batch = Batch(7, (Group(b"s" * 16, 1, 2, (sample(shape.type_info(operation)),)),))
        found[f"batch.{operation.__name__}"] = encode_batch(batch).hex()
    return found


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
