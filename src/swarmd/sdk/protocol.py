"""Frames between a daemon and its worker processes.

A frame is a length of 4 bytes, big-endian, and one msgpack array `[kind, field, ...]`, over a
socket that the child inherits. Each kind has fields of fixed types; anything else is
`ProtocolError`, after which the channel is worth nothing: the daemon kills the process.
`run` numbers attempts within one process, so that a late answer cannot pass for another.

This module is read by both sides; the child's must start fast, so only the standard library
and msgpack are imported.
"""

from __future__ import annotations

import struct

import msgpack

FORMAT = 5
RESULT_BYTES_MAX = 64 * 1024 * 1024
FRAME_BYTES_MAX = RESULT_BYTES_MAX + 64 * 1024
TEXT_CHARS_MAX = 16 * 1024
# One message of the bus; that much of one subscription, or this many, are in the channel at most.
DATA_BYTES_MAX = 64 * 1024
CREDIT_MESSAGES = 64
CREDIT_BYTES = 64 * 1024
# A failure is a line that says what it was, cut at its end, and its story, cut at its beginning;
# after each it is said whether it was cut.
STORY_LINE_CHARS_MAX = TEXT_CHARS_MAX // 4
STORY_CHARS_MAX = TEXT_CHARS_MAX // 2

# Daemon to worker.
START = 1  # format, folder, module:function; open files, memory, processes; environment
RUN = 2  # run, task id, attempt, fence, payload
CANCEL = 3  # run
ANSWER = 4  # run, ask, code of an error or "", its message, value, lease
MESSAGE = 5  # run, subscription, topic, sender, data
# Worker to daemon.
READY = 16
REFUSED = 17  # line, cut, story, cut: the agent's code could not be imported
RESULT = 18  # run, payload
FAILED = 19  # run, code, line, cut, story, cut
LOG = 20  # run, text
PROGRESS = 21  # run, done, total
ASK = 22  # run, ask, what, name, and what that takes
PUBLISH = 23  # run, ask, topic, data, immediate, wait ms; the value is who has it, or HELD
SUBSCRIBE = 24  # run, ask, subscription, topics with newlines between them
TAKEN = 25  # run, subscription, messages
UNSUBSCRIBE = 26  # run, subscription

# What an ASK may ask for. Answers come in any order; `ask` numbers those of one run.
LOCK = 1  # ttl ms, wait ms; the value is the fence
UNLOCK = 2  # lease
BARRIER = 3  # count, wait ms; the value is the fence
ADD = 4  # delta; the value is the new one
COUNT = 5  # the value is the counter's

# What was published waits for the attempt's result.
HELD = -1

FIELDS: dict[int, tuple[type, ...]] = {
    START: (int, str, str, int, int, int, dict),
    RUN: (int, str, int, int, bytes),
    CANCEL: (int,),
    ANSWER: (int, int, str, str, int, int),
    READY: (),
    REFUSED: (str, bool, str, bool),
    RESULT: (int, bytes),
    FAILED: (int, str, str, bool, str, bool),
    LOG: (int, str),
    PROGRESS: (int, float, float),
    ASK: (int, int, int, str, int, int),
    MESSAGE: (int, int, str, str, bytes),
    PUBLISH: (int, int, str, bytes, bool, int),
    SUBSCRIBE: (int, int, int, str),
    TAKEN: (int, int, int),
    UNSUBSCRIBE: (int, int),
}
_LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The other side wrote something that is not a frame."""


def encode_frame(*fields: object) -> bytes:
    """A frame of `fields`, the first of them its kind."""
    body: bytes = msgpack.packb(fields, use_bin_type=True, unicode_errors="replace")
    return _LENGTH.pack(len(body)) + body


def decode_frame(body: bytes | memoryview) -> tuple[int, tuple[object, ...]]:
    """Kind and fields of a frame without its length. Raises ProtocolError for any other bytes."""
    try:
        values = msgpack.unpackb(body, raw=False, use_list=False, unicode_errors="replace")
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not msgpack: {type(error).__name__}") from error
    if type(values) is not tuple or not values or type(values[0]) is not int:
        raise ProtocolError("not a frame")
    kind, fields = values[0], values[1:]
    types = FIELDS.get(kind)
    if types is None or tuple(map(type, fields)) != types:
        raise ProtocolError(f"a frame of kind {kind} with wrong fields")
    return kind, fields


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[int, tuple[object, ...]] | None:
        """The next whole frame, or None. Raises ProtocolError; the reader is then spent."""
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if length > FRAME_BYTES_MAX:
            raise ProtocolError(f"a frame of {length} bytes")
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view, view[_LENGTH.size : end] as body:
            frame = decode_frame(body)
        del buffer[:end]
        return frame
