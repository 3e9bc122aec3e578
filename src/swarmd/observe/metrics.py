"""Counters of the whole node, in Prometheus terms, all declared here.

Labels come from closed sets (machine, event, reason); never from input, so that a peer
cannot make the registry grow.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

REGISTRY = CollectorRegistry()

MACHINE_EVENTS = Counter(
    "swarmd_machine_events_total",
    "Events fed to a protocol machine",
    ["machine", "event"],
    registry=REGISTRY,
)
MACHINE_EFFECTS = Counter(
    "swarmd_machine_effects_total",
    "Effects asked for by a protocol machine",
    ["machine", "effect"],
    registry=REGISTRY,
)
DROPPED = Counter(
    "swarmd_dropped_total",
    "Input that was refused, by where and why",
    ["where", "reason"],
    registry=REGISTRY,
)
BYTES = Counter(
    "swarmd_transport_bytes_total",
    "Bytes sent and received",
    ["transport", "direction"],
    registry=REGISTRY,
)
MEMBERS = Gauge("swarmd_members", "Members by state, as seen here", ["state"], registry=REGISTRY)
TASKS = Gauge("swarmd_tasks", "Tasks by state", ["state"], registry=REGISTRY)
LOOP_LONGEST_PASS = Gauge(
    "swarmd_loop_longest_pass_seconds",
    "Longest time that the node's loop was held up within the last 20 s",
    registry=REGISTRY,
)


def render() -> bytes:
    """The text exposition of every metric."""
    return generate_latest(REGISTRY)
