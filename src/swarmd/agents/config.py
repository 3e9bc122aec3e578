"""Settings of the room that runs agents."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
AS_DAEMON: Final = "daemon"


class AgentsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[agents]"""

    # Attempts that run on this node at once, over all agents, each in a process of its own
    # (about 15 MB before the agent's code). More uses more cores, and more memory.
    attempts_max: Count = 32
    # Processes kept, idle ones included. More keeps more agents warm; it must be at least
    # attempts_max, or attempts wait for each other's processes.
    instances_max: Count = 64
    # Attempts that may wait for a free process; beyond it the node answers "busy".
    waiting_max: Count = 10_000
    # An unused process ends after this long. Longer spares the start of about 0.1 s; shorter
    # gives memory back sooner.
    idle_s: Seconds = 120.0
    # Longest import of an agent's code before it counts as a failed start.
    start_timeout_s: Seconds = 30.0
    # Time that a cancelled attempt has to notice context.cancelled before its process, and
    # everything it forked, is killed.
    cancel_grace_s: Seconds = 0.5
    # Longest pause before a process that keeps crashing is replaced; the first is replaced at
    # once, later ones after a pause that doubles up to this.
    replace_pause_max_s: Seconds = 30.0
    # Log lines kept per agent, in memory only. More shows more of the past, and takes memory.
    log_lines_max: Count = 2_000
    # Longest log line kept; what is longer is cut.
    log_line_bytes_max: Count = 4_096
    # Last log lines that travel with the outcome of an attempt.
    outcome_lines_max: Annotated[int, Meta(ge=0)] = 20
    # Time every member has to answer a live question (instances, logs); who does not is named
    # as missing.
    ask_timeout_s: Seconds = 1.0
    # As whom agents run if root started the daemon. Empty: each as a user of its own, without an
    # account; else an account's name for all of them, or "daemon": as root, which can do all that
    # this host can. Any other daemon runs agents as itself.
    user: str = ""
    # Limits of each process, which it cannot raise: open files, and bytes of its own memory; 0 is
    # none. More lets one agent take more from the others.
    open_files_max: Annotated[int, Meta(ge=32)] = 1_024
    memory_bytes_max: Annotated[int, Meta(ge=0)] = 0
    # Processes and threads of one agent on this node, where it is a user of its own.
    processes_max: Annotated[int, Meta(ge=8)] = 4_096
    # PATH of agents, which get nothing else of the daemon's environment but HOME and LANG.
    # Empty: the daemon's own PATH.
    path: str = ""

    def __post_init__(self) -> None:
        if self.instances_max < self.attempts_max:
            raise ValueError("instances_max must be at least attempts_max")
