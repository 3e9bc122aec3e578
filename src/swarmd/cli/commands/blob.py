"""swarmctl blob: files of any size, named by their hash, kept on several nodes.

A file that is fetched is written aside and renamed when it is whole and verified, so whatever ends
the command, there is the whole file or none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from swarmd.base.errors import BadRequest
from swarmd.cli.common import (
    Duration,
    SwarmGroup,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.progress import Bar
from swarmd.cli.tables import ago, facts, size, table, time_left

if TYPE_CHECKING:
    from swarmd.gateway.shapes_blobs import BlobProgress, UserBlob

_PIECE_BYTES: Final = 1024 * 1024

copies_option = click.option(
    "--copies",
    type=click.IntRange(1, 32),
    help="Nodes that shall hold it; 2, or 1 where a node is alone.",
)
ttl_option = click.option(
    "--ttl", type=Duration(), help="For how long it is pinned, like 12h or 90d; 7d by default."
)


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl blob put model.bin",
        "tar c data | swarmctl blob put - --copies 3 --ttl 90d",
        "swarmctl blob get HASH -o model.bin",
        "swarmctl blob list",
        "swarmctl blob unpin HASH",
    ],
)
def blob() -> None:
    """Files of any size, named by their hash and kept on several nodes.

    A blob stays while anybody pins it; after that, until its room is needed.
    """


@blob.command(
    examples=["swarmctl blob put model.bin", "tar c data | swarmctl blob put - --copies 3"]
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@copies_option
@ttl_option
def put(file: Path, copies: int | None, ttl: float | None) -> None:
    """Store FILE, - for standard input, and pin it; print its hash.

    Up to 256 KiB that is what `b2sum -l 256` prints, in base 32; of what is larger, the root
    of a tree of such hashes (docs/blobs.md).
    """
    with (
        _source(file) as (source, count),
        open_client() as client,
        Bar("sent", count or 0, in_bytes=True) as bar,
    ):
        pieces = _counted(source, bar, count)
        done = client.blob_put(pieces, size=count, copies=copies, ttl_s=_whole_s(ttl))
        stored = _follow(done, bar)
    if wants_json():
        print_json(stored)
        return
    click.echo(stored.hash)
    _tell(stored)


@blob.command(examples=["swarmctl blob get HASH -o model.bin", "swarmctl blob get HASH | tar x"])
@click.argument("blob_hash", metavar="HASH")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write FILE, replacing it when all has come; else standard output.",
)
def get(blob_hash: str, out: Path | None) -> None:
    """Fetch the blob HASH from whichever nodes have it."""
    if out is None and sys.stdout.isatty():
        raise BadRequest("a blob is no text for a terminal: name a file with -o, or pipe it on")
    with open_client() as client:
        count, pieces = client.blob_get(blob_hash)
        with contextlib.closing(pieces), Bar("got", count, in_bytes=True) as bar:  # type: ignore[type-var]
            if out is None:
                _copy(pieces, sys.stdout.buffer, bar)
                sys.stdout.buffer.flush()
                return
            try:
                _write(out, pieces, bar)
            except OSError as error:
                raise BadRequest(f"cannot write {out}: {error.strerror or error}") from error
    if wants_json():
        print_json({"hash": blob_hash, "size": count, "file": str(out)})
    else:
        say(f"{out}: {size(count)}")


@blob.command(examples=["swarmctl blob show HASH"])
@click.argument("blob_hash", metavar="HASH")
def show(blob_hash: str) -> None:
    """Show which nodes hold the blob HASH and who pins it."""
    with open_client() as client:
        found = client.blob(blob_hash)
    if wants_json():
        print_json(found)
        return
    rows = [
        ("hash", found.hash),
        ("size", f"{size(found.size)} ({found.size} bytes)"),
        ("held by", ", ".join(found.holders)),
    ]
    rows += [
        (
            "pinned",
            f"by {p.owner} on {_nodes(p.copies)}, for {time_left(_left_ms(p.until_ms))} more",
        )
        for p in found.pins
    ]
    click.echo(facts(rows if found.pins else [*rows, ("pinned", "by nobody")]))


@blob.command("list", examples=["swarmctl blob list", "swarmctl blob list --json"])
def list_() -> None:
    """List the blobs that users have put, on all nodes that answer."""
    with open_client() as client:
        found = client.blobs()
    if wants_json():
        print_json(found)
        return
    rows = [[one.hash, size(one.size), str(len(one.holders)), _pinned(one)] for one in found.blobs]
    click.echo(table(["HASH", "SIZE", "HELD", "PINNED"], rows, whole=1))
    if found.missing:
        warn("did not say what they hold: " + ", ".join(found.missing))


@blob.command(examples=["swarmctl blob pin HASH --ttl 30d", "swarmctl blob pin HASH --copies 3"])
@click.argument("blob_hash", metavar="HASH")
@copies_option
@ttl_option
def pin(blob_hash: str, copies: int | None, ttl: float | None) -> None:
    """Keep the blob HASH from now on for --ttl, on --copies nodes."""
    with open_client() as client, Bar("copied", 0, in_bytes=True) as bar:
        stored = _follow(client.blob_pin(blob_hash, copies=copies, ttl_s=ttl), bar)
    if wants_json():
        print_json(stored)
    else:
        _tell(stored)


@blob.command(examples=["swarmctl blob unpin HASH"])
@click.argument("blob_hash", metavar="HASH")
def unpin(blob_hash: str) -> None:
    """Take your pin on the blob HASH back; it goes when its room is needed."""
    with open_client() as client:
        found = client.blob_unpin(blob_hash)
    if wants_json():
        print_json(found)
        return
    others = ", ".join(one.owner for one in found.pins)
    say(f"not pinned by you any more; {f'still by {others}' if others else 'by nobody'}")


# ---- what they share ------------------------------------------------------------------


@contextlib.contextmanager
def _source(file: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """What to send, and how much it is if that is known."""
    if str(file) == "-":
        yield sys.stdin.buffer, None
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise BadRequest(f"cannot read {file}: {error.strerror or error}") from error
    with opened:
        status = os.fstat(opened.fileno())
        # Of what is no plain file the size says nothing.
        yield opened, status.st_size if os.path.isfile(file) else None


def _counted(source: BinaryIO, bar: Bar, count: int | None) -> Iterator[bytes]:
    done = 0
    while True:
        try:
            piece = source.read(_PIECE_BYTES)
        except OSError as error:
            raise BadRequest(f"cannot read what is to be put: {error.strerror}") from error
        done += len(piece)
        if count is not None and (done > count or (not piece and done < count)):
            raise BadRequest("the file changed while it was read; nothing was stored")
        if not piece:
            return
        yield piece
        bar.update(done, total=max(done, count or 0))


def _follow(items: Iterator[BlobProgress], bar: Bar) -> UserBlob:
    stored: UserBlob | None = None
    for item in items:
        if item.blob is not None:
            stored = item.blob
        else:
            bar.update(item.done_bytes, note=f"on {item.held} of {_nodes(item.copies)}")
    if stored is None:
        from swarmd.base.errors import Unreachable

        raise Unreachable("the daemon went away before the copies were made; put it again")
    return stored


def _tell(stored: UserBlob) -> None:
    """On how many nodes it is, on stderr: stdout has the hash alone."""
    left = max((one.until_ms for one in stored.pins), default=0)
    held = f"held by {', '.join(stored.holders)}"
    if len(stored.holders) == 1 and stored.alone:
        held += " alone: there is no other node yet"
    warn(f"{size(stored.size)}, {held}; pinned for {time_left(_left_ms(left))}")


def _write(out: Path, pieces: Iterator[bytes], bar: Bar) -> None:
    """Aside, synced, renamed; whatever goes wrong, nothing is left."""
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with aside.open("xb") as file:
            _copy(pieces, file, bar)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, out)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def _copy(pieces: Iterator[bytes], file: BinaryIO, bar: Bar) -> None:
    done = 0
    for piece in pieces:
        file.write(piece)
        done += len(piece)
        bar.update(done)


def _pinned(one: UserBlob) -> str:
    if not one.pins:
        return "-"
    owners = ", ".join(pin.owner for pin in one.pins)
    return f"{ago(_left_ms(max(pin.until_ms for pin in one.pins)) / 1000)}, {owners}"


def _left_ms(until_ms: int) -> float:
    return max(0.0, until_ms - time.time() * 1_000)


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _whole_s(ttl: float | None) -> int | None:
    return None if ttl is None else max(1, round(ttl))
