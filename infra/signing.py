"""The key of a home that signs certificates. Apart from the hashing one: cryptography is slow to import."""

import json
from base64 import b64encode
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from infra.errors import KeyFileError
from infra.files import create_private, write_private
from infra.settings import settings


def signing_key() -> Ed25519PrivateKey:
    """Key that signs deletion certificates. Raises KeyFileError when the PEM file is not an Ed25519 key."""
    path = settings().signing_key
    if path is None:
        path = settings().home / "keys" / "signing.pem"
        create_private(path, _new_signing_pem)
    try:
        return _read_signing_key(path.read_bytes(), path)
    except OSError as error:
        raise KeyFileError(f"cannot read the signing key {path}: {error}; give an unencrypted PEM file") from error


def _read_signing_key(pem: bytes, path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"cannot read the signing key {path}: {error}; give an unencrypted PEM file") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is no Ed25519 key; make one with: openssl genpkey -algorithm ed25519 -out {path}")
    return key


def public_pem(key: Ed25519PrivateKey) -> str:
    """What the issuer publishes."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def key_changes() -> list[dict[str, str]]:
    """The old keys' word for their successors, oldest first: from, to (public PEM), signature over `to` by `from`."""
    file = settings().home / "keys" / "signing.changes.json"
    given = json.loads(file.read_bytes()) if settings().signing_key is None and file.exists() else []
    return list(given)


def rotate_signing_key() -> str:
    """Sign with a new key from now on; the old one signs the change and is destroyed. Returns the new public key.

    Raises KeyFileError where the key comes from the environment, which only its owner can change."""
    if settings().signing_key is not None:
        raise KeyFileError(
            "the key comes from DECIDUOUS_SIGNING_KEY: make a new one (openssl genpkey -algorithm ed25519), point "
            "every process at it, and publish both public keys in one file, which `deciduous verify --key` takes"
        )
    old, folder = signing_key(), settings().home / "keys"
    pem = _new_signing_pem()
    new = _read_signing_key(pem, folder / "signing.pem")
    signature = b64encode(old.sign(public_pem(new).encode())).decode()
    changes = [*key_changes(), {"from": public_pem(old), "to": public_pem(new), "signature": signature}]
    # a crash in between leaves a change to a key that nobody has; the next rotation starts again from the old one
    kept = [change for change in changes[:-1] if change["from"] != public_pem(old)]
    write_private(folder / "signing.changes.json", json.dumps([*kept, changes[-1]]).encode())
    write_private(folder / "signing.pem", pem)
    return public_pem(new)


def _new_signing_pem() -> bytes:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
