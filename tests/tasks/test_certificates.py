import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from infra import signing
from infra.errors import KeyFileError
from infra.files import write_private as write
from registry.errors import CertificateError
from tasks.certificates import BEGINNING, digest, read_published, sign, verify, verify_chain

KEY = Ed25519PrivateKey.generate()
SIGNED = sign({"ticket": "t-1", "records": 3, "guarantee": "E0"}, KEY)


def rsa_pem() -> bytes:
    return generate_private_key(65537, 2048).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


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


@pytest.mark.parametrize(
    "change",
    [
        (b'"records":3', b'"records":NaN'),
        (b'"records":3', b'"records":"\\ud800"'),
        (b'"records":3', b'"records":' + b"[" * 100_000 + b"]" * 100_000),
        (b'"signature":"', b'"signature":"\xc3\xa9'),
    ],
    ids=["NaN", "half a character", "depth", "no base64"],
)
def test_what_no_certificate_can_hold_is_one_error(change):
    with pytest.raises(CertificateError, match="no certificate"):
        verify(SIGNED.replace(*change))


@pytest.mark.parametrize("file", [b"", b"{}", b"[]", b"\xff", b'{"signature": 1}', b'{"signature": ""}'])
def test_another_file_is_told_to_be_none_in_words_for_people(file):
    with pytest.raises(CertificateError, match="this is no certificate: it is not JSON with a signature") as caught:
        verify(file)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [{}, {"ticket": "t-1"}, {"ticket": "t-1", "previous_certificate": []}], ids=["empty", "cut", "a list"]
)
def test_what_is_signed_and_no_certificate_is_no_link_of_a_chain(content):
    with pytest.raises(CertificateError, match="signed and no certificate"):
        verify_chain([sign(content, KEY)])


@pytest.mark.parametrize("change", [{}, 1, {"from": pem(KEY), "to": "x", "signature": "é"}])
def test_a_change_of_keys_that_cannot_be_read_is_none(change):
    first = sign({"ticket": "t-1", "previous_certificate": BEGINNING}, KEY)
    second = {"ticket": "t-2", "previous_certificate": digest(first), "key_changes": [change]}
    with pytest.raises(CertificateError, match="did not sign"):
        verify_chain([first, sign(second, Ed25519PrivateKey.generate())])


@pytest.fixture
def own_home(tmp_path, set_variable):
    set_variable("HOME", tmp_path)


def issue(previous: bytes | None, ticket: str) -> bytes:
    before = BEGINNING if previous is None else digest(previous)
    return sign({"ticket": ticket, "previous_certificate": before}, signing.signing_key(), signing.key_changes())


@pytest.mark.usefixtures("own_home")
def test_a_changed_key_has_the_word_of_the_one_before():
    """Old certificates stay valid, and whoever trusts any of the keys can follow the chain over the changes."""
    published = [signing.public_pem(signing.signing_key())]
    chain = [issue(None, "t-1")]
    published.append(signing.rotate_signing_key())
    published.append(signing.rotate_signing_key())  # a key that signed nothing
    chain.append(issue(chain[-1], "t-2"))
    published.append(signing.rotate_signing_key())
    chain.append(issue(chain[-1], "t-3"))
    assert len(set(published)) == 4
    for trusted in (None, published[0], published[2], published[3], "".join(published)):
        assert [c["ticket"] for c in verify_chain(chain, trusted)] == ["t-1", "t-2", "t-3"]
    for certificate in chain:
        assert verify(certificate, "".join(published))
    with pytest.raises(CertificateError, match="signature does not match"):
        verify(chain[0], published[-1])
    with pytest.raises(CertificateError, match="another key signed it"):
        verify_chain(chain, pem(KEY))


@pytest.mark.usefixtures("own_home")
def test_a_chain_that_goes_on_with_a_stolen_name_shows():
    chain = [issue(None, "t-1")]
    thief = Ed25519PrivateKey.generate()
    forged_change = {"from": signing.public_pem(signing.signing_key()), "to": pem(thief), "signature": "AAAA" * 22}
    for changes in ([], [forged_change]):
        forged = sign({"ticket": "t-2", "previous_certificate": digest(chain[0])}, thief, changes)
        for trusted in (None, signing.public_pem(signing.signing_key())):
            with pytest.raises(CertificateError, match="t-2 is signed with another key"):
                verify_chain([*chain, forged], trusted)
    assert verify_chain(
        [*chain, forged], signing.public_pem(signing.signing_key()) + pem(thief)
    )  # the issuer says both are his


@pytest.mark.usefixtures("own_home")
def test_a_rotation_that_was_broken_off_is_done_again(monkeypatch):
    chain = [issue(None, "t-1")]

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            signing, "write_private", lambda *args: crash() if args[0].name == "signing.pem" else write(*args)
        )
        with pytest.raises(KeyboardInterrupt):
            signing.rotate_signing_key()
    chain.append(issue(chain[-1], "t-2"))
    signing.rotate_signing_key()
    chain.append(issue(chain[-1], "t-3"))
    assert len(verify_chain(chain)) == 3


@pytest.mark.usefixtures("own_home")
def test_a_key_of_the_environment_is_its_owners_to_change(tmp_path, set_variable):
    signing.signing_key()
    set_variable("SIGNING_KEY", tmp_path / "keys" / "signing.pem")
    with pytest.raises(KeyFileError, match="DECIDUOUS_SIGNING_KEY"):
        signing.rotate_signing_key()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a letter", "holds no public key"),
        (b"", "holds no public key"),
        (b"\xff\xfe\x00", "holds no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "holds no public key"),
        (rsa_pem(), "no Ed25519 key"),
        (None, "cannot read the key"),
    ],
    ids=["text", "empty", "binary", "no PEM", "RSA", "folder"],
)
def test_a_file_that_is_no_published_key_is_named_and_not_the_certificate(tmp_path, content, told):
    file = tmp_path / "issuer.pem"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(KeyFileError, match=rf"issuer\.pem.*{told}|{told} .*issuer\.pem"):
        read_published(file)


def test_keys_that_an_issuer_published_are_read(tmp_path):
    other = pem(Ed25519PrivateKey.generate())
    (tmp_path / "issuer.pem").write_text(other + pem(KEY))
    assert verify(SIGNED, read_published(tmp_path / "issuer.pem"))["ticket"] == "t-1"


@pytest.mark.parametrize("trusted", ["", "a letter"])
def test_a_trusted_key_that_is_none_is_blamed_and_never_left_out(trusted):
    with pytest.raises(CertificateError, match="trusted key is no public key"):
        verify(SIGNED, trusted)
