"""Settings of the membership protocol, and three profiles of them."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from swarmd.base.errors import ConfigError

Profile = Literal["local", "lan", "wan"]


class SwimConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `swim` section. A setting left at its default takes the profile's value."""

    # Where the members are: "local" (one machine), "lan" or "wan". Sets every value below that
    # you leave alone; slower networks need more patience and get slower detection.
    profile: Profile = "lan"
    # Each member asks one other this often, in seconds. Shorter finds failures sooner and sends
    # proportionally more packets.
    probe_interval_s: float = 1.0
    # How long a direct answer may take before others are asked to try, in seconds. Must leave
    # room for the indirect answer within the interval. A timer that is later than this shows
    # that the process stood still, and answers are waited for once more.
    probe_timeout_s: float = 0.5
    # How many others are asked to try. More tolerates more loss and sends more on each miss.
    indirect_probes: int = 3
    # Suspicion lasts at least this x log10(members) x probe interval. More gives a slow member
    # longer to answer for itself, and a dead one longer to be believed in.
    suspicion_mult: int = 4
    # A suspicion nobody else confirms lasts this many times longer.
    suspicion_max_mult: int = 6
    # Suspicion of a member whose host refuses connections, and that answers none of three quick
    # pings, in seconds: its process is gone, but a restart within this time goes unnoticed.
    refused_suspicion_s: float = 0.3
    # News goes out this often while there is any, in seconds.
    gossip_interval_s: float = 0.2
    # To how many members at a time.
    gossip_fanout: int = 3
    # Each piece of news is sent this x log10(members) times. More survives more loss.
    retransmit_mult: int = 4
    # Members dead for less than this still get the news, so that they can answer, in seconds.
    gossip_to_dead_s: float = 30.0
    # Whole views are exchanged with a random member this often, in seconds; longer above 32
    # members. Heals what gossip missed; costs a stream and the view's bytes.
    sync_interval_s: float = 30.0
    # When a probe shows that views differ they are exchanged at once, but not more often than
    # this, in seconds.
    sync_min_interval_s: float = 1.0
    # How long such an exchange may take, in seconds.
    sync_timeout_s: float = 5.0
    # Dead members are tried again this often for ever, in seconds, and more often the more of them
    # there are: a partition heals within five of these. Each time costs `retry_dead` packets.
    retry_interval_s: float = 10.0
    # How many dead members each time.
    retry_dead: int = 3
    # How long leaving may take, in seconds: the goodbye is repeated meanwhile.
    leave_timeout_s: float = 1.0


PROFILES: Final[dict[Profile, dict[str, float | int]]] = {
    "local": {
        "probe_interval_s": 0.5,
        "probe_timeout_s": 0.2,
        "suspicion_mult": 3,
        "gossip_interval_s": 0.1,
        "sync_interval_s": 15.0,
        "sync_min_interval_s": 0.5,
        "sync_timeout_s": 2.0,
        "retry_interval_s": 2.0,
        "leave_timeout_s": 0.5,
    },
    "lan": {},
    "wan": {
        "probe_interval_s": 5.0,
        "probe_timeout_s": 3.0,
        "suspicion_mult": 6,
        "refused_suspicion_s": 2.0,
        "gossip_interval_s": 0.5,
        "gossip_fanout": 4,
        "gossip_to_dead_s": 60.0,
        "sync_interval_s": 60.0,
        "sync_min_interval_s": 5.0,
        "sync_timeout_s": 15.0,
        "retry_interval_s": 20.0,
        "leave_timeout_s": 5.0,
    },
}


def settle(config: SwimConfig) -> SwimConfig:
    """`config` with its profile's value for every setting left at the default, checked.

    Raises:
        ConfigError: names the setting, and what it must be.
    """
    defaults = SwimConfig()
    changes: dict[str, Any] = {
        name: value
        for name, value in PROFILES[config.profile].items()
        if getattr(config, name) == getattr(defaults, name)
    }
    settled = msgspec.structs.replace(config, **changes)
    for name in settled.__struct_fields__:
        value = getattr(settled, name)
        least = 0 if name in ("indirect_probes", "retry_dead", "gossip_to_dead_s") else 1e-3
        if not isinstance(value, str) and value < least:
            raise ConfigError(f"swim.{name} is {value}; it must be at least {least}")
    if settled.probe_timeout_s >= settled.probe_interval_s:
        raise ConfigError(
            f"swim.probe_timeout_s ({settled.probe_timeout_s}) must be less than "
            f"swim.probe_interval_s ({settled.probe_interval_s})"
        )
    return settled
