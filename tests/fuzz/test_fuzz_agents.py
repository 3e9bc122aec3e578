"""Whatever agents, peers and authors write, the answer is an error of ours or a value."""

from __future__ import annotations

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarmd.agents.bundle import _header, pack_bundle, read_bundle, unpack_bundle
from swarmd.agents.logs import LineCutter
from swarmd.agents.messages import AGENTS
from swarmd.agents.records import decode_agent
from swarmd.agents.spec import check_spec, parse_agent
from swarmd.base.errors import BadRequest, CorruptFile, MalformedMessage, SwarmError
from swarmd.sdk.protocol import FIELDS, FrameReader, ProtocolError, encode_frame
from swarmd.state.blobs.messages import BLOB

NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUE = st.recursive(PLAIN, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=5)


@given(st.lists(st.binary(max_size=40), max_size=8))
@settings(max_examples=150)
def test_any_bytes_on_the_channel(chunks: list[bytes]) -> None:
    reader = FrameReader()
    with contextlib.suppress(ProtocolError):
        for chunk in chunks:
            reader.feed(chunk)
            while (frame := reader.next()) is not None:
                kind, fields = frame
                assert tuple(map(type, fields)) == FIELDS[kind]


@given(st.sampled_from(sorted(FIELDS)), st.lists(VALUE, max_size=6))
@settings(max_examples=150)
def test_frames_with_any_fields(kind: int, fields: list[object]) -> None:
    try:
        raw = encode_frame(kind, *fields)
    except OverflowError:
        return
    reader = FrameReader()
    reader.feed(raw)
    with contextlib.suppress(ProtocolError):
        frame = reader.next()
        assert frame is not None
        assert tuple(map(type, frame[1])) == FIELDS[kind]


@given(st.binary(max_size=4_096))
@settings(max_examples=200)
def test_any_bytes_as_a_bundle(raw: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        read_bundle(raw)


@given(st.data())
@settings(max_examples=150)
def test_a_bundle_with_flipped_bytes_writes_nothing_outside(data: st.DataObject) -> None:
    raw = bytearray(_header("a.py", 3) + b"abc".ljust(512, b"\0") + _header("b/c.py", 0))
    raw += bytes(1_024)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with TemporaryDirectory() as name:
        with contextlib.suppress(MalformedMessage):
            unpack_bundle(bytes(raw), Path(name) / "out")
        assert {path.name for path in Path(name).iterdir()} <= {"out"}


@given(st.dictionaries(st.lists(NAME, min_size=1, max_size=3).map("/".join), st.binary()))
@settings(max_examples=60)
def test_what_packs_unpacks_to_the_same(files: dict[str, bytes]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        for path, data in files.items():
            with contextlib.suppress(OSError, ValueError):
                target = folder / path
                if not target.resolve().is_relative_to(folder):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        try:
            raw = pack_bundle(folder)
        except BadRequest:
            return
        unpack_bundle(raw, Path(name) / "out")
        assert pack_bundle(Path(name) / "out") == raw


@given(st.text(max_size=300))
@example('name = "a"\nversion = "1"\nentry = "a:b"\nenv = 5\n')
@settings(max_examples=150)
def test_any_text_as_an_agent_file(text: str) -> None:
    with contextlib.suppress(BadRequest):
        parse_agent(text)


KEYS = st.sampled_from(
    ["name", "version", "entry", "env", "capabilities", "concurrency", "timeout_s", "mode", "x"]
)


@given(st.dictionaries(KEYS, VALUE))
@settings(max_examples=150)
def test_any_values_as_a_spec(value: dict[str, object]) -> None:
    with contextlib.suppress(BadRequest):
        check_spec(value)


@given(st.binary(max_size=300))
@settings(max_examples=150)
def test_any_bytes_from_peers_and_the_store(raw: bytes) -> None:
    for family in (AGENTS, BLOB):
        for body in (raw, b"\x01" + raw):
            with contextlib.suppress(SwarmError):
                family.decode(body)
    with contextlib.suppress(CorruptFile):
        decode_agent(raw)


@given(st.lists(st.binary(max_size=200), max_size=10), st.integers(1, 50))
@settings(max_examples=200)
def test_any_output_becomes_short_printable_lines(chunks: list[bytes], most: int) -> None:
    cutter = LineCutter(most)
    lines = [line for chunk in chunks for line in cutter.feed(chunk)] + cutter.finish()
    for line in lines:
        assert len(line) <= most + len("...")
        assert "\n" not in line
        assert "\x1b" not in line
