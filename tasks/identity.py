"""Keyed hashes of records and subjects, and the splits that depend on nothing but a record's own id."""

from collections.abc import Callable
from hashlib import blake2b, sha256
from unicodedata import normalize

from infra import keys

HELD_OUT_ONE_IN = 5


def keyed_hash(kind: str, stream: str, value: str) -> str:
    """32 hex digits; without the key nobody can test a guess. `kind` keeps a record and a subject apart."""
    return _hash(keys.hash_key(), kind, stream, value)


def keyed_hashes(kind: str, stream: str, value: str) -> list[str]:
    """The hashes under today's key and under every retired one: what was stored before a rotation is found by them."""
    return [_hash(key, kind, stream, value) for key in keys.hash_keys()]


def hasher(stream: str) -> Callable[[str, str], list[str]]:
    """`keyed_hashes` for many values in a row: (kind, value) -> hashes, the keys read once."""
    every = keys.hash_keys()
    return lambda kind, value: [_hash(key, kind, stream, value) for key in every]


def _hash(key: bytes, kind: str, stream: str, value: str) -> str:
    # a name typed on one system and stored by another: the same letters in another form of Unicode are the same name
    message = f"{kind}\x1f{stream}\x1f{normalize('NFC', value)}".encode()
    return blake2b(message, key=key[:64], digest_size=16).hexdigest()


def catalog_key(keyed: str) -> int:
    """The first 63 bits of a keyed hash: what the catalog's index holds."""
    return int(keyed[:16], 16) >> 1


def order_key(stream: str, record_id: str) -> str:
    """Canonical order of records; used while reading and never stored, because it is not keyed."""
    return sha256(f"order\x1f{stream}\x1f{record_id}".encode()).hexdigest()


def is_held_out(stream: str, record_id: str) -> bool:
    """One record in five is never trained on; a deletion moves no other record across the split."""
    return int(sha256(f"split\x1f{stream}\x1f{record_id}".encode()).hexdigest()[:8], 16) % HELD_OUT_ONE_IN == 0


def slice_of(stream: str, subject: str, slices: int) -> int:
    """Subject-affine: all records of a subject share a slice, so a ticket touches one."""
    return int(sha256(f"slice\x1f{stream}\x1f{subject}".encode()).hexdigest()[:8], 16) % slices


def seed_of(*parts: object) -> int:
    """A 63-bit seed from names that a deletion does not change."""
    return int(sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16], 16) >> 1
