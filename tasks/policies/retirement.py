"""Which adapters are no longer routed to."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Routing:
    """How often one adapter took part in answers over a window of batches."""

    adapter_id: str
    held_out_rows: int
    """Held-out rows of the window's batches that its callers could have had answered by it."""
    held_out_visits: int
    answered_rows: int
    """Rows of the prediction log since the window began."""
    answered_visits: int
    age: int
    """Batches since the newest that it was trained on."""


@dataclass(frozen=True, slots=True)
class Retirement:
    adapter_id: str
    reason: str
    figures: dict[str, float | None]


def choose_retirements(routings: Sequence[Routing], share: float, window: int) -> list[Retirement]:
    """Adapters at least `window` batches old that took part in less than `share` of what was asked since.

    Both the held-out rows and, where there are any, the answered ones have to say so: an old season's adapter that
    callers still use stays, also where the log does not say in which groups they asked.
    """
    return [
        Retirement(routing.adapter_id, _reason(routing, window), _figures(routing))
        for routing in routings
        if routing.age >= window
        and routing.held_out_rows > 0
        and routing.held_out_visits < share * routing.held_out_rows
        and (routing.answered_visits == 0 or routing.answered_visits < share * routing.answered_rows)
    ]


def _reason(routing: Routing, window: int) -> str:
    return (
        f"took part in {routing.held_out_visits} of {routing.held_out_rows} held-out rows of the last {window} batches "
        f"and in {routing.answered_visits} of {routing.answered_rows} answered ones"
    )


def _figures(routing: Routing) -> dict[str, float | None]:
    answered = routing.answered_visits / routing.answered_rows if routing.answered_rows else None
    return {"held_out_share": routing.held_out_visits / routing.held_out_rows, "answered_share": answered}
