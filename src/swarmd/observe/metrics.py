"""Counters of the whole node, in Prometheus terms, all declared here.

Labels come from closed sets (machine, event, reason); never from input, so that a peer
cannot make the registry grow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from swarmd.base.spared import spared

# The library can serve and push its metrics by itself, and loads three HTTP servers and clients
# of the standard library for that; here the gateway serves them.
with spared(
    {
        "http.server": {"BaseHTTPRequestHandler": object},
        "urllib.request": {
            **dict.fromkeys(("BaseHandler", "HTTPHandler", "HTTPRedirectHandler"), object),
            **dict.fromkeys(("HTTPSHandler", "Request", "build_opener"), object),
        },
        "wsgiref.simple_server": {
            "WSGIRequestHandler": object,
            "WSGIServer": type("WSGIServer", (), {}),
            "make_server": object,
        },
    }
):
    from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
    from prometheus_client.core import CounterMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry()


class Tally(Collector):
    """A counter by machine and kind of thing that costs one addition.

    Machines are stepped thousands of times a second, all in one thread; a `Counter` takes a
    lock each time, and its children must be looked up.
    """

    def __init__(self, name: str, documentation: str, label: str) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._counts: dict[str, defaultdict[type, int]] = {}
        REGISTRY.register(self)

    def of(self, machine: str) -> defaultdict[type, int]:
        """The counts of a machine, for it to raise; machines of one name share them."""
        return self._counts.setdefault(machine, defaultdict(int))

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            self._name, self._documentation, labels=["machine", self._label]
        )
        for machine, counts in self._counts.items():
            for kind, count in counts.items():
                family.add_metric([machine, kind.__name__], count)
        yield family


class ByFamily(Collector):
    """A counter by the family of messages that costs one addition; see `Tally`."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name, self._documentation = name, documentation
        self.counts: defaultdict[str, int] = defaultdict(int)
        REGISTRY.register(self)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=["family"])
        for name, count in self.counts.items():
            family.add_metric([name], count)
        yield family


MACHINE_EVENTS = Tally("swarmd_machine_events_total", "Events fed to a protocol machine", "event")
MACHINE_EFFECTS = Tally(
    "swarmd_machine_effects_total", "Effects asked for by a protocol machine", "effect"
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
VIEW_BYTES = Counter(
    "swarmd_swim_view_bytes_total",
    "Bytes of rumours that went out in whole views, over streams",
    registry=REGISTRY,
)
MESSAGE_BYTES = ByFamily(
    "swarmd_message_bytes_total", "Bytes of messages and requests for peers, before frames and TLS"
)
CRDT_KEYS = Gauge("swarmd_crdt_keys", "Keys in the eventual store", registry=REGISTRY)
CRDT_DIGEST = Gauge(
    "swarmd_crdt_digest",
    "The same on nodes that have seen the same of the eventual store",
    registry=REGISTRY,
)
MEMBERS = Gauge("swarmd_members", "Members by state, as seen here", ["state"], registry=REGISTRY)
USER_EVENTS = Counter("swarmd_user_events_total", "User events told here", registry=REGISTRY)
TASKS = Gauge("swarmd_tasks", "Tasks by state", ["state"], registry=REGISTRY)
BLOB_BYTES_SENT = Counter(
    "swarmd_blob_sent_bytes_total", "Bytes of users' blobs sent to other nodes", registry=REGISTRY
)
AUDIT_RECORDS = Counter(
    "swarmd_audit_records_total",
    "Records of the audit log that this node wrote",
    ["stream"],
    registry=REGISTRY,
)
AUDIT_LOST = Counter(
    "swarmd_audit_lost_total",
    "Events that are in no record, because too many waited for the disk",
    ["stream"],
    registry=REGISTRY,
)
LOOP_LONGEST_PASS = Gauge(
    "swarmd_loop_longest_pass_seconds",
    "Longest time that the node's loop was held up within the last 20 s",
    registry=REGISTRY,
)


def render() -> bytes:
    """The text exposition of every metric."""
    return generate_latest(REGISTRY)
