"""A seat among the voters, as certificates and the log name it."""

from __future__ import annotations

from functools import cached_property
from typing import Final

import msgspec

from swarmd.base.ids import NodeId, node_id_of

PUBLIC_BYTES: Final = 32
STORAGE_BYTES: Final = 16
VOTERS_MAX: Final = 9


class Voter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, dict=True):
    """A seat: the key that signs for it and the storage that remembers its votes.

    `storage` is random and made together with an empty journal, so that a node that lost its
    disk is another voter and cannot vote twice.
    """

    public: bytes
    storage: bytes

    @cached_property
    def node_id(self) -> NodeId:
        return node_id_of(self.public)
