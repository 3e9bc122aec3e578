"""When the holder of a lease renews it, and when it must have stopped.

Times are seconds since the *sending* of the last renewal that succeeded, on CLOCK_BOOTTIME. The
store counts from when it heard of it, which is later, so whoever keeps these times has stopped
before anybody else can begin. What is left at the end covers clocks that run apart and the
time that a kill takes.
"""

from __future__ import annotations

from typing import Final

TTL_MIN_S: Final = 2.0
TTL_MAX_S: Final = 24 * 3_600.0
_SPARE_SHARE: Final = 0.1
_SPARE_MIN_S: Final = 0.2
_SPARE_MAX_S: Final = 1.0
_GRACE_SHARE: Final = 0.25
_GRACE_MAX_S: Final = 10.0


def renew_after_s(ttl_s: float) -> float:
    """Then the lease is renewed; two more tries fit before it is too late."""
    return ttl_s / 3


def kill_after_s(ttl_s: float) -> float:
    """Then nothing of the work may run any more."""
    return ttl_s - min(max(ttl_s * _SPARE_SHARE, _SPARE_MIN_S), _SPARE_MAX_S)


def stop_after_s(ttl_s: float) -> float:
    """Then the work is asked to end, so that it can do so in order before it is killed."""
    return kill_after_s(ttl_s) - min(ttl_s * _GRACE_SHARE, _GRACE_MAX_S)


assert renew_after_s(TTL_MIN_S) < stop_after_s(TTL_MIN_S) < kill_after_s(TTL_MIN_S) < TTL_MIN_S
assert stop_after_s(TTL_MAX_S) < kill_after_s(TTL_MAX_S) < TTL_MAX_S
