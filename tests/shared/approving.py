"""Joining without a token in tests: a person at the joining node, and asking by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from joining import NODE, Swarm, calling

from swarmd.base.errors import SwarmError
from swarmd.identity.fingerprints import Fingerprint, door_of, fingerprint_of_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.requests import sign_request
from swarmd.mesh.addresses import Address
from swarmd.mesh.approval.joiner import Asking, Meeting, Progress
from swarmd.mesh.approval.porch import proof_bytes
from swarmd.mesh.approval.table import Applicant
from swarmd.mesh.join import JoinResult
from swarmd.mesh.join_frames import Door, Knock, Petition, Waiting
from swarmd.wire.version import PROTOCOL_VERSION


class Person:
    """Who sits at the joining node."""

    def __init__(self, refusal: SwarmError | None = None) -> None:
        self.refusal = refusal
        self.asked: list[Meeting] = []
        self.begun: list[Meeting] = []
        self.told: list[Progress] = []

    async def agree(self, meeting: Meeting) -> None:
        self.asked.append(meeting)
        if self.refusal is not None:
            raise self.refusal

    async def join(
        self,
        *addresses: Address,
        wanted: Fingerprint | None = None,
        wait_s: float = 10.0,
        key: SigningKey = NODE,
        name: str = "beta",
    ) -> JoinResult:
        async def find() -> Sequence[Address]:
            return addresses

        asking = Asking(
            find,
            key,
            name,
            wanted=wanted,
            agree=self.agree,
            begin=self.begun.append,
            tell=self.told.append,
        )
        with trio.fail_after(20):
            return await asking.run(wait_s)


def door(swarm: Swarm) -> bytes:
    return door_of(swarm.log.swarm_id)


def whole(swarm: Swarm) -> Fingerprint:
    return fingerprint_of_swarm(door(swarm))


async def until_waiting(swarm: Swarm, count: int = 1) -> list[Applicant]:
    with trio.fail_after(10):
        while len(found := swarm.table.waiting(swarm.clock.now())) < count:  # noqa: ASYNC110
            await trio.sleep(0.005)
    return found


async def petition(
    address: Address,
    swarm: Swarm,
    *,
    signer: SigningKey = NODE,
    server: bytes = b"",
    **changes: Any,
) -> type[SwarmError] | None:
    """Ask by hand; what the refusal was, None if it was told to wait."""
    async with calling(address) as frames:
        nonce = changes.pop("nonce", b"n" * 16)
        await frames.send(Knock(PROTOCOL_VERSION, nonce))
        try:
            told = await frames.expect(Door)
            fields = {
                "request": sign_request(door(swarm), NODE, "beta"),
                "public": NODE.public,
            } | changes
            covered = proof_bytes(
                door(swarm),
                PROTOCOL_VERSION,
                nonce,
                told.nonce,
                server or swarm.key.public,
                fields["request"],
            )
            fields.setdefault("proof", signer.sign(covered))
            await frames.send(Petition(**fields))
            await frames.expect(Waiting)
        except SwarmError as error:
            return type(error)
    return None
