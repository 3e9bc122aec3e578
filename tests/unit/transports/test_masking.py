"""Frames of a client whose mask is zeros, and of others."""

from __future__ import annotations

import importlib
import os

import pytest
from wsproto import frame_protocol
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

from swarmd.mesh.transports import masking

importlib.import_module("swarmd.mesh.transports.streams")  # It tames the library.

PAYLOAD = bytes(range(256)) * 300


def received(data: bytes) -> bytes:
    server = Connection(ConnectionType.SERVER)
    server.receive_data(data)
    parts = [event.data for event in server.events() if isinstance(event, BytesMessage)]
    return b"".join(parts)


def test_what_a_client_sends_is_framed_and_left_as_it_is() -> None:
    sent = Connection(ConnectionType.CLIENT).send(BytesMessage(PAYLOAD))
    assert sent[1] & 0x80, "a client's frame says that it is masked"
    assert sent.endswith(bytes(4) + PAYLOAD)
    assert received(sent) == PAYLOAD


def test_a_mask_of_others_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_protocol, "os", os)
    sent = Connection(ConnectionType.CLIENT).send(BytesMessage(PAYLOAD))
    assert PAYLOAD not in sent
    assert received(sent) == PAYLOAD


def test_another_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(frame_protocol, "os")
    with pytest.raises(ImportError, match="wsproto has no os"):
        masking.tame()
