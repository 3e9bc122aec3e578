"""Settings of vector memory."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from swarmd.base.limits import MIB, VECTOR_BYTES_MAX


class VectorsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[vectors]"""

    # Bytes of vectors in all collections, above which this node takes no more ("too_large"). Each
    # node holds all of them in memory, with what belongs to them, and once more on its disk.
    bytes_max: Annotated[int, Meta(ge=MIB, le=VECTOR_BYTES_MAX)] = 1024 * MIB
    # Longest that a search waits for what this node knows to be in its index. What is not then is
    # told with the answer ("behind").
    settle_timeout_s: Annotated[float, Meta(ge=0, le=60)] = 2.0
