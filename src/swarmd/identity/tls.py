"""TLS 1.3 by admitted keys: who may finish a handshake, and who the other side is.

There is no certificate authority. The trust store of a context is the certificates of all
nodes that are admitted and not evicted, each vouching for itself alone (RFC 5280 section 6
with the leaf as the anchor). Names are not checked: a node *is* its key, so after the
handshake the caller asks `peer_of` whose key was used and compares it with whom it meant.

A server asks for a certificate but takes a client without one, because who wants to join has
none that anybody knows; such a client gets no plane but `JOIN_ALPN`. A client that joins
verifies nothing here: it checks the server's key against the chain, one layer up.

Sessions are not resumed: a ticket would outlive an eviction.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from swarmd.base.errors import BadSignature, Untrusted
from swarmd.base.ids import NodeId, node_id_of, short
from swarmd.identity.authority import Admission
from swarmd.identity.keys import SigningKey, certificate_public_key

MESH_ALPN: Final = "swarmd/1"
RAFT_ALPN: Final = "swarmd-raft/1"
BUS_ALPN: Final = "swarmd-bus/1"
BULK_ALPN: Final = "swarmd-bulk/1"
PIPE_ALPN: Final = "swarmd-pipe/1"
JOIN_ALPN: Final = "swarmd-join/1"
_CONTEXTS_MAX: Final = 16
_RECORD_BYTES_MAX: Final = 16 * 1024


class _WholeReads(ssl.SSLObject):
    """Reads all records at once that have come, where OpenSSL reads one.

    trio's stream takes a turn of the loop for each read: with records of 16 KiB these turns took
    longer than to decrypt them.
    """

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """See `ssl.SSLObject.read`."""
        first = super().read(min(len, _RECORD_BYTES_MAX), buffer)
        if buffer is not None or not first:
            return first
        found, room = [first], len - _size(first)
        while room > 0:
            try:
                more = super().read(min(room, _RECORD_BYTES_MAX))
            except ssl.SSLError:
                break  # No more is there; what else it may be the next read tells.
            if not more:
                break
            found.append(more)
            room -= _size(more)
        return b"".join(found) if found[1:] else first


_size = len


class Members(Protocol):
    """What a cache needs of `mesh.trust.Trust`."""

    @property
    def version(self) -> int:
        """Rises with every change of the admissions."""
        ...

    def admissions(self) -> Sequence[Admission]: ...


def server_context(
    key: SigningKey, admissions: Iterable[Admission], alpns: Sequence[str]
) -> ssl.SSLContext:
    """A context to accept members with, and joiners without a certificate.

    An unknown or evicted certificate fails the handshake.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, alpns)
    context.num_tickets = 0
    _present(context, key)
    _trust(context, admissions, ssl.CERT_OPTIONAL)
    return context


def client_context(
    key: SigningKey, admissions: Iterable[Admission], alpns: Sequence[str]
) -> ssl.SSLContext:
    """A context to call members with. Check `peer_of` afterwards: any member would pass."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, alpns)
    _present(context, key)
    _trust(context, admissions, ssl.CERT_REQUIRED)
    return context


def join_context() -> ssl.SSLContext:
    """A context to ask for admission with. It shows no certificate and verifies none: whoever
    uses it must check `peer_public_key` against the authority chain before it sends secrets."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, [JOIN_ALPN])
    context.verify_mode = ssl.CERT_NONE
    return context


class ContextCache:
    """The contexts of one node, made anew when its trust changed."""

    def __init__(self, key: SigningKey, members: Members) -> None:
        self._key = key
        self._members = members
        self._version = -1
        self._made: dict[tuple[str, tuple[str, ...]], ssl.SSLContext] = {}

    def server(self, alpns: Sequence[str]) -> ssl.SSLContext:
        """`server_context` for the members of this moment."""
        return self._get("server", alpns)

    def client(self, alpns: Sequence[str]) -> ssl.SSLContext:
        """`client_context` for the members of this moment."""
        return self._get("client", alpns)

    def _get(self, side: str, alpns: Sequence[str]) -> ssl.SSLContext:
        if self._members.version != self._version:
            self._made.clear()
            self._version = self._members.version
        wanted = (side, tuple(alpns))
        if wanted not in self._made:
            assert len(self._made) < _CONTEXTS_MAX, "contexts per set of planes, not per peer"
            make = server_context if side == "server" else client_context
            self._made[wanted] = make(self._key, self._members.admissions(), alpns)
        return self._made[wanted]


async def discard(stream: trio.SSLStream[Any]) -> None:
    """Close a stream at once, and free what TLS keeps for it; nobody may use it any more.

    trio's stream refers to itself, so that it, and what the TLS library holds for it, would stay
    until the collector comes by: a megabyte for each hundred of connections that strangers open.
    """
    if vars(stream):  # Else it was let go of before.
        await trio.aclose_forcefully(stream)
        vars(stream).clear()


def peer_public_key(stream: trio.SSLStream[trio.abc.Stream]) -> bytes | None:
    """The Ed25519 key that the other side proved to hold, or None if it showed no certificate.

    Call it after the handshake.

    Raises:
        Untrusted: its certificate is not one of a node.
    """
    der = stream.getpeercert(True)
    if not der:
        return None
    try:
        return certificate_public_key(der)
    except BadSignature as error:
        raise Untrusted(error.message) from error


def peer_of(
    stream: trio.SSLStream[trio.abc.Stream], admissions: Mapping[NodeId, Admission]
) -> NodeId | None:
    """Which member is at the other end of a stream that shook hands; None is a joiner.

    Args:
        admissions: by node id, as they are now; the handshake may have used older ones.

    Raises:
        Untrusted: no plane was agreed on, a plane other than `JOIN_ALPN` without a
            certificate, or a key that is not admitted now.
    """
    alpn = stream.selected_alpn_protocol()
    if alpn is None:
        raise Untrusted("the peer agreed on no swarmd plane")
    public = peer_public_key(stream)
    if public is None:
        if alpn != JOIN_ALPN:
            raise Untrusted(f"a peer without a certificate asked for the plane {alpn}")
        return None
    node_id = node_id_of(public)
    admission = admissions.get(node_id)
    if admission is None or admission.evicted:
        raise Untrusted(f"node {short(node_id)} is not admitted")
    return node_id


def _context(protocol: ssl._SSLMethod, alpns: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.sslobject_class = _WholeReads
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols(list(alpns))
    return context


def _trust(context: ssl.SSLContext, admissions: Iterable[Admission], mode: ssl.VerifyMode) -> None:
    anchors = b"".join(x.certificate_der for x in admissions if not x.evicted)
    assert anchors, "a swarm has at least its first node"
    context.load_verify_locations(cadata=anchors)
    # The anchors are leaves: without this flag a chain would have to end in an authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = mode


def _present(context: ssl.SSLContext, key: SigningKey) -> None:
    # The ssl module reads keys from files alone; this one exists in memory and has no name.
    certificate = x509.load_der_x509_certificate(key.certificate)
    pem = key.private_pem() + certificate.public_bytes(serialization.Encoding.PEM)
    fd = os.memfd_create("swarmd", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
