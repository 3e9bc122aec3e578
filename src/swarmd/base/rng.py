"""Chance as an argument: every random choice comes from a generator someone passed in."""

from __future__ import annotations

import hashlib
from random import Random

Rng = Random


def make_rng(seed: int | str | bytes) -> Rng:
    """A generator whose stream depends on `seed` alone, on any Python and any hash seed."""
    raw = seed if isinstance(seed, bytes) else str(seed).encode()
    whole = int.from_bytes(hashlib.blake2b(raw, digest_size=16).digest(), "big")
    # For timers and choices; keys and nonces are os.urandom's.
    return Random(whole)  # nosec B311


def derive(rng: Rng, label: str) -> Rng:
    """A generator of its own for one consumer, so that consumers do not disturb each other."""
    return make_rng(f"{label}:{rng.getrandbits(64)}")
