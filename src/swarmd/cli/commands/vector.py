"""swarmctl vector: collections of vectors, and which of them are nearest to another."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from swarmd.base.errors import SwarmError
from swarmd.cli.common import (
    BadInput,
    SwarmGroup,
    open_client,
    print_json,
    say,
    wants_json,
    warn,
)
from swarmd.cli.tables import printable, table

if TYPE_CHECKING:
    from swarmd.client import Client
    from swarmd.gateway.shapes_vectors import CollectionShape, VectorHit

# Longest first: `>=` is no `>`.
_OPERATORS: Final = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt", "=": ""}
_LINE_CHARS_MAX: Final = 1024 * 1024
_ADD_TIMEOUT_S: Final = 300.0


@click.group(
    cls=SwarmGroup,
    examples=[
        "swarmctl vector create docs --dimension 384",
        "swarmctl vector add docs --file entries.jsonl",
        "swarmctl vector add docs --id intro --vector '[0.1, 0.9]' --payload topic=news",
        "swarmctl vector search docs --vector '[0.2, 0.8]' --filter topic=news",
        "swarmctl vector search docs --text 'who won?' -k 5",
    ],
)
def vector() -> None:
    """Vectors that every node holds and searches, also when it is cut off."""


@vector.command(
    examples=[
        "swarmctl vector create docs --dimension 384",
        "swarmctl vector create faces --dimension 128 --metric l2",
        "swarmctl vector create notes --embed",
    ]
)
@click.argument("collection")
@click.option("--dimension", "-d", type=int, help="Elements of each vector.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "dot", "l2"]),
    default="cosine",
    show_default=True,
    help="By what vectors are near.",
)
@click.option("--embed", is_flag=True, help="For texts: the node's model makes their vectors.")
def create(collection: str, dimension: int | None, metric: str, embed: bool) -> None:
    """Make COLLECTION; nothing, if it is there as such."""
    if dimension is None and not embed:
        raise click.UsageError("give --dimension, or --embed")
    with open_client() as client:
        made = client.vector_create(collection, dimension, metric, embed=embed)
    if wants_json():
        print_json(made)
    else:
        say(f"{made.name} takes vectors of {made.dimension} elements, near by {made.metric}")


@vector.command("list", examples=["swarmctl vector list"])
def list_() -> None:
    """List the collections."""
    with open_client() as client:
        found = client.vector_collections()
    if wants_json():
        print_json(found)
        return
    rows = [
        [
            one.name,
            "?" if one.entries is None else str(one.entries),
            str(one.dimension),
            one.metric,
            printable(one.model) or "-",
            printable(one.created_by),
        ]
        for one in found
    ]
    click.echo(table(["COLLECTION", "ENTRIES", "DIM", "METRIC", "MODEL", "BY"], rows, whole=1))


@vector.command(examples=["swarmctl vector drop docs"])
@click.argument("collection")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(collection: str, yes: bool) -> None:
    """Delete COLLECTION with all its entries, on all nodes."""
    with open_client() as client:
        if not yes:
            found = client.vector_collection(collection)
            _confirm(found)
        client.vector_drop(collection)
    if wants_json():
        print_json({})
    else:
        say(f"{collection} is deleted")


@vector.command(
    examples=[
        "swarmctl vector add docs --id intro --vector '[0.1, 0.9]' --payload topic=news",
        "swarmctl vector add notes --text 'the meeting is on Monday'",
        "swarmctl vector add docs --file entries.jsonl",
        "make-vectors | swarmctl vector add docs --file -",
    ]
)
@click.argument("collection")
@click.option("--id", "entry_id", help="Its id; by chance if none is given.")
@click.option("--vector", "given", metavar="JSON", help="Its elements, such as '[0.1, 0.9]'.")
@click.option("--text", help="A text, of which the node's model makes the vector.")
@click.option("--payload", metavar="FIELD=VALUE", multiple=True, help="To filter by; repeatable.")
@click.option("--file", type=click.Path(path_type=Path), help="Many, one a line; - is stdin.")
def add(
    collection: str,
    entry_id: str | None,
    given: str | None,
    text: str | None,
    payload: tuple[str, ...],
    file: Path | None,
) -> None:
    """Add an entry to COLLECTION, in the place of one with its id; or many.

    A line of a file is an object with "vector" or "text", and perhaps "id" and "payload", such
    as {"id": "a", "vector": [0.1, 0.9], "payload": {"topic": "news"}}.
    """
    if file is not None:
        if entry_id or given or text or payload:
            raise click.UsageError("give --file alone: each line says all of an entry")
        _add_file(collection, file)
        return
    entry: dict[str, Any] = {"payload": dict(map(_field, payload))}
    entry |= _asked(given, text)
    if entry_id is not None:
        entry["id"] = entry_id
    with open_client(timeout_s=_ADD_TIMEOUT_S) as client:
        [added] = client.vector_add(collection, [entry])
    if wants_json():
        print_json(added)
    else:
        say(f"{printable(added.id)} is added, version {added.version}")


@vector.command(
    examples=["swarmctl vector get docs intro", "swarmctl --json vector get docs intro"]
)
@click.argument("collection")
@click.argument("entry_id", metavar="ID")
def get(collection: str, entry_id: str) -> None:
    """Print the entry ID of COLLECTION as JSON."""
    with open_client() as client:
        print_json(client.vector_get(collection, entry_id))


@vector.command(examples=["swarmctl vector delete docs intro"])
@click.argument("collection")
@click.argument("entry_id", metavar="ID")
def delete(collection: str, entry_id: str) -> None:
    """Delete the entry ID of COLLECTION."""
    with open_client() as client:
        client.vector_delete(collection, entry_id)
    if wants_json():
        print_json({})
    else:
        say(f"{printable(entry_id)} is deleted")


@vector.command(
    examples=[
        "swarmctl vector search docs --vector '[0.2, 0.8]'",
        "swarmctl vector search docs --like intro --filter topic=news --filter 'year>=2020'",
        'swarmctl vector search docs --like intro --filter \'lang=["de", "fr"]\'',
        "swarmctl vector search notes --text 'when do we meet?' -k 3",
    ]
)
@click.argument("collection")
@click.option("--vector", "given", metavar="JSON", help="The elements; - reads them from stdin.")
@click.option("--text", help="A text, of which the node's model makes the vector.")
@click.option("--like", metavar="ID", help="The vector of an entry that is there.")
@click.option("-k", "count", type=int, default=10, show_default=True, help="How many.")
@click.option(
    "--filter",
    "filters",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Only entries whose payload fits: = (one of a list), <, <=, >, >=; all must hold.",
)
def search(
    collection: str,
    given: str | None,
    text: str | None,
    like: str | None,
    count: int,
    filters: tuple[str, ...],
) -> None:
    """Print the entries of COLLECTION that are nearest, the nearest first."""
    if sum(one is not None for one in (given, text, like)) != 1:
        raise click.UsageError("give one of --vector, --text and --like")
    wanted = _filter(filters)
    with open_client() as client:
        asked = _vector_of(client, collection, given, like)
        found = client.vector_search(collection, asked, text=text, k=count, filter=wanted)
    if found.behind:
        warn(f"this node has some {found.behind} changes more, which it has not indexed yet")
    if wants_json():
        print_json(found)
        return
    rows = [[_distance(hit), printable(hit.id), _payload(hit)] for hit in found.hits]
    click.echo(table(["DISTANCE", "ID", "PAYLOAD"], rows, whole=2))


# ---- what they share ------------------------------------------------------------------


def _confirm(found: CollectionShape) -> None:
    if wants_json() or not sys.stdin.isatty():
        raise click.UsageError("add --yes to delete the collection without being asked")
    entries = "all its" if found.entries is None else f"its {found.entries}"
    click.confirm(f"Delete {found.name} with {entries} entries, on all nodes?", abort=True)


def _add_file(collection: str, file: Path) -> None:
    """Add all lines, and say how far it came if one of them cannot be."""
    from swarmd.cli.progress import Bar

    done = 0
    with open_client(timeout_s=_ADD_TIMEOUT_S) as client, _lines(file) as lines:
        try:
            total = _count(file)
            with Bar("adding", total) as bar:
                for batch in client.vector_batches(collection, lines):
                    done += len(batch)
                    bar.update(done, total=max(done, total))
        except SwarmError:
            if done:
                warn(f"{done} entries were added before")
            raise
    if wants_json():
        print_json({"added": done})
    else:
        say(f"{done} entries are added to {collection}")


def _count(file: Path) -> int:
    """How many lines a plain file has; 0: nobody knows."""
    if not file.is_file():
        return 0
    try:
        with file.open("rb") as opened:
            return sum(1 for _ in opened)
    except OSError:
        return 0


@contextmanager
def _lines(file: Path) -> Iterator[Iterator[dict[str, Any]]]:
    if str(file) == "-":
        yield _entries(sys.stdin, "stdin")
        return
    try:
        opened = file.open(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; nothing was added") from error
    with opened:
        yield _entries(opened, str(file))


def _entries(source: TextIO, name: str) -> Iterator[dict[str, Any]]:
    number = 0
    while True:
        number += 1
        place = f"{name}, line {number}"
        try:
            line = source.readline(_LINE_CHARS_MAX)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{place}: cannot be read: {error}") from error
        if not line:
            return
        if len(line) == _LINE_CHARS_MAX:
            raise BadInput(f"{place}: a line has at most {_LINE_CHARS_MAX} characters")
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{place}: this is not JSON: {error}") from error
        yield _checked(entry, place)


def _checked(entry: Any, place: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise BadInput(f'{place}: an entry is an object such as {{"id": "a", "vector": [0.1]}}')
    unknown = entry.keys() - {"id", "vector", "text", "payload"}
    if unknown:
        raise BadInput(f"{place}: {min(unknown)!r} is no part of an entry: put it into payload")
    if ("vector" in entry) == ("text" in entry):
        raise BadInput(f"{place}: an entry has either a vector or a text")
    if "id" in entry and not isinstance(entry["id"], str):
        entry["id"] = json.dumps(entry["id"])
    if not isinstance(entry.get("payload", {}), dict):
        raise BadInput(f"{place}: a payload is an object of fields")
    if "text" in entry and not isinstance(entry["text"], str):
        raise BadInput(f"{place}: a text is a string")
    if "vector" in entry and not _is_vector(entry["vector"]):
        raise BadInput(f"{place}: a vector is a list of numbers")
    return entry


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in value
    )


def _asked(given: str | None, text: str | None) -> dict[str, Any]:
    if (given is None) == (text is None):
        raise click.UsageError("give --vector or --text, or --file")
    return {"text": text} if given is None else {"vector": _elements(given)}


def _elements(given: str) -> list[float]:
    if given == "-":
        given = sys.stdin.read(_LINE_CHARS_MAX)
    try:
        value = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--vector is not JSON: {error}") from error
    if not _is_vector(value):
        raise click.UsageError("--vector is a list of numbers, such as '[0.1, 0.9]'")
    elements: list[float] = value
    return elements


def _vector_of(
    client: Client, collection: str, given: str | None, like: str | None
) -> list[float] | None:
    if like is not None:
        return client.vector_get(collection, like).vector
    return None if given is None else _elements(given)


def _field(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise click.UsageError(f"{given!r} is no FIELD=VALUE")
    return name, _value(value)


def _value(text: str) -> Any:
    """JSON if it is some, else the text itself; quotes make a text of a number."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text


def _no_number(text: str) -> float:
    """NaN and the like, which Python takes for JSON."""
    raise ValueError(text)


def _filter(given: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in given:
        places = {at: sign for sign in reversed(_OPERATORS) if (at := one.find(sign)) > 0}
        if not places:
            raise click.UsageError(f"{one!r} is no FIELD=VALUE, nor one with <, <=, > or >=")
        at = min(places)
        sign = next(sign for sign in _OPERATORS if one.startswith(sign, at))
        name, value, bound = one[:at].strip(), _value(one[at + len(sign) :]), _OPERATORS[sign]
        before = found.setdefault(name, {} if bound else value)
        if not bound:
            if before is not value:
                raise click.UsageError(f"two filters of {name!r}: list values, as in 'a=[1, 2]'")
        elif not isinstance(before, dict) or bound in before:
            raise click.UsageError(f"two filters of {name!r} that do not go together")
        else:
            before[bound] = value
    return found


def _distance(hit: VectorHit) -> str:
    return f"{hit.distance:.6g}"


def _payload(hit: VectorHit) -> str:
    return printable(json.dumps(hit.payload, ensure_ascii=False)) if hit.payload else "-"
