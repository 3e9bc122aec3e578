"""swarmctl: talk to the daemon of this machine, and through it to the swarm.

Noun then verb; a few shortcuts at the top. Every command is a call of the HTTP API and its
printing, nothing else.
"""

from __future__ import annotations

from typing import Final, Never

import click

from swarmd import __version__
from swarmd.cli.common import SwarmGroup, run_program

_COMMANDS: Final = "swarmd.cli.commands"
LAZY: Final = {
    "members": (f"{_COMMANDS}.cluster:members", "Who is here."),
    "status": (f"{_COMMANDS}.cluster:status", "How the swarm is, and what the next loss costs."),
    "doctor": (f"{_COMMANDS}.cluster:doctor", "Why nodes do not see each other, and what to do."),
    "run": (f"{_COMMANDS}.run:run", "Run an agent on files or a value and print the results."),
    "job": (f"{_COMMANDS}.job:job", "Pipelines of agents over many inputs."),
    "task": (f"{_COMMANDS}.task:task", "Single tasks."),
    "agent": (f"{_COMMANDS}.agent:agent", "Deploy, list, remove agents; read their logs."),
    "kv": (f"{_COMMANDS}.kv:kv", "The swarm's strongly consistent keys."),
    "mem": (f"{_COMMANDS}.mem:mem", "Values that every node remembers, even when cut off."),
    "crdt": (f"{_COMMANDS}.crdt:crdt", "Why a remembered value is what it is: who wrote what."),
    "vector": (f"{_COMMANDS}.vector:vector", "Vectors that every node holds and searches."),
    "blob": (f"{_COMMANDS}.blob:blob", "Files of any size, kept on several nodes by their hash."),
    "bus": (f"{_COMMANDS}.bus:bus", "Messages between agents and programs, as they come."),
    "event": (f"{_COMMANDS}.event:event", "Named events that every node tells every other."),
    "lease": (f"{_COMMANDS}.lease:lease", "Rights that end by themselves, and their keys."),
    "raft": (f"{_COMMANDS}.raft:raft", "How the voters' logs are."),
    "voter": (f"{_COMMANDS}.voter:voter", "Who votes, and who is pinned to a seat."),
    "coordinator": (f"{_COMMANDS}.raft:coordinator", "Who coordinates; hand the office over."),
    "snapshot": (f"{_COMMANDS}.snapshot:snapshot", "Save the store to a file; put keys back."),
    "lock": (f"{_COMMANDS}.lock:lock", "Run a command while holding a lock."),
    "locks": (f"{_COMMANDS}.locks:locks", "Who holds which lock, and who waits."),
    "elect": (f"{_COMMANDS}.lock:elect", "Run a command while this host leads."),
    "elections": (f"{_COMMANDS}.locks:elections", "Who leads."),
    "barrier": (f"{_COMMANDS}.barrier:barrier", "Wait until so many have come."),
    "counter": (f"{_COMMANDS}.counter:counter", "Numbers that the whole swarm counts."),
    "node": (f"{_COMMANDS}.node:node", "Let nodes in, say what they may be, shut one out."),
    "authority": (f"{_COMMANDS}.authority:authority", "Who was admitted by whom, and its proof."),
    "admin": (f"{_COMMANDS}.authority:admin", "Keys that admit, evict and give roles."),
    "token": (f"{_COMMANDS}.token:token", "Tokens that let new nodes join."),
    "key": (f"{_COMMANDS}.key:key", "API keys: who may ask the swarm for what."),
    "secret": (f"{_COMMANDS}.secret:secret", "Values that agents get and nobody is shown."),
    "audit": (f"{_COMMANDS}.audit:audit", "Who did what; is the record of it unchanged?"),
    "stop": (f"{_COMMANDS}.cluster:stop", "End the daemon; it keeps its seat and may return."),
    "leave": (f"{_COMMANDS}.cluster:leave", "End the daemon and hand on what it holds."),
    "completion": (f"{_COMMANDS}.completion:completion", "Completion script for bash or zsh."),
}


@click.group(
    cls=SwarmGroup,
    lazy=LAZY,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    examples=[
        "swarmctl status",
        "swarmctl --node host2 doctor",
        "swarmctl agent deploy agents/extractor.toml",
        "swarmctl run extractor *.txt",
        "swarmctl job run pipeline.toml docs/",
    ],
)
@click.version_option(__version__, prog_name="swarmctl", message="%(prog)s %(version)s")
def swarmctl() -> None:
    """Talk to the swarm through the daemon of this machine."""


def main() -> Never:
    """Entry point of the console script."""
    run_program(swarmctl, "swarmctl")


if __name__ == "__main__":
    main()
