"""What a certificate may claim, and when a monitor speaks up."""

from collections.abc import Mapping
from typing import Any

from registry.records import Verdict

ALARM = 4.0
"""Standard deviations above chance from which a membership monitor speaks up."""

SPEAKS_FROM = 200
"""Forgotten records below which it says nothing: chance alone reaches 0.5 ± 0.057 there, ± 0.26 at ten."""


def is_clean(found: Mapping[str, Any]) -> bool:
    """Whether a rebuilt artifact is what training without the records makes: its bytes, or, where bytes are not
    reproducible, no further from it than another run is."""
    return bool(found["equal"] or found.get("within_noise"))


def guarantee(exact: bool, left: int, suppressed: int, served_clean: bool) -> str:
    """The level of a certificate, from what its ticket left undone.

    E0: every rebuilt artifact is byte-equal to one made without the records. E1: the same procedure where bytes are not
    reproducible. A: adapters were suppressed, nothing else is left. Q: the work is not finished, and nothing that the
    records shaped serves. `none`: not even that could be shown.
    """
    if not left:
        return "E0" if exact else "E1"
    if suppressed:
        return "A" if left == suppressed else "none"
    return "Q" if served_clean else "none"


def hear_monitor(auc: float, z: float, forgotten: int) -> Verdict:
    """A monitor can fail a ticket and never passes one alone. With few records it says nothing."""
    said = f"AUC {auc:.3f} over {forgotten} forgotten records, {z:.1f} standard deviations above chance"
    if forgotten < SPEAKS_FROM:
        return Verdict(True, f"{said}: too few to say anything (from {SPEAKS_FROM})")
    return Verdict(z <= ALARM, said)
