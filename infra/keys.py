"""The key of a home that hashes records and subjects."""

import secrets
from pathlib import Path

from infra.errors import KeyFileError
from infra.files import create_private, locked, write_private
from infra.settings import settings

LEAST = 16


def hash_key() -> bytes:
    """Key of the keyed hashes that stand for subjects in logs, tickets and certificates.

    Losing it makes the suppression list blind to a returning subject, so it belongs in the backup."""
    given = settings().hash_key
    if given is not None:
        return given.get_secret_value().encode()
    path = settings().home / "keys" / "hash.key"
    key = create_private(path, lambda: secrets.token_bytes(32))
    if len(key) < LEAST:  # a hash under no key could be guessed by anybody
        raise KeyFileError(f"{path} holds {len(key)} bytes and is no whole hash key; put your copy of it there")
    return key


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
    keys = settings().home / "keys"
    with locked(keys / "rotation.lock"):
        old, retired = hash_key(), _next_file(keys / "retired")
        if create_private(retired, lambda: old) != old:  # known as retired before it stops being today's
            raise KeyFileError(f"{retired} came in meanwhile and holds another key; rotate again")
        write_private(keys / "hash.key", secrets.token_bytes(32))
    return retired


def _next_file(folder: Path) -> Path:
    """After the newest: an older one may have been moved away, and none may be written over."""
    numbers = [int(path.stem) for path in folder.glob("*.key") if path.stem.isdecimal()]
    return folder / f"{max(numbers, default=-1) + 1:04d}.key"
