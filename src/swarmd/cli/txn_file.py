"""Transaction files: JSON with compares and the two branches.

    {
      "compares": [{"key": "owner", "exists": false}],
      "then": [{"op": "put", "key": "owner", "text": "anna"}],
      "else": [{"op": "put", "key": "waiting", "text": "anna", "lease": 17}]
    }

A value is `text`, or base64 under `value`. Every mistake is told with its place:
`FILE:LINE:COLUMN` where the JSON is broken, else the path to the part that is wrong.
"""

from __future__ import annotations

import json
from typing import BinaryIO, Final

import msgspec

from swarmd.base.errors import UnknownOperation
from swarmd.base.limits import MIB
from swarmd.cli.common import BadInput, suggest
from swarmd.gateway.shapes import KvCompare, KvOperation, KvTxn

OPERATIONS: Final = ("put", "delete")
# A transaction at its largest, its value in base64, and room for blanks.
_FILE_BYTES_MAX: Final = 4 * MIB


def read_txn(source: BinaryIO) -> KvTxn:
    """The transaction in a file or on standard input.

    Raises:
        BadInput: it is none; the message names the place.
        UnknownOperation: it has an operation that does not exist.
    """
    name = str(getattr(source, "name", "<stdin>"))
    name = "standard input" if name == "<stdin>" else name
    raw = source.read(_FILE_BYTES_MAX + 1)
    if len(raw) > _FILE_BYTES_MAX:
        raise BadInput(f"{name}: a transaction file has at most {_FILE_BYTES_MAX} bytes")
    return parse_txn(raw, name)


def parse_txn(raw: bytes, source: str) -> KvTxn:
    """Like `read_txn`, for bytes."""
    try:
        text = raw.decode()
        if not text.strip():
            raise BadInput(f"{source} is empty: expected a JSON object, see --help")
        json.loads(text)  # For the place of what is broken: msgspec tells it in bytes only.
        txn = msgspec.json.decode(text, type=KvTxn)
    except UnicodeDecodeError as error:
        raise BadInput(f"{source}: a transaction file is UTF-8 text") from error
    except json.JSONDecodeError as error:
        place = f"{source}:{error.lineno}:{error.colno}"
        raise BadInput(f"{place}: not JSON: {error.msg}") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadInput(f"{source}: {_placed(str(error))}") from error
    except ValueError as error:  # An integer of more digits than Python reads.
        raise BadInput(f"{source}: {error}") from error
    if not (txn.compares or txn.then or txn.otherwise):
        raise BadInput(f"{source}: nothing to do: give compares, then or else")
    for index, compare in enumerate(txn.compares):
        _check_compare(compare, f"{source}: compares[{index}]")
    for branch, operations in (("then", txn.then), ("else", txn.otherwise)):
        for index, operation in enumerate(operations):
            _check_operation(operation, f"{source}: {branch}[{index}]")
    return txn


def _check_compare(compare: KvCompare, place: str) -> None:
    given = (compare.revision, compare.value, compare.text, compare.exists)
    if all(one is None for one in given):
        raise BadInput(f"{place}: expected one of revision, text, value or exists")


def _check_operation(operation: KvOperation, place: str) -> None:
    op = operation.op
    if op not in OPERATIONS:
        hint = suggest(op, OPERATIONS, ", ".join(OPERATIONS))
        raise UnknownOperation(f"{place}: operation {op!r} does not exist; {hint}")
    if op == "put" and (operation.value is None) == (operation.text is None):
        raise BadInput(f"{place}: a put has either text or value, one of the two")


def _placed(message: str) -> str:
    """msgspec's message with the path in front: `then[0].key: expected ...`."""
    text, _, path = message.partition(" - at `$")
    place = path.rstrip("`").lstrip(".")
    text = text[:1].lower() + text[1:]
    return f"{place}: {text}" if place else text
