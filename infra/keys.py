"""The two keys of a home: one hashes subjects, one signs certificates."""

import secrets

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from infra.errors import KeyFileError
from infra.files import create_private
from infra.settings import settings


def hash_key() -> bytes:
    """Key of the keyed hashes that stand for subjects in logs, tickets and certificates.

    Losing it makes the suppression list blind to a returning subject, so it belongs in the backup."""
    given = settings().hash_key
    if given is not None:
        return given.get_secret_value().encode()
    return create_private(settings().home / "keys" / "hash.key", lambda: secrets.token_bytes(32))


def signing_key() -> Ed25519PrivateKey:
    """Key that signs deletion certificates. Raises KeyFileError when the PEM file is not an Ed25519 key."""
    path = settings().signing_key
    if path is None:
        path = settings().home / "keys" / "signing.pem"
        create_private(path, _new_signing_pem)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise KeyFileError(f"cannot read the signing key {path}: {error}; give an unencrypted PEM file") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is no Ed25519 key; make one with: openssl genpkey -algorithm ed25519 -out {path}")
    return key


def _new_signing_pem() -> bytes:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
