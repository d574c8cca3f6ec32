"""Where an adapter is trained: in this process, or by a worker of a pool."""

from dataclasses import dataclass
from enum import StrEnum


class Place(StrEnum):
    HERE = "here"
    POOL = "pool"


@dataclass(frozen=True, slots=True)
class Placement:
    place: Place
    reason: str


def place_training(deployed: bool, pool: str | None, workers: int, wait: bool) -> Placement:
    """Hand training to the pool of a deployed stream; where no worker lives there, wait for one or train here.

    On workers with the same device the bytes are the same either way: only time is at stake.
    """
    if not deployed:
        return Placement(Place.HERE, "this run belongs to no deployment")
    if pool is None:
        return Placement(Place.HERE, "the stream names no pool (tasks.pool)")
    if workers:
        return Placement(Place.POOL, f"{workers} live worker{'s' if workers > 1 else ''} in pool {pool!r}")
    if wait:
        return Placement(Place.POOL, f"no live worker in pool {pool!r} yet; waiting for one (tasks.without_worker)")
    return Placement(Place.HERE, f"no live worker in pool {pool!r} (tasks.without_worker: local)")
