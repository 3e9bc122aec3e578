"""Modules that a library imports and this process has no use for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def spared(modules: Mapping[str, Mapping[str, Any] | None]) -> Iterator[None]:
    """Have what is imported in this block do without `modules`, unless they are loaded already.

    Whoever imports one of them later gets it whole. For the top of a file only, before there are
    threads: one that imported such a module meanwhile would get what stands in for it.

    Args:
        modules: by full name, the attributes that the library takes from it at once; None where
            it can do without the module.
    """
    absent = {name: has for name, has in modules.items() if name not in sys.modules}
    for name, has in absent.items():
        stand_in: Any = None if has is None else ModuleType(name)
        if stand_in is not None:
            vars(stand_in).update(has or {})
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
