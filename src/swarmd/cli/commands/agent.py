"""swarmctl agent: new, deploy, list, show, logs, remove."""

from __future__ import annotations

import time
from pathlib import Path

import click

from swarmd.cli.common import (
    SwarmGroup,
    complete_agents,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import facts, size, table


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl agent new extractor",
        "swarmctl agent deploy agents/extractor.toml",
        "swarmctl agent list",
        "swarmctl agent logs -f extractor",
    ],
)
def agent() -> None:
    """Deploy and look after agents."""


@agent.command()
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("agents"),
    show_default=True,
    help="Where to write it.",
)
def new(name: str, folder: Path) -> None:
    """Write a small agent NAME to start from: its TOML file and its code."""
    from swarmd.cli.agent_template import write_agent

    files = write_agent(name, folder)
    if wants_json():
        print_json({"files": [str(path) for path in files]})
        return
    for path in files:
        say(f"wrote {path}")
    say(f"next: swarmctl agent deploy {files[0]}")


@agent.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Replace the same version if its content differs.")
def deploy(file: Path, replace: bool) -> None:
    """Pack the folder of the agent FILE (TOML) and deploy it to the swarm.

    Agent files themselves are left out: their environment may hold what nobody shall read.
    """
    import msgspec

    from swarmd.agents.bundle import pack_bundle
    from swarmd.agents.spec import is_agent_file, load_agent_file

    spec, folder = load_agent_file(file)
    here = file.resolve()
    bundle = pack_bundle(folder, leave_out=lambda path: path == here or is_agent_file(path))
    with open_client() as client:
        found = client.deploy(msgspec.to_builtins(spec), bundle, replace=replace)
    if wants_json():
        print_json(found)
    else:
        say(f"deployed {found.name} {found.version} ({size(len(bundle))})")


@agent.command("list")
def list_agents() -> None:
    """List the agents and where they have instances."""
    with open_client() as client:
        found = client.agents()
        live = client.instances()
    if wants_json():
        print_json({"agents": found, "instances": live.instances, "missing": live.missing})
        return
    counts = {one.name: 0 for one in found}
    for instance in live.instances:
        counts[instance.agent] = counts.get(instance.agent, 0) + 1
    rows = [
        [one.name, one.version, one.runtime, str(counts[one.name]), one.description]
        for one in found
    ]
    click.echo(table(["NAME", "VERSION", "RUNTIME", "INSTANCES", "DESCRIPTION"], rows))
    _name_missing(live.missing)


def _name_missing(missing: list[str]) -> None:
    if missing:
        warn(f"no answer from {', '.join(missing)}: their instances are not counted")


@agent.command()
@click.argument("name", shell_complete=complete_agents)
def show(name: str) -> None:
    """Show one agent and its instances."""
    with open_client() as client:
        found = client.agent(name)
        live = client.instances()
    mine = [one for one in live.instances if one.agent == name]
    if wants_json():
        print_json({"agent": found, "instances": mine, "missing": live.missing})
        return
    rows = [
        ("name", found.name),
        ("version", found.version),
        ("description", found.description or "-"),
        ("runtime", f"{found.runtime}, entry {found.entry}"),
        ("bundle", f"{found.bundle[:16]}, {size(found.bundle_bytes)}"),
    ]
    keys = ("concurrency", "timeout_s", "retries", "mode")
    rows += [(key, str(found.spec[key])) for key in keys if key in found.spec]
    rows += [("env", f"{name} = {value}") for name, value in found.spec.get("env", {}).items()]
    click.echo(facts(rows))
    if mine:
        cells = [
            [one.node, str(one.pid), one.state, one.version, " ".join(one.tasks)] for one in mine
        ]
        click.echo("\n" + table(["NODE", "PID", "STATE", "VERSION", "TASK"], cells))
    _name_missing(live.missing)


@agent.command()
@click.argument("name", shell_complete=complete_agents)
@click.option("-f", "--follow", is_flag=True, help="Go on as new lines come, until Ctrl-C.")
def logs(name: str, follow: bool) -> None:
    """Print what instances of an agent logged, on every node."""
    with open_client() as client:
        for line in client.logs(name, follow=follow):
            if wants_json():
                print_json(line)
            elif line.stream == "missing":
                warn(f"no answer from {line.node}: its lines are not shown")
            else:
                clock = time.strftime("%H:%M:%S", time.localtime(line.wall_ms / 1000))
                click.echo(f"{clock} {line.node} {line.task[:8]} {line.text}")


@agent.command()
@click.argument("name", shell_complete=complete_agents)
def remove(name: str) -> None:
    """Remove an agent; its pending tasks fail, those that run may finish."""
    with open_client() as client:
        done = client.remove_agent(name)
    if wants_json():
        print_json(done)
    else:
        say(done.message or f"removed {name}")
