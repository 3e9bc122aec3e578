"""One node: every service opened from the ground up, and closed in reverse.

    data folder -> API (answers "not ready") -> swarm -> mesh -> both stores -> memory -> blobs
        -> supervisor and agents -> tasks -> ready

A crash in any service cancels the others and ends the process with its error. SIGTERM,
Ctrl-C and `swarmctl stop` end it in order: the coordinator hands its office over, tasks are
finished or handed back within `DRAIN_S`, members are told goodbye, and the rest closes.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from swarmd import __version__
from swarmd.agents.accounts import Accounts
from swarmd.agents.bundles import BundleCache
from swarmd.agents.opening import Environments
from swarmd.agents.service import open_agents
from swarmd.agents.supervisor import open_supervisor
from swarmd.app.control import WAYS_IN, NodeControl
from swarmd.app.folder import DataFolder, claim, load_data_key
from swarmd.app.memory import keep_giving_back, keep_out_of_collector
from swarmd.app.renewal import Renewal
from swarmd.app.start import Beginning, begin, check_mode
from swarmd.app.watch import watch_events
from swarmd.audit.service import open_audit
from swarmd.base.clock import BootClock
from swarmd.base.disk import Disk
from swarmd.base.errors import DiskFault, SwarmError
from swarmd.base.ids import NodeId, node_id_of, short
from swarmd.base.notes import NOBODY, Notes
from swarmd.base.rng import Rng, derive, make_rng
from swarmd.config import Config, StartMode
from swarmd.gateway.access.service import open_access
from swarmd.gateway.service import Gateway, open_gateway
from swarmd.gateway.services import Services
from swarmd.identity.entries import Admit, open_entry
from swarmd.identity.sealing import SealingKey
from swarmd.memory.cache.service import open_cache
from swarmd.memory.kv.service import open_memory
from swarmd.memory.vector.embedding import make_embedder
from swarmd.memory.vector.opening import index_opener
from swarmd.memory.vector.service import VectorMemory
from swarmd.mesh.bus.service import open_bus
from swarmd.mesh.rumours import RumourSigner
from swarmd.mesh.service import Mesh, open_mesh
from swarmd.mesh.swim.service import MemberState
from swarmd.mesh.swim.tags import checked_tags
from swarmd.observe import log, metrics
from swarmd.observe.loop import LoopWatch
from swarmd.state.blobs.service import open_blobs
from swarmd.state.crdt.service import Eventual, open_eventual
from swarmd.state.raft.messages import AuthorityEntry
from swarmd.state.raft.service import Store, open_store
from swarmd.state.recipes.service import open_recipes
from swarmd.state.secrets.keyring import delete_keys
from swarmd.state.secrets.service import open_secrets
from swarmd.tasks.gathering import current_references
from swarmd.tasks.service import Tasks, open_tasks

DRAIN_S: Final = 8.0
GOODBYE_S: Final = 2.0
# For how long a node that was stopped asks not to be suspected.
RESTART_QUIET_S: Final = 10
SETTLE_S: Final = 1.0
FIRST_ENTRY_TIMEOUT_S: Final = 30.0
# Longest time between two lines of progress while the data folder is sealed.
SEALING_TOLD_S: Final = 600
_BUNDLES: Final = "bundles"

_log = log.get_logger("app")


def run(config: Config, start: StartMode) -> int:
    """Run the node until it is told to stop; the process's exit code.

    Raises:
        SwarmError: the node could not start, or had to end; one sentence says why.
    """
    check_mode(start)
    log.configure(
        config.node.log_level, json=config.node.log_format == "json", node=config.node_name
    )
    folder = claim(config.data_folder, _data_key(config), _tell_sealing)
    try:
        sealed = "data sealed" if folder.sealer is not None else "data in clear"
        _log.info("starting", version=__version__, node_id=short(folder.key.key_id), folder=sealed)
        accounts = Accounts(config.agents, folder.agents / _BUNDLES)
        trio.run(_main, config, folder, accounts, start)
    except BaseExceptionGroup as group:
        raise _cause(group) from group
    finally:
        folder.close()
    return 0


def _data_key(config: Config) -> SealingKey | None:
    file = config.data_key_file
    return None if file is None else load_data_key(file, config.data_folder)


def _tell_sealing(line: str) -> None:
    _log.warning(line)
    # It may take longer than the service manager waits for a start.
    _notify(f"STATUS={line}\nEXTEND_TIMEOUT_USEC={SEALING_TOLD_S * 1_000_000}")


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that a person should read: a SwarmError if there is one."""
    meant = group.subgroup(SwarmError)
    found: BaseException = meant if meant is not None else group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def say(text: str) -> None:
    """Tell the person who started the daemon; logs go to stderr."""
    print(text, flush=True)  # noqa: T201


async def _main(config: Config, folder: DataFolder, accounts: Accounts, start: StartMode) -> None:
    control = NodeControl()
    clock = BootClock()
    services = Services(
        node_id=NodeId(folder.key.key_id),
        config=config,
        control=control,
        clock=clock,
        started_at=clock.now(),
        metrics=metrics.render,
        sealer=folder.sealer,
    )
    trio.lowlevel.add_instrument(LoopWatch())
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, control)
        nursery.start_soon(keep_giving_back)
        async with open_gateway(config.gateway, services) as gateway:
            beginning = await _settle(config, folder, start, control)
            if beginning is None and control.is_stopping:
                _log.info("stopped before it was in a swarm")
            elif beginning is None:
                control.now_without_swarm()
                say(WAYS_IN)
                _notify("READY=1\nSTATUS=in no swarm yet")
                await control.wait_stop()
            else:
                rng = make_rng(os.urandom(32))
                node = _Node(config, folder, accounts, beginning, services, rng)
                await _serve(node, gateway, control)
        nursery.cancel_scope.cancel()


async def _settle(
    config: Config, folder: DataFolder, start: StartMode, control: NodeControl
) -> Beginning | None:
    """See `begin`; None also if the node was told to stop meanwhile."""
    found: list[Beginning | None] = [None]

    async def end_with_node(scope: trio.CancelScope) -> None:
        await control.wait_stop()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_with_node, nursery.cancel_scope)
        found = [await begin(config, folder, folder.disk("mesh"), start, say, control.now_waiting)]
        nursery.cancel_scope.cancel()
    return found[0]


@dataclass(frozen=True)
class _Node:
    """What every opening below needs of the node."""

    config: Config
    folder: DataFolder
    accounts: Accounts
    beginning: Beginning
    services: Services
    rng: Rng


async def _serve(node: _Node, gateway: Gateway, control: NodeControl) -> None:
    """Open every room, take part until told to stop, wind down."""
    try:
        await _take_part(node, gateway, control)
    finally:
        # An evicted node ends, or does not even start, before any room could act on it.
        if node.services.node_id in node.beginning.trust.evicted():
            _delete_keys(node.folder.disk("secrets"))


def _delete_keys(disk: Disk) -> None:
    try:
        delete_keys(disk)
    except DiskFault as error:
        todo = "delete the data folder of this node"
        _log.error("keys for secrets could not be deleted", why=error.message, todo=todo)
    else:
        _log.info("this node was evicted: it keeps no keys for secrets")


async def _take_part(node: _Node, gateway: Gateway, control: NodeControl) -> None:
    async with _open_store(node, gateway) as (mesh, store, eventual):
        control.store, control.eventual = store, eventual
        _serve_joins(mesh, store, node.services.audit or NOBODY)
        async with (
            _keep_credential(node, mesh, store, node.services.audit or NOBODY),
            _open_work(node, mesh, store, control) as tasks,
        ):
            if node.beginning.first_entry is not None:
                await _hand_out_first_token(store, node.beginning, node.services.audit or NOBODY)
            control.now_ready()
            _log.info("ready", swarm=node.beginning.trust.genesis.name)
            _notify("READY=1")
            await control.wait_stop()
            await _wind_down(gateway, tasks, store, mesh, node.services, control.leaves)


@asynccontextmanager
async def _open_store(node: _Node, gateway: Gateway) -> AsyncIterator[tuple[Mesh, Store, Eventual]]:
    """The lower half: the mesh and its bus, both stores, and what rests on them alone."""
    config, folder, services = node.config, node.folder, node.services
    services.trust = trust = node.beginning.trust
    async with open_mesh(
        config.mesh,
        config.swim,
        key=folder.key,
        trust=trust,
        disk=folder.disk("mesh"),
        clock=services.clock,
        rng=derive(node.rng, "mesh"),
        name=config.node_name,
        tags=checked_tags(config.node.tags),
    ) as mesh:
        services.mesh = mesh
        gateway.attach(mesh.link)
        mesh.contact(node.beginning.seeds)
        async with (
            open_bus(
                mesh.link, mesh.membership, config.bus, services.clock, derive(node.rng, "bus")
            ) as services.bus,
            open_eventual(
                mesh.link,
                mesh.membership,
                folder.disk("crdt"),
                RumourSigner(folder.key, trust),
                services.clock,
                derive(node.rng, "crdt"),
                # Expired ones, too: they come back.
                everyone=lambda: [
                    one.node_id for one in trust.admissions_by_id().values() if not one.evicted
                ],
                config=config.crdt,
            ) as eventual,
            open_store(
                mesh.link,
                mesh.membership,
                trust,
                folder.disk("raft"),
                folder.key,
                config.raft,
                services.clock,
                derive(node.rng, "store"),
                node.beginning.epochs,
            ) as store,
        ):
            services.store = store
            keep_out_of_collector()
            async with _open_on_stores(node, mesh, eventual, store):
                yield mesh, store, eventual


@asynccontextmanager
async def _open_on_stores(
    node: _Node, mesh: Mesh, eventual: Eventual, store: Store
) -> AsyncIterator[None]:
    """What rests on both stores alone: memory, recipes, access, secrets, the audit log."""
    config, folder, services = node.config, node.folder, node.services
    trust = node.beginning.trust
    async with (
        _open_memory(node, mesh, eventual, store),
        open_recipes(store, services.clock, derive(node.rng, "recipes")) as services.recipes,
        open_access(
            store, trust, folder.key, services.clock, derive(node.rng, "access")
        ) as services.access,
        open_secrets(
            store,
            trust,
            mesh.link,
            mesh.membership,
            folder.disk("secrets"),
            services.clock,
            derive(node.rng, "secrets"),
        ) as services.secrets,
        open_audit(
            folder.path / "audit",
            folder.key,
            trust,
            mesh.link,
            mesh.membership,
            store,
            config.audit,
            services.clock,
            derive(node.rng, "audit"),
            folder.sealer,
        ) as services.audit,
        watch_events(services.audit, store, services.name_of),
    ):
        services.audit.note("node.started", config.node_name, "", "ok", __version__)
        yield


@asynccontextmanager
async def _open_memory(
    node: _Node, mesh: Mesh, eventual: Eventual, store: Store
) -> AsyncIterator[None]:
    """Shared memory, caches in it, and vector memory."""
    services = node.services
    me, clock = services.node_id, services.clock

    def alive() -> list[NodeId]:
        return [one for one in mesh.membership.alive() if one != me]

    async def read_secret(name: str) -> str:
        return (await services.need(services.secrets).value(name))[0]

    services.vectors = vectors = VectorMemory(
        me,
        eventual,
        index_opener(node.config.vectors, node.folder.vectors, me, read_secret),
        node.config.vectors,
        derive(node.rng, "vectors"),
        alive,
        make_embedder(node.config.vectors, read_secret),
    )
    async with (
        open_memory(mesh.link, eventual, store, clock, alive) as memory,
        open_cache(me, memory, store, clock, derive(node.rng, "cache")) as services.cache,
    ):
        services.memory = memory
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vectors.run)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_work(
    node: _Node, mesh: Mesh, store: Store, control: NodeControl
) -> AsyncIterator[Tasks]:
    """The upper half: blobs, agents and tasks."""
    config, services, link = node.config, node.services, mesh.link
    agents_folder, accounts = node.folder.agents, node.accounts
    async with AsyncExitStack() as opened:
        services.blobs = blobs = await opened.enter_async_context(
            open_blobs(
                link,
                node.folder.path / "blobs",
                config.blobs,
                services.clock,
                voters=lambda: store.voters,
                members=lambda: _remaining(mesh),
                alive=lambda: tuple(mesh.membership.alive()),
                referenced=lambda: current_references(store),
                sealer=node.folder.sealer,
            )
        )
        control.blobs = blobs
        if accounts.own:
            node.folder.let_agents_through()
        assert services.secrets is not None, "the lower half is open"
        secrets = services.secrets
        bundles = BundleCache(agents_folder / _BUNDLES, blobs, group=accounts.group)
        supervisor = await opened.enter_async_context(
            open_supervisor(
                config.agents,
                folder=agents_folder,
                bundles=bundles,
                clock=services.clock,
                recipes=services.recipes,
                host=config.node_name,
                accounts=accounts,
                environments=Environments(secrets, link, services.audit or NOBODY),
                notes=services.audit or NOBODY,
                bus=services.bus,
            )
        )
        services.agents = await opened.enter_async_context(
            open_agents(
                store,
                blobs,
                link,
                mesh.membership,
                supervisor,
                config.agents,
                folders=bundles,
                secrets=secrets,
                notes=services.audit or NOBODY,
            )
        )
        services.tasks = tasks = await opened.enter_async_context(
            open_tasks(
                store=store,
                blobs=blobs,
                link=link,
                membership=mesh.membership,
                supervisor=supervisor,
                swarm_id=node.beginning.trust.swarm_id,
                config=config.tasks,
                clock=services.clock,
                rng=derive(node.rng, "tasks"),
                bus=services.bus,
            )
        )
        yield tasks


def _serve_joins(mesh: Mesh, store: Store, notes: Notes = NOBODY) -> None:
    async def admit(entry: bytes) -> None:
        [result] = await store.propose([AuthorityEntry(entry)])
        _note_admission(notes, entry, result.code or "ok")
        result.raise_for_error()

    mesh.serve_joins(admit)


@asynccontextmanager
async def _keep_credential(
    node: _Node, mesh: Mesh, store: Store, notes: Notes
) -> AsyncIterator[None]:
    """Let credentials expire, and renew this node's, for as long as the block runs."""
    trust, key = node.beginning.trust, node.folder.key
    trust.enforce_expiry(lambda: {*store.voters, NodeId(key.key_id)})
    renewal = Renewal(mesh, store, trust, key, derive(node.rng, "renewal"), notes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(renewal.run)
        yield
        nursery.cancel_scope.cancel()


def _note_admission(notes: Notes, raw: bytes, outcome: str) -> None:
    entry = open_entry(raw)[1]
    if isinstance(entry, Admit):
        subject = f"{entry.name} {short(node_id_of(entry.public))}"
        details = "as " + ", ".join(entry.roles)
        actor = f"token {short(entry.token_id)}"
        notes.note("node.admitted", actor, subject, outcome, details)


def _remaining(mesh: Mesh) -> tuple[NodeId, ...]:
    """Members that have not left."""
    members = mesh.membership.members()
    return tuple(m.node_id for m in members if m.state is not MemberState.LEFT)


async def _hand_out_first_token(store: Store, beginning: Beginning, notes: Notes) -> None:
    assert beginning.first_entry is not None
    [result] = await store.propose(
        [AuthorityEntry(beginning.first_entry)], timeout_s=FIRST_ENTRY_TIMEOUT_S
    )
    result.raise_for_error()
    notes.note("token.created", "swarmd --init", "the first token")
    say("join token, good for 20 joins in 1 h; on every other host: swarmd --join -")
    say(beginning.first_token)


async def _wind_down(
    gateway: Gateway, tasks: Tasks, store: Store, mesh: Mesh, services: Services, leaves: bool
) -> None:
    """End in order: members hold the node `left` at once and send it nothing.

    A node that keeps its seat is expected back, so its connections close as for a restart: whom
    the goodbye does not reach does not suspect it, and asks again in a few seconds.
    """
    _notify("STOPPING=1")
    _log.info("stopping")
    gateway.end_streams()
    await store.handing.give_up()
    await tasks.drain(DRAIN_S)
    await _settle_audit(services)
    with trio.move_on_after(GOODBYE_S):
        if leaves:
            await mesh.leave("leaving")
        else:
            await mesh.leave("restarting", RESTART_QUIET_S)
    _log.info("said goodbye")


async def _settle_audit(services: Services) -> None:
    """While others still listen: what comes after this is written, and told at the next start."""
    if services.audit is None:
        return
    services.audit.note("node.stopped", services.config.node_name)
    with trio.move_on_after(SETTLE_S):
        try:
            await services.audit.settle()
        except SwarmError as error:
            _log.debug("the last audit records are not named in the store", why=error.message)


async def _watch_signals(
    control: NodeControl, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The first SIGTERM or Ctrl-C ends in order; a second one at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        asked = False
        async for number in signals:
            if asked:
                _log.warning("ending at once")
                sys.exit(128 + number)
            asked = True
            control.stop()


def _notify(state: str) -> None:
    """Tell the service manager, if it started us as Type=notify (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(state.encode(), address)
        except OSError as error:
            _log.warning("the service manager was not told", error=error.strerror)
