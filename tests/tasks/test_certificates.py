import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import CertificateError
from tasks.certificates import sign, verify

KEY = Ed25519PrivateKey.generate()
SIGNED = sign({"ticket": "t-1", "records": 3, "guarantee": "E0"}, KEY)


def pem(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_a_certificate_verifies_with_its_own_and_with_the_published_key():
    assert verify(SIGNED)["records"] == 3
    assert verify(SIGNED, pem(KEY))["ticket"] == "t-1"


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_detected(position, change):
    broken = bytearray(SIGNED)
    broken[position] ^= change
    with pytest.raises(CertificateError):
        verify(bytes(broken), pem(KEY))


def test_another_signer_is_detected_by_the_published_key():
    forged = sign({"ticket": "t-1", "records": 0, "guarantee": "E0"}, Ed25519PrivateKey.generate())
    assert verify(forged)["records"] == 0
    with pytest.raises(CertificateError, match="signature does not match"):
        verify(forged, pem(KEY))


def test_reformatted_json_is_not_what_was_signed():
    with pytest.raises(CertificateError, match="canonical"):
        verify(json.dumps(json.loads(SIGNED), indent=1).encode())
