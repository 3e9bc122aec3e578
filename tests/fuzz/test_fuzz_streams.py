"""Any bytes at both ends of a stream of operations: items, a named refusal, never a crash."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import SwarmError
from swarmd.client.keystream import _Exchange
from swarmd.gateway.duplex import Splitter

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
REFUSED = b"HTTP/1.1 503 x\r\ncontent-length: 20\r\n\r\n"


@settings(max_examples=300)
@given(st.booleans(), st.lists(st.binary(max_size=300), max_size=5))
def test_any_body(frames: bool, pieces: list[bytes]) -> None:
    splitter = Splitter(frames=frames)
    with contextlib.suppress(SwarmError):
        for piece in pieces:
            splitter.feed(piece)
        splitter.end()


@settings(max_examples=500)
@given(st.sampled_from([b"", HEAD, REFUSED]), st.lists(st.binary(max_size=200), max_size=5))
def test_any_answer(start: bytes, pieces: list[bytes]) -> None:
    answers = _Exchange()
    with contextlib.suppress(SwarmError):
        for piece in [start, *pieces]:
            answers.feed(piece)


chunk = st.binary(max_size=60).map(lambda raw: b"%x\r\n%b\r\n" % (len(raw), raw))


@settings(max_examples=300)
@given(st.lists(chunk, max_size=5), st.integers(1, 50))
def test_any_chunks_in_any_pieces(chunks: list[bytes], step: int) -> None:
    raw = HEAD + b"".join(chunks)
    answers = _Exchange()
    with contextlib.suppress(SwarmError):
        for at in range(0, len(raw), step):
            answers.feed(raw[at : at + step])
