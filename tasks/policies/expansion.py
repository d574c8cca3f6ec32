"""Reuse, refresh, expand or hold: what a batch's shift asks for (after SEMA, arXiv 2403.18886, decided per batch)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, lgamma, log

from registry.records import Decision, DecisionKind, MixtureScan, ShiftEvidence

REFRESH_TAIL = 0.05
MIN_HELD_OUT = 2
"""Held-out rows (with a label, where there are labels), fewer of which say nothing about what was learned."""


@dataclass(frozen=True, slots=True)
class ShiftRule:
    alpha: float
    """Share of batches without shift that may expand all the same."""
    min_rows: int
    """Fewer labelled rows than this cannot train an adapter."""
    refresh_drop: float
    """Shortfall in held-out accuracy that makes a reused adapter train again."""


def choose_expansion(
    evidence: Sequence[ShiftEvidence], labelled: int, rule: ShiftRule, held_out: int = MIN_HELD_OUT
) -> Decision:
    """Reuse the adapter that the batch differs from least, unless it differs from every one.

    An adapter explains the batch when the permutation test does not reject at `alpha`. The batch's own adapter is among
    the tested, so a stream without shift whose classes recur expands on at most a share `alpha` of its batches, however
    many adapters there are. Ties go to the smaller statistic, then to the name. One that does not know the batch's
    classes explains nothing that is farther from it than from those which know them and reject. One that has too few
    rows of them to compare is taken only where no other explains the batch.
    """
    z_scores = _by_layer(evidence)
    least = min((e.statistic for e in evidence if e.novelty == 0 and e.p_value <= rule.alpha), default=inf)
    explaining = [e for e in evidence if e.p_value > rule.alpha and (e.novelty == 0 or e.statistic <= least)]
    closest = min(explaining, key=_distance, default=min(evidence, key=_distance, default=None))
    if closest is not None and explaining:
        return _explained(closest, z_scores, _lack(labelled, held_out, 1))
    why = "no adapter exists yet" if closest is None else _rejected(closest, rule.alpha)
    p_value = None if closest is None else closest.p_value
    if lack := _lack(labelled, held_out, rule.min_rows):
        return Decision(DecisionKind.HOLD, None, f"{why}, and {lack}", p_value, z_scores)
    return Decision(DecisionKind.EXPAND, None, why, p_value, z_scores)


def _distance(evidence: ShiftEvidence) -> tuple[bool, bool, float, float, str]:
    """An adapter that knows the batch's classes comes first: of one that knows none of them little can be told, and
    nothing of one that was not compared, whose p-value of 1 is no likeness."""
    return (
        not evidence.compared,
        evidence.novelty > 0,
        -evidence.p_value,
        evidence.statistic,
        evidence.adapter_id,
    )


def _explained(closest: ShiftEvidence, z_scores: dict[str, dict[str, float]], lack: str) -> Decision:
    reason = f"{closest.adapter_id} explains the batch (p = {closest.p_value:.3f}, MMD² = {closest.statistic:.4f})"
    if not closest.compared:
        reason = (
            f"nothing tells the batch from {closest.adapter_id}: one side has fewer than two rows to compare, of the "
            "classes that both have where there are labels"
        )
    if closest.novelty > 0 and closest.p_value == 1:
        reason += (
            f"; there are classes new to it, and dealt otherwise they differ as much (MMD² = {closest.novelty:.4f})"
        )
    if lack:
        held = f"{reason}, but {lack}: measured and predicted, the model stays as it is"
        return Decision(DecisionKind.HOLD, closest.adapter_id, held, closest.p_value, z_scores)
    return Decision(DecisionKind.REUSE, closest.adapter_id, reason, closest.p_value, z_scores)


def lacks_rows(kind: DecisionKind, labelled: int, held_out: int, min_rows: int) -> bool:
    """Whether a shard of so many rows would not be decided like this: rows have left it since it was."""
    needed = min_rows if kind == DecisionKind.EXPAND else 1
    return kind != DecisionKind.HOLD and bool(_lack(labelled, held_out, needed))


def _lack(labelled: int, held_out: int, needed: int) -> str:
    """What keeps a batch from changing the model; empty where nothing does. Documents have no labels."""
    if labelled == 0:
        return "it has no row to learn from: none has a label, or all are held out"
    if held_out < MIN_HELD_OUT:
        return f"its held-out rows are too few to judge it by ({held_out}, {MIN_HELD_OUT} at least)"
    if labelled < needed:
        return (
            f"{labelled} rows to learn from, held-out ones aside, are too few for an adapter (shift.min_rows {needed})"
        )
    return ""


def _rejected(closest: ShiftEvidence, alpha: float) -> str:
    moved = "" if closest.breadth is None else f", {closest.breadth:.0%} of the dimensions moved"
    return (
        f"the batch differs from every adapter (closest {closest.adapter_id}: p = {closest.p_value:.3f} <= {alpha:g}, "
        f"MMD² = {closest.statistic:.4f}{moved})"
    )


def choose_growth(
    scan: MixtureScan, labelled: int, threshold: float, min_rows: int, held_out: int = MIN_HELD_OUT
) -> Decision:
    """Reuse the group's mixture where every watched layer knows the batch; else grow from the shallowest that does not.

    Deeper layers are judged again under what the shallower ones have grown: `tell_growth` says what became of them.
    """
    strange = [layer for layer, least in scan.least.items() if least is None or least > threshold]
    told = "; ".join(f"layer {layer}: {_told(least, threshold)}" for layer, least in scan.least.items())
    if scan.adapter_id is None:
        kind, why = DecisionKind.EXPAND, "the group has no mixture yet: every layer gets its first adapter"
    elif not scan.least:
        kind, why = DecisionKind.HOLD, "no held-out row to scan the layers with"
    elif strange:
        kind, why = DecisionKind.EXPAND, f"layer {strange[0]} does not know the batch ({told})"
    else:
        kind, why = DecisionKind.REUSE, f"every layer of {scan.adapter_id} knows the batch ({told})"
    lack = _lack(labelled, held_out, min_rows if kind == DecisionKind.EXPAND else 1)
    if kind != DecisionKind.HOLD and lack:
        kind, why = DecisionKind.HOLD, f"{why}, but {lack}: measured, the model stays as it is"
    return Decision(kind, scan.adapter_id, why, None, scan.z_scores)


def tell_growth(least: Mapping[str, float | None], grown: Collection[int], threshold: float) -> str:
    """What training found and did, layer by layer."""
    if not least:
        return f"first adapters in layers {', '.join(map(str, grown))}"
    return "; ".join(
        f"layer {layer} {'grew' if int(layer) in grown else 'is reused'}: {_told(z, threshold)}"
        for layer, z in least.items()
    )


def _told(least: float | None, threshold: float) -> str:
    if least is None:
        return "no descriptor"
    return f"z {least:.2f} {'>' if least > threshold else '<='} {threshold:g}"


def refine_reuse(
    decision: Decision, measured: float | None, rows: int, expected: float | None, rule: ShiftRule
) -> Decision:
    """Turn a reuse into a refresh where statistics alone fall short of what the adapter reached on its own rows.

    `measured` is the accuracy on this batch's held-out `rows` with its statistics joined, `expected` the adapter's own.
    A shortfall counts when it is larger than `refresh_drop` and than chance explains (exact binomial, 5 %).
    """
    alternatives = {**decision.alternatives, "reuse": measured, "expected": expected}
    kind, reason = decision.kind, decision.reason
    if kind == DecisionKind.REUSE and measured is not None and expected is not None:
        tail = binomial_tail(round(measured * rows), rows, expected)
        compared = f"held-out accuracy {measured:.3f} against {expected:.3f} on its own rows (tail {tail:.3f})"
        if expected - measured > rule.refresh_drop and tail <= REFRESH_TAIL:
            kind, reason = DecisionKind.REFRESH, f"{reason}; statistics alone fall short: {compared}"
        else:
            reason = f"{reason}; {compared}"
    return Decision(kind, decision.adapter_id, reason, decision.p_value, decision.z_scores, alternatives)


def binomial_tail(correct: int, rows: int, chance: float) -> float:
    """Probability of at most `correct` hits in `rows` tries of probability `chance`.

    In logarithms: the number of ways to hit has no float from about a thousand rows on.
    """
    if chance in (0, 1):
        return float(correct >= rows * chance)
    hit, miss = log(chance), log(1 - chance)
    ways = (
        lgamma(rows + 1) - lgamma(k + 1) - lgamma(rows - k + 1) + k * hit + (rows - k) * miss
        for k in range(correct + 1)
    )
    return sum(map(exp, ways))


def _by_layer(evidence: Sequence[ShiftEvidence]) -> dict[str, dict[str, float]]:
    layers = dict.fromkeys(layer for e in evidence for layer in e.z_scores)
    return {layer: {e.adapter_id: e.z_scores[layer] for e in evidence if layer in e.z_scores} for layer in layers}
