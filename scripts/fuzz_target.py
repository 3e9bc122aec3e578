"""What a target of the fuzzer is, and what several are made of: see `fuzz_targets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fuzz_inputs import packed, unpacked

from swarmd.base.errors import SwarmError
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import (
    Admit,
    issue_token,
    sign_entry,
)
from swarmd.identity.epochs import first_epoch
from swarmd.identity.genesis import make_genesis
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import encode_token, moment_of

Refusals = tuple[type[Exception], ...]
_NAMED: Final[Refusals] = (SwarmError,)
# How many inputs one state is kept for where sound input adds to it.
KEPT_FOR: Final = 500


@dataclass(frozen=True)
class Target:
    """Something that takes bytes.

    `make` gives a fresh taker; it is called once, or every `renewed_after` inputs.
    `renewing`: refusals after which the taker is of no use, as a voter that stopped loudly.
    `covers`: the functions of the source that this stands for, as `module.name` below `swarmd`.
    """

    name: str
    make: Callable[[], Callable[[bytes], Any]]
    samples: Sequence[bytes]
    covers: tuple[str, ...] = ()
    refusals: Refusals = _NAMED
    renewing: Refusals = ()
    dress: Callable[[Any], bytes] | None = None
    values: Sequence[Any] = field(default_factory=tuple)
    renewed_after: int = 0


# ---- what the samples are made of ----------------------------------------------------------

ADMIN: Final = SigningKey.from_seed(b"a" * 32)
KEYS: Final = [SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 4)]
GENESIS: Final = make_genesis(
    "lab",
    nonce=b"g" * 16,
    node_key=KEYS[0],
    node_name="alpha",
    admin_public=ADMIN.public,
    recovery_public=b"r" * 32,
)
SWARM: Final = GENESIS.swarm_id
PLACE: Final = ("10.0.0.1", 1)


def _log() -> tuple[AuthorityState, bytes, bytes]:
    """A log with a token, the entry that admits by it, and the token's text."""
    state = AuthorityState(GENESIS)
    token, entry = issue_token(
        SWARM, moment_of(state.head, first_epoch(GENESIS)), ADMIN, uses=5, expires_ms=10_000
    )
    state.apply(entry, 1_000)
    admit = Admit(
        token.token_id,
        KEYS[1].public,
        "beta",
        KEYS[1].certificate,
        token.roles,
        b"j" * 16,
        b"s" * 16,
    )
    return state, sign_entry(admit, SWARM, token.key, KEYS[1]), encode_token(token).encode()


STATE, ADMIT, TOKEN = _log()


def always(call: Callable[[bytes], Any]) -> Callable[[], Callable[[bytes], Any]]:
    return lambda: call


def text(call: Callable[[str], Any]) -> Callable[[], Callable[[bytes], Any]]:
    return lambda: lambda raw: call(raw.decode("utf-8", "surrogateescape"))


def of_struct(name: str, call: Callable[[bytes], Any], raw: bytes) -> Target:
    covered = f"{call.__module__.removeprefix('swarmd.')}.{call.__name__}"
    return Target(
        name, always(call), [raw], covers=(covered,), dress=packed, values=[unpacked(raw)]
    )
