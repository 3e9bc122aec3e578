"""Keys: the one place where bytes become secrets and secrets become signatures.

Rules:
- A node, an admin and a token are each an Ed25519 key (RFC 8032). Its *key id* is the
  BLAKE2b-256 of the public half, which for a node is the node id.
- A key file is a checked file of mode 0600. Another mode, owner's mistake or not, is refused:
  a key that others could read is not a secret.
- The TLS certificate of a key is a function of the key alone (RFC 5280, fixed serial and
  dates; trust ends by eviction, never by a date that a wrong wall clock could move). So a
  verifier knows every byte of it but the signature, and nothing a stranger wrote is parsed.
- Sessions use ephemeral X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) and ChaCha20-Poly1305
  (RFC 8439). A counter is used once per key: two directions need two keys.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import stat
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import BadSignature, CorruptFile, KeyFileRefused, NotFound
from swarmd.base.files import write_atomically
from swarmd.base.ids import NodeId, digest, node_id_of, to_text

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TAG_BYTES: Final = 16
CERTIFICATE_BYTES_MAX: Final = 1_024
KEY_FILE_MODE: Final = 0o600
_KEY_FILE_BYTES_MAX: Final = 4_096
_KEY_KIND: Final = "key"
_KEY_FORMAT: Final = 1
_SEALED_BYTES_EXTRA: Final = 16
_COUNTER_LIMIT: Final = 1 << 64
_SERIAL: Final = 1
# From before any node, to the last date X.509 can write: see the rules above.
_NOT_BEFORE: Final = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class SigningKey:
    """An Ed25519 private key. Neither `repr` nor an exception ever shows it."""

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == KEY_BYTES, "an Ed25519 seed has 32 bytes"
        self._seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = self._private.public_key().public_bytes_raw()
        self.key_id: NodeId = node_id_of(self.public)

    def __repr__(self) -> str:
        return f"SigningKey({to_text(self.key_id)[:8]})"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key that 32 secret bytes name."""
        return cls(seed)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """The key in a file that `save` wrote.

        Raises:
            NotFound: there is no such file.
            KeyFileRefused: it cannot be opened, is no plain file, or its mode is not 0600.
            CorruptFile: it holds something else, or is damaged.
        """
        return cls.from_body(read_private_file(path), source=str(path))

    @classmethod
    def from_body(cls, raw: bytes, *, source: str) -> SigningKey:
        """The key that `body` gave the checked file of. Raises CorruptFile; names `source`."""
        seed = open_body(_KEY_KIND, _KEY_FORMAT, raw, source=source)
        if len(seed) != KEY_BYTES:
            raise CorruptFile(f"{source} holds a key of {len(seed)} bytes, not {KEY_BYTES}")
        return cls(seed)

    def body(self) -> bytes:
        """What a file of this key holds."""
        return seal_body(_KEY_KIND, _KEY_FORMAT, self._seed)

    def save(self, path: Path) -> None:
        """Write the key to `path` with mode 0600, atomically. Raises DiskFault."""
        write_atomically(path, self.body(), mode=KEY_FILE_MODE)

    def sign(self, data: bytes) -> bytes:
        """A signature of 64 bytes. Sign envelopes (`identity.signing`) rather than bare bytes:
        only their domain and swarm keep a signature from serving elsewhere."""
        return self._private.sign(data)

    @cached_property
    def certificate(self) -> bytes:
        """`certificate_der(self)`, made once."""
        return certificate_der(self)

    def private_pem(self) -> bytes:
        """The key as unencrypted PKCS 8, for a TLS library that only reads files."""
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def read_private_file(path: Path, *, given: bool = False) -> bytes:
    """What is in the file of a key.

    Args:
        given: the file is not ours to write: the service manager (systemd credentials: 0400, or
            0440 of root with an access list for the service's user) or a person put it there.

    Raises:
        NotFound: there is no such file.
        KeyFileRefused: it cannot be opened, is no plain file, or others may read it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"there is no key file {path}") from error
    except OSError as error:
        raise KeyFileRefused(f"cannot open the key file {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileRefused(f"{path} is not a plain file, so it cannot be a key file")
        mode = stat.S_IMODE(status.st_mode)
        roots = mode == 0o440 and status.st_uid == status.st_gid == 0
        if mode != KEY_FILE_MODE and not (given and (mode == 0o400 or roots)):
            raise KeyFileRefused(
                f"the key file {path} has mode {mode:04o}, so it may not be secret; "
                f"if it is, run: chmod 600 {path}"
            )
        return os.read(fd, _KEY_FILE_BYTES_MAX)
    finally:
        os.close(fd)


def verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is one of `data` by the holder of `public`; any bytes may be asked."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


# ---- sessions -------------------------------------------------------------------------


class Exchange:
    """One side of an ephemeral X25519 key agreement; use it for one session."""

    def __init__(self, seed: bytes | None = None) -> None:
        raw = os.urandom(KEY_BYTES) if seed is None else seed
        self._private = X25519PrivateKey.from_private_bytes(raw)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def shared(self, peer_public: bytes, context: bytes) -> bytes:
        """A key of 32 bytes that only the two sides can make, bound to both public halves.

        Each `context` gives another, unrelated key: take one per direction and per use.

        Raises:
            BadSignature: `peer_public` is no usable X25519 key.
        """
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError as error:
            raise BadSignature("the peer's exchange key is unusable") from error
        low, high = sorted((self.public, peer_public))
        info = digest(b"swarmd exchange", low, high, context)
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


class Aead:
    """ChaCha20-Poly1305 under one key of 32 bytes, its nonce a 64-bit counter."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)

    def seal(self, counter: int, data: bytes, associated: bytes) -> bytes:
        """`data` encrypted and bound to `associated`; 16 bytes longer.

        The caller never uses a counter twice.
        """
        return self._cipher.encrypt(_nonce(counter), data, associated)

    def open(self, counter: int, data: bytes, associated: bytes | memoryview) -> bytes:
        """What was sealed. Raises BadSignature when anything about it differs."""
        if len(data) < _SEALED_BYTES_EXTRA or not 0 <= counter < _COUNTER_LIMIT:
            raise BadSignature("a sealed packet is too short")
        try:
            return self._cipher.decrypt(_nonce(counter), data, associated)
        except InvalidTag as error:
            raise BadSignature("a sealed packet does not open") from error


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big") if counter < _COUNTER_LIMIT else _exhausted()


def _exhausted() -> bytes:
    raise AssertionError("a session key outlived its 2^64 counters")


def keyed_tag(key: bytes, data: bytes) -> bytes:
    """A keyed BLAKE2b tag of 16 bytes (RFC 7693)."""
    return hashlib.blake2b(data, digest_size=TAG_BYTES, key=key).digest()


def tags_equal(one: bytes, other: bytes) -> bool:
    """Compare in a time that tells nothing about where they differ."""
    return hmac.compare_digest(one, other)


# ---- certificates ---------------------------------------------------------------------


def certificate_der(key: SigningKey) -> bytes:
    """The self-signed X.509 certificate of `key`, always the same bytes."""
    return _build_certificate(key.public, key._private)


def certificate_public_key(der: bytes) -> bytes:
    """The 32-byte Ed25519 public key in a certificate.

    The certificate is not verified: ask `is_certificate_of` before it is kept or trusted.

    Raises:
        BadSignature: not a certificate, or not of an Ed25519 key.
    """
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise BadSignature(f"a certificate of {len(der)} bytes is not one of a node")
    try:
        public = x509.load_der_x509_certificate(der).public_key()
    except UnsupportedAlgorithm as error:
        raise BadSignature("the certificate is not of an Ed25519 key") from error
    except (ValueError, x509.InvalidVersion, TypeError) as error:
        raise BadSignature("not an X.509 certificate") from error
    if not isinstance(public, Ed25519PublicKey):
        raise BadSignature("the certificate is not of an Ed25519 key")
    return public.public_bytes_raw()


def is_certificate_of(public: bytes, der: bytes) -> bool:
    """Whether `der` is exactly the certificate that the holder of `public` makes.

    All but the signature is rebuilt and compared; a certificate that differs in any other
    byte never reaches a TLS library.
    """
    if len(public) != KEY_BYTES or not SIGNATURE_BYTES < len(der) <= CERTIFICATE_BYTES_MAX:
        return False
    template = _build_certificate(public, _TEMPLATE_SIGNER)
    if der[:-SIGNATURE_BYTES] != template[:-SIGNATURE_BYTES]:
        return False
    signed = x509.load_der_x509_certificate(der).tbs_certificate_bytes
    return verify(public, der[-SIGNATURE_BYTES:], signed)


def _build_certificate(public: bytes, signer: Ed25519PrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, to_text(node_id_of(public)))])
    subject_key = Ed25519PublicKey.from_public_bytes(public)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(subject_key)
        .serial_number(_SERIAL)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(signer, None)
    )
    return certificate.public_bytes(serialization.Encoding.DER)


# Its signature is cut off again: nothing rests on this key.
_TEMPLATE_SIGNER: Final = Ed25519PrivateKey.from_private_bytes(bytes(KEY_BYTES))
