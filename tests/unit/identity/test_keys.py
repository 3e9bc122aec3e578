"""Keys: files that stay private, signatures, sessions, certificates."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.disk import seal_body
from swarmd.base.errors import BadSignature, CorruptFile, KeyFileRefused, NotFound
from swarmd.base.ids import node_id_of
from swarmd.identity.keys import (
    Aead,
    Exchange,
    SigningKey,
    certificate_der,
    certificate_public_key,
    is_certificate_of,
    keyed_tag,
    tags_equal,
    verify,
)

KEY = SigningKey.from_seed(b"k" * 32)
OTHER = SigningKey.from_seed(b"o" * 32)


def test_a_saved_key_loads_again_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).public == KEY.public


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o400, 0o700, 0o4600])
def test_a_key_file_of_another_mode_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    KEY.save(path)
    path.chmod(mode)
    with pytest.raises(KeyFileRefused) as caught:
        SigningKey.load(path)
    assert str(path) in caught.value.message
    assert f"{mode:04o}" in caught.value.message
    assert "chmod 600" in caught.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a swarmd file"),
        (b"-----BEGIN PRIVATE KEY-----\n", "not a swarmd file"),
        (seal_body("trust", 1, b"k" * 32), "not a key file"),
        (seal_body("key", 2, b"k" * 32), "format 2"),
        (seal_body("key", 1, b"k" * 31), "31 bytes"),
        (seal_body("key", 1, b"k" * 32)[:-1], "truncated"),
        (seal_body("key", 1, b"k" * 32)[:-1] + b"x", "damaged"),
    ],
)
def test_a_key_file_with_other_content_is_refused_by_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(CorruptFile) as caught:
        SigningKey.load(path)
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_a_missing_key_file_and_a_pipe_in_its_place_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        SigningKey.load(tmp_path / "node.key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyFileRefused, match="not a plain file"):
        SigningKey.load(tmp_path / "pipe")


def test_a_key_never_shows_its_seed() -> None:
    assert "k" * 8 not in repr(KEY)
    assert KEY.key_id == node_id_of(KEY.public)


@given(data=st.binary(max_size=200), flip=st.integers(min_value=0, max_value=511))
@settings(deadline=None, max_examples=50)
def test_a_signature_holds_for_its_bytes_and_key_alone(data: bytes, flip: int) -> None:
    signature = KEY.sign(data)
    assert verify(KEY.public, signature, data)
    assert not verify(KEY.public, signature, data + b"x")
    assert not verify(OTHER.public, signature, data)
    bent = bytearray(signature)
    bent[flip // 8] ^= 1 << flip % 8
    assert not verify(KEY.public, bytes(bent), data)


@pytest.mark.parametrize(
    ("public", "signature"), [(b"", b""), (b"x" * 31, b"y" * 64), (b"\xff" * 32, b"\xff" * 64)]
)
def test_verify_survives_any_bytes(public: bytes, signature: bytes) -> None:
    assert verify(public, signature, b"data") is False


def test_both_sides_of_an_exchange_make_one_key_per_context() -> None:
    ours, theirs = Exchange(), Exchange()
    key = ours.shared(theirs.public, b"a")
    assert key == theirs.shared(ours.public, b"a")
    assert len(key) == 32
    assert key != ours.shared(theirs.public, b"b")
    assert key != Exchange().shared(theirs.public, b"a")


@pytest.mark.parametrize("public", [b"", b"x" * 31, bytes(32)])
def test_an_unusable_exchange_key_is_refused(public: bytes) -> None:
    with pytest.raises(BadSignature):
        Exchange().shared(public, b"")


def test_a_sealed_packet_opens_only_with_the_same_key_counter_and_header() -> None:
    aead = Aead(b"s" * 32)
    sealed = aead.seal(7, b"hello", b"header")
    assert aead.open(7, sealed, b"header") == b"hello"
    for counter, data, header in [
        (8, sealed, b"header"),
        (7, sealed, b"other"),
        (7, sealed[:-1], b"header"),
        (7, sealed[1:], b"header"),
        (7, b"", b"header"),
        (-1, sealed, b"header"),
        (1 << 64, sealed, b"header"),
    ]:
        with pytest.raises(BadSignature):
            aead.open(counter, data, header)
    with pytest.raises(BadSignature):
        Aead(b"t" * 32).open(7, sealed, b"header")
    with pytest.raises(AssertionError):
        aead.seal(1 << 64, b"", b"")


def test_keyed_tags_depend_on_key_and_data() -> None:
    tag = keyed_tag(b"k", b"data")
    assert len(tag) == 16
    assert tags_equal(tag, keyed_tag(b"k", b"data"))
    assert not tags_equal(tag, keyed_tag(b"l", b"data"))
    assert not tags_equal(tag, keyed_tag(b"k", b"date"))


def test_a_certificate_is_a_function_of_its_key() -> None:
    der = certificate_der(KEY)
    assert der == certificate_der(SigningKey.from_seed(b"k" * 32)) == KEY.certificate
    assert certificate_public_key(der) == KEY.public
    assert is_certificate_of(KEY.public, der)


def test_a_certificate_that_differs_anywhere_is_not_the_nodes() -> None:
    der = KEY.certificate
    assert not is_certificate_of(OTHER.public, der)
    assert not is_certificate_of(KEY.public, der + b"x")
    assert not is_certificate_of(KEY.public, b"")
    for position in range(0, len(der), 3):
        bent = bytearray(der)
        bent[position] ^= 1
        assert not is_certificate_of(KEY.public, bytes(bent)), position


def test_a_key_of_another_length_makes_no_certificate() -> None:
    for public in (b"", b"x", b"x" * 33):
        assert not is_certificate_of(public, KEY.certificate)


def foreign_certificate(key: Ed25519PrivateKey | EllipticCurvePrivateKey, names: int) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    hashed = SHA256() if isinstance(key, EllipticCurvePrivateKey) else None
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(f"{n}.example") for n in range(names)]),
            critical=False,
        )
        .sign(key, hashed)
    )
    return certificate.public_bytes(Encoding.DER)


def test_a_certificate_of_another_kind_or_size_is_refused() -> None:
    ed25519 = Ed25519PrivateKey.generate()
    assert len(certificate_public_key(foreign_certificate(ed25519, 1))) == 32
    with pytest.raises(BadSignature, match="bytes is not one of a node"):
        certificate_public_key(foreign_certificate(ed25519, 200))
    with pytest.raises(BadSignature, match="not of an Ed25519 key"):
        certificate_public_key(foreign_certificate(generate_private_key(SECP256R1()), 1))


@pytest.mark.parametrize("der", [b"", b"junk", b"x" * 2_000])
def test_junk_is_no_certificate(der: bytes) -> None:
    with pytest.raises(BadSignature):
        certificate_public_key(der)
