"""Whether multicast works here, tried on the real sockets of loopback."""

from __future__ import annotations

import struct

import pytest

from swarmd.mesh.discovery import hearing
from swarmd.mesh.discovery.hearing import _Ear, listen
from swarmd.mesh.discovery.interfaces import Interface, usable_interfaces
from swarmd.mesh.discovery.mdns import open_mdns, swarm_hint

ETH = Interface("eth0", ("10.0.0.7", "fe80::7"), ("10.0.0.0/24", "fe80::/64"), index=4)
ANSWER = bytes(2) + b"\x84\x00" + bytes(8) + b"\x01a\x07_swarmd\x04_udp\x05local\x00"


async def test_ones_own_question_comes_back_on_another_socket() -> None:
    found = await listen(usable_interfaces(("lo",)))
    assert found["lo"].own
    assert found["lo"].sent
    assert found["lo"].problem == ""


async def test_an_interface_that_is_gone_is_told_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hearing, "LISTEN_S", 0.05)
    found = await listen([Interface("eth9", ("192.0.2.1",), ("192.0.2.0/24",), index=999)])
    assert not found["eth9"].own
    assert not found["eth9"].sent
    assert found["eth9"].problem


def test_packets_count_for_who_sent_them() -> None:
    ear = _Ear(ETH, "10.0.0.7")
    question = ear.number + struct.pack(">HHHHH", 0, 1, 0, 0, 0) + hearing._QUESTION
    ear.take(question, "10.0.0.8")
    ear.take(b"xx" + question[2:], "10.0.0.7")
    assert not ear.own, "another host's, or another question"
    ear.take(question, "10.0.0.7")
    assert ear.own
    ear.take(ANSWER, "10.0.0.7")
    assert ear.hosts == {}, "this host's own answer"
    ear.take(ANSWER, "10.0.0.8")
    ear.take(ANSWER.replace(b"swarmd", b"printr"), "10.0.0.9")
    ear.take(question, "10.0.0.10")
    assert list(ear.hosts) == ["10.0.0.8"]
    for number in range(300):
        ear.take(ANSWER, f"10.1.{number // 250}.{number % 250}")
        ear.take(bytes(number % 14), "10.0.0.8")
    assert len(ear.hosts) == hearing._HOSTS_MAX


async def test_a_report_tells_what_was_heard_until_things_change() -> None:
    hint = swarm_hint(b"s" * 32)
    async with open_mdns(hint, "a", 1, interfaces=("lo",), announce=False) as mdns:
        while not mdns.report() or mdns.report()[0].hearing is None:
            await mdns.listen()
        heard = mdns.report()[0].hearing
        assert heard is not None
        assert heard.own
