"""In which form an adapter is stored: the smallest that answers as well as the whole."""

from registry.records import Verdict

ROUNDING = 1e-9


def form_holds(accuracy: float, whole: float, rows: int, drop: float) -> Verdict:
    """Held-out accuracy in the form that would serve, against that of the weights as they were trained."""
    compared = f"{accuracy:.3f} against {whole:.3f} whole, {rows} held-out rows (gate {drop:g})"
    if whole - accuracy <= drop + ROUNDING:
        return Verdict(True, f"holds: {compared}")
    return Verdict(False, f"loses too much: {compared}")
