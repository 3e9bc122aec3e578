"""What a daemon answers by itself to a question to all members: a few facts, by name.

An answer is a flat record of at most QUERY_ANSWER_BYTES_MAX bytes.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from swarmd import __version__
from swarmd.base.errors import BadRequest, NotFound, TooLarge
from swarmd.base.limits import QUERY_ANSWER_BYTES_MAX
from swarmd.gateway.services import Services
from swarmd.mesh.events.messages import check_payload
from swarmd.wire.version import PROTOCOL_LOWEST, PROTOCOL_VERSION

NOBODY_ASKED: Final = "nobody was asked"
Answer = dict[str, int | float | str]
_UPTIME: Final = Path("/proc/uptime")


def answer_query(services: Services, name: str, payload: str) -> Answer:
    """This node's answer. Reads a small file of the kernel's at most.

    Raises:
        NotFound: this build answers no such question; it names those that it does.
        BadRequest, TooLarge: the payload is none that the question takes.
        OSError: the machine would not tell.
    """
    answerer = _ANSWERS.get(name)
    if answerer is None:
        raise NotFound(
            f"{services.config.node_name} answers no question {name!r}: it answers "
            f"{', '.join(sorted(_ANSWERS))}"
        )
    check_payload(payload, "a question", NOBODY_ASKED)
    if payload and name != "ping":
        raise BadRequest(f"the question {name!r} takes no payload")
    found = answerer(services, payload)
    size = len(msgspec.msgpack.encode(found))
    if size > QUERY_ANSWER_BYTES_MAX:
        raise TooLarge(f"the answer has {size} bytes; at most {QUERY_ANSWER_BYTES_MAX} fit")
    return found


def _ping(services: Services, payload: str) -> Answer:
    return {"payload": payload}


def _uptime(services: Services, payload: str) -> Answer:
    host_s = float(_UPTIME.read_text().split()[0])
    return {"daemon_s": int(services.clock.now() - services.started_at), "host_s": int(host_s)}


def _version(services: Services, payload: str) -> Answer:
    return {
        "swarmd": __version__,
        "protocol": PROTOCOL_VERSION,
        "protocol_lowest": PROTOCOL_LOWEST,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}"[:200],
    }


def _load(services: Services, payload: str) -> Answer:
    one, five, fifteen = (round(load, 2) for load in os.getloadavg())
    return {"1min": one, "5min": five, "15min": fifteen, "cores": os.cpu_count() or 0}


def _disk(services: Services, payload: str) -> Answer:
    """Of the file system that the data folder is on."""
    usage = shutil.disk_usage(services.config.data_folder)
    return {"free_bytes": usage.free, "total_bytes": usage.total}


_ANSWERS: Final[Mapping[str, Callable[[Services, str], Answer]]] = {
    "disk": _disk,
    "load": _load,
    "ping": _ping,
    "uptime": _uptime,
    "version": _version,
}
