"""The demo: three daemons, one job over real documents, one coordinator killed on the way.

It calls the installed `swarmd` and `swarmctl` only. It fails (exit 1) unless, at the kill, at
least ten tasks were running; the coordinator changed; every surviving daemon finished tasks
afterwards; and the swarm's result is equal to the byte to that of a plain run of the same
functions in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from localswarm import BIN, Daemon, LocalSwarm, can_hide, wait_until

HERE = Path(__file__).resolve().parent
DOCUMENTS = HERE.parent / "examples" / "documents"
AGENTS = ("parser", "extractor", "analyzer", "aggregator")
SUFFIXES = (".py", ".txt", ".md", ".rst", ".html", ".pdf")
RUNNING_AT_KILL_MIN = 10
DOCUMENTS_MIN = 24
MDNS_PATIENCE_S = 15.0


class DemoFailed(Exception):
    """One of the demo's promises did not hold."""


def say(text: str) -> None:
    print(text, flush=True)


def standard_library() -> list[Path]:
    """Every .py file of this Python's standard library, without test folders."""
    root = Path(sysconfig.get_path("stdlib"))
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if "site-packages" not in path.parts
        and not any(part.startswith("test") for part in path.relative_to(root).parts[:-1])
    ]


def find_documents(paths: list[Path]) -> list[Path]:
    """The files among `paths`, and the documents below its folders."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            files.append(path)
    return [path.absolute() for path in files]


def form_swarm(root: Path) -> LocalSwarm:
    """Start three daemons and let them find each other: by mDNS on lo, else by seeds."""
    isolate = can_hide()
    for static in (False, True):
        swarm = LocalSwarm(root / ("static" if static else "mdns"), static=static, isolate=isolate)
        how = "static seeds" if static else "mDNS on lo"
        say(f"starting three daemons on {', '.join(d.address for d in swarm.daemons)} ...")
        began = time.monotonic()
        try:
            swarm.form(timeout_s=MDNS_PATIENCE_S if not static else 30.0)
        except TimeoutError as error:
            swarm.stop()
            if static:
                raise DemoFailed(f"the daemons did not form a swarm: {error}") from error
            say(f"  mDNS found nobody ({error}); falling back to static seeds")
            continue
        except BaseException:
            swarm.stop()
            raise
        say(f"  they found each other by {how} in {time.monotonic() - began:.1f} s")
        say(
            "  each daemon sees the others' folders as empty (mount namespaces)"
            if isolate
            else "  this user may not make mount namespaces: the folders are only mode 0700"
        )
        return swarm
    raise AssertionError("unreachable")


class JobRun:
    """`swarmctl job run` as a child; its progress bar goes to our terminal."""

    def __init__(self, daemon: Daemon, files: list[Path], result: Path) -> None:
        self._result = result
        self._out = result.open("wb")
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [
                str(BIN / "swarmctl"),
                "--socket",
                str(daemon.socket),
                "job",
                "run",
                str(DOCUMENTS / "pipeline.toml"),
                *map(str, files),
                "--json",
            ],
            stdout=self._out,
        )

    def running(self) -> bool:
        return self.process.poll() is None

    def finish(self) -> Any:
        code = self.process.wait(timeout=600)
        self._out.close()
        if code != 0:
            raise DemoFailed(f"swarmctl job run ended with exit code {code}")
        return json.loads(self._result.read_bytes())


def pick_client(swarm: LocalSwarm, coordinator: Daemon) -> Daemon:
    return next(d for d in swarm.daemons if d is not coordinator)


def kill_midway(coordinator: Daemon, job: JobRun, watcher: Daemon, done_min: int) -> int:
    """SIGKILL the coordinator once enough tasks run and some are done; how many ran."""

    def enough() -> int:
        if not job.running():
            raise DemoFailed("the job ended before the coordinator could be killed")
        status = watcher.try_json("status")
        tasks = (status or {}).get("tasks", {})
        done = tasks.get("succeeded", 0)
        return tasks.get("running", 0) if done >= done_min else 0

    running = wait_until(
        f"{RUNNING_AT_KILL_MIN} tasks running",
        lambda: n if (n := enough()) >= RUNNING_AT_KILL_MIN else 0,
        timeout_s=120,
        every_s=0.02,
    )
    coordinator.kill()
    return int(running)


def check_promises(
    before: Daemon,
    after: Daemon | None,
    tasks: list[dict[str, Any]],
    survivors: list[Daemon],
    killed_at_ms: int,
) -> dict[str, int]:
    """Tasks each survivor finished after the kill. Raises DemoFailed."""
    if after is None or after is before:
        raise DemoFailed("no new coordinator took office after the kill")
    finished = {daemon.name: 0 for daemon in survivors}
    for task in tasks:
        if task.get("ended_ms", 0) > killed_at_ms and task.get("node") in finished:
            finished[task["node"]] += 1
    idle = [name for name, count in finished.items() if count == 0]
    if idle:
        raise DemoFailed(f"{', '.join(idle)} finished no task after the kill")
    return finished


def plain_result(files: list[Path], folder: Path) -> bytes:
    """The canonical result of the same functions in one plain process."""
    out = folder / "plain.json"
    subprocess.run(
        [sys.executable, str(DOCUMENTS / "plain.py"), "--output", str(out), *map(str, files)],
        check=True,
    )
    return out.read_bytes()


def run_demo(swarm: LocalSwarm, files: list[Path], root: Path) -> None:
    for daemon in swarm.daemons:
        status = daemon.json("status")
        say(
            f"  {daemon.name}: {status['alive']}/{status['total']} alive, "
            f"coordinator {status['coordinator']}"
        )
    before = swarm.coordinator()
    assert before is not None
    client = pick_client(swarm, before)
    for agent in AGENTS:
        client.json("agent", "deploy", str(DOCUMENTS / f"{agent}.toml"))
    say(f"deployed {', '.join(AGENTS)} through {client.name}")
    say(f"job: parse -> extract -> analyze -> aggregate, submitted through {client.name}")
    plain: list[bytes] = []
    job = JobRun(client, files, root / "swarm.json")
    running = kill_midway(before, job, client, min(50, len(files) // 4))
    killed_at_ms = time.time_ns() // 1_000_000
    say(f"\nkilled the coordinator {before.name} (SIGKILL) with {running} tasks running")
    result = job.finish()
    seconds = time.monotonic() - job.began
    after = swarm.coordinator()
    job_id = result["job"]
    tasks = client.json("task", "list", "--job", job_id, "--all", timeout_s=120)["tasks"]
    survivors = swarm.alive()
    finished = check_promises(before, after, tasks, survivors, killed_at_ms)
    comparing = threading.Thread(target=lambda: plain.append(plain_result(files, root)))
    comparing.start()
    comparing.join()
    swarm_json = json.dumps(
        result["result"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    if not plain or swarm_json != plain[0]:
        (root / "swarm-canonical.json").write_bytes(swarm_json)
        raise DemoFailed(f"the swarm's result differs from the plain run's: compare {root}")
    assert after is not None
    print_report(result["result"]["report"])
    attempts = sum(task["attempts"] for task in tasks)
    rows = [
        ("documents", str(len(files))),
        ("tasks", str(len(tasks))),
        ("attempts", str(attempts)),
        ("retries", str(attempts - len(tasks))),
        ("seconds", f"{seconds:.1f}"),
        ("tasks running at the kill", str(running)),
        ("coordinator before", before.name),
        ("coordinator after", after.name),
        *((f"finished by {name} after the kill", str(n)) for name, n in sorted(finished.items())),
        ("equal to a plain run", f"yes, {len(swarm_json):,} bytes"),
    ]
    width = max(len(label) for label, _ in rows)
    say("")
    for label, value in rows:
        say(f"  {label:<{width}}  {value}")


def print_report(report: dict[str, Any]) -> None:
    say("")
    say(f"indexed {report['indexed']} of {report['documents']} documents; most used terms:")
    say("  " + ", ".join(f"{term} {count}" for term, count in report["top_terms"][:10]))
    for row in report["failed"][:10]:
        say(f"  not indexed: {row['name']}: {row['reason']}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Three daemons index documents and survive the loss of their coordinator.",
        epilog="examples: ./scripts/demo    ./scripts/demo --keep ~/Documents",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        help=f"files and folders ({' '.join(SUFFIXES)}); default: the standard library",
    )
    parser.add_argument("--keep", action="store_true", help="leave the swarm running")
    arguments = parser.parse_args()
    for path in arguments.paths:
        if not path.exists():
            parser.error(f"{path} does not exist")
    files = find_documents(arguments.paths) if arguments.paths else standard_library()
    if len(files) < DOCUMENTS_MIN:
        parser.error(
            f"{len(files)} documents are too few to kill a coordinator midway: give at least "
            f"{DOCUMENTS_MIN} ({' '.join(SUFFIXES)})"
        )
    # However the demo is ended, it ends its daemons.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    root = Path(tempfile.mkdtemp(prefix="swarmd-demo-"))
    swarm: LocalSwarm | None = None
    kept = failed = False
    try:
        swarm = form_swarm(root)
        run_demo(swarm, files, root)
        kept = arguments.keep
    except (DemoFailed, TimeoutError, RuntimeError) as error:
        failed = True
        say(f"\nthe demo failed: {error}")
        for daemon in swarm.daemons if swarm else []:
            tail = (
                daemon.log.read_text(errors="replace").splitlines()[-5:]
                if daemon.log.exists()
                else []
            )
            say("\n".join(f"  {daemon.name}: {line}" for line in tail))
        return 1
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    finally:
        if kept and swarm is not None:
            say("\nThe swarm is still running. Talk to it:")
            for daemon in swarm.alive():
                say(f"  {BIN / 'swarmctl'} --socket {daemon.socket} members")
            pids = " ".join(str(d.process.pid) for d in swarm.alive() if d.process)
            say(f"End it with: kill {pids} && rm -r {root}")
        elif swarm is not None:
            swarm.stop()
            if failed:
                say(f"logs and results are kept in {root}")
            else:
                shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    os.environ.pop("SWARMCTL_SOCKET", None)
    sys.exit(main())
