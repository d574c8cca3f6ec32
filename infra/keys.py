"""The two keys of a home: one hashes subjects, one signs certificates."""

import json
import secrets
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
from infra.files import create_private, make_folder, write_private
from infra.settings import settings


def hash_key() -> bytes:
    """Key of the keyed hashes that stand for subjects in logs, tickets and certificates.

    Losing it makes the suppression list blind to a returning subject, so it belongs in the backup."""
    given = settings().hash_key
    if given is not None:
        return given.get_secret_value().encode()
    return create_private(settings().home / "keys" / "hash.key", lambda: secrets.token_bytes(32))


def hash_keys() -> list[bytes]:
    """Today's key, then the retired ones: hashes made under them are still in tickets, rows and certificates."""
    given = settings().retired_hash_keys
    named = [each.strip().encode() for each in given.get_secret_value().split(",")] if given else []
    folder = settings().home / "keys" / "retired"
    kept = [path.read_bytes() for path in sorted(folder.glob("*.key"), reverse=True)]
    return [hash_key(), *(key for key in [*named, *kept] if key)]


def rotate_hash_key() -> Path:
    """Retire the home's key and make a new one; returns where the retired key lies. Raises KeyFileError where the key
    comes from the environment, which only its owner can change."""
    if settings().hash_key is not None:
        raise KeyFileError(
            "the key comes from DECIDUOUS_HASH_KEY: add it to DECIDUOUS_RETIRED_HASH_KEYS (a list with commas), then "
            "set DECIDUOUS_HASH_KEY to a new one, in every process"
        )
    folder = make_folder(settings().home / "keys" / "retired")
    retired = folder / f"{len(list(folder.iterdir())):04d}.key"
    write_private(retired, hash_key())  # known as retired before it stops being today's
    write_private(settings().home / "keys" / "hash.key", secrets.token_bytes(32))
    return retired


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
