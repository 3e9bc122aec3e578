"""One fixed value of every message that the source defines: for golden vectors and for fuzzing."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, get_args

from msgspec import inspect as shape

import swarmd
from swarmd.state.raft.messages import Batch, Group, Operation, encode_batch
from swarmd.wire.codec import Family


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
    if isinstance(kind, shape.StructType | shape.NamedTupleType):
        return kind.cls(**{f.name: sample(f.type, depth + 1) for f in kind.fields})
    raise AssertionError(f"no sample for {kind}")


def batches() -> dict[str, bytes]:
    """An encoded batch of one operation, for every operation of the strong store."""
    return {
        operation.__name__: encode_batch(
            Batch(7, (Group(b"s" * 16, 1, 2, (sample(shape.type_info(operation)),)),))
        )
        for operation in get_args(Operation)
    }
