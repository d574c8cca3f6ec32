"""Which groups a caller may use: decided before anything is scored.

Grants come from a YAML file that the owner of the callers keeps, named by DECIDUOUS_ENTITLEMENTS: stream -> caller ->
groups. A caller is a name that a gateway vouches for, or `sha256:` and the digest of a secret that the caller shows.
"""

import hashlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from infra.errors import GrantsError
from infra.grants import Grants, read_grants
from infra.settings import settings
from registry.errors import StateError

ALL_GROUPS = "*"
OPEN = "open"
"""Snapshot id where no file of grants is named and none is required: whoever asks says which groups they hold."""


def permitted(known: Collection[str], groups: Collection[str]) -> tuple[str, ...]:
    """The known groups that the caller holds, sorted. '*' asks for all, for the stream's owner.

    A caller who names none is answered where the stream has one group only. Raises StateError when nothing is left:
    no answer rather than an answer from elsewhere.
    """
    if (not groups and len(known) == 1) or ALL_GROUPS in groups:
        return tuple(sorted(known))
    allowed = tuple(sorted(set(known) & set(groups)))
    if not allowed:
        asked = ", ".join(sorted(groups)) or "none"
        raise StateError(
            f"groups asked for: {asked}; this model serves none of them: name one that has data "
            "(`--as GROUP`, of a served model the parameter `groups`)"
        )
    return allowed


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What one caller holds, and the digest of the grants that say so: it stands in the prediction log."""

    groups: tuple[str, ...]
    snapshot: str


class Entitlements:
    """The file of grants, read again when what is known is older than `entitlement_seconds`: so fast is a revocation.

    Where the file cannot be read any more, nobody is entitled: old grants are not served on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read_at: float | None = None
        self._grants: Grants = {}
        self._snapshot = OPEN

    def of(self, stream: str, caller: str | None, asked: Collection[str]) -> Entitlement:
        """The groups asked for that the caller holds, or all that they hold. Raises StateError for a stranger."""
        if settings().entitlements is None:
            _require_trust()
            return Entitlement(tuple(asked), OPEN)
        self._refresh(settings().entitlements)
        held = self._held(stream, caller or "")
        narrowed = tuple(group for group in held if not asked or group in asked or ALL_GROUPS in asked)
        if not narrowed:
            raise StateError(f"caller {_shown(caller)} holds none of the groups asked for in stream {stream!r}")
        return Entitlement(narrowed, self._snapshot)

    def refuse_secret(self, stream: str, caller: str | None) -> None:
        """Raise StateError where the grants know the caller by a secret. For what is deployed: Prefect keeps and shows
        the parameters of its runs."""
        if settings().entitlements is None:
            return
        self._refresh(settings().entitlements)
        if _digest_of(caller or "") in (self._grants.get(stream) or {}):
            raise StateError(
                f"caller {_shown(caller)} of stream {stream!r} is known by a secret, and Prefect keeps and shows what "
                "a deployment is given: grant to a name and give that as `caller`, and change the secret"
            )

    def _held(self, stream: str, caller: str) -> tuple[str, ...]:
        callers = self._grants.get(stream) or {}
        secret = _digest_of(caller)
        named = callers.get(caller) if not caller.startswith("sha256:") else None  # a digest is no secret
        return tuple(sorted({*(named or ()), *(callers.get(secret) or ())} - {ALL_GROUPS}))

    def _refresh(self, file: Path | None) -> None:
        now = self._clock()
        if file is None or (self._read_at is not None and now - self._read_at < settings().entitlement_seconds):
            return
        self._grants, self._read_at = {}, None
        try:
            found = read_grants(file)
        except GrantsError as error:
            raise StateError(f"{error}; nobody is answered") from None
        self._grants, self._snapshot, self._read_at = found.grants, found.snapshot, now


def _require_trust() -> None:
    if settings().require_entitlements:
        raise StateError(
            "no grants are kept here, so nobody is answered: name a file of them with DECIDUOUS_ENTITLEMENTS; where a "
            "gateway decides over groups, set DECIDUOUS_REQUIRE_ENTITLEMENTS=false"
        )


def _digest_of(caller: str) -> str:
    return f"sha256:{hashlib.sha256(caller.encode()).hexdigest()}"


def _shown(caller: str | None) -> str:
    """Never the secret itself."""
    return hashlib.sha256(caller.encode()).hexdigest()[:12] if caller else "unnamed"
