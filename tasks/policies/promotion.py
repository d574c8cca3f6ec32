"""Does a candidate clear the gates: an adapter to serve, a version to become champion, a merge to be kept."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass

from registry.records import Verdict
from tasks.policies.expansion import binomial_tail

ROUNDING = 1e-9
"""0.90 - 0.88 is a little more than 0.02 in binary."""

# Batch -> (accuracy, held-out rows)
Accuracies = Mapping[str, tuple[float, int]]


def adapter_earns_its_place(with_adapter: float, exact_head: float, rows: int) -> Verdict:
    """An adapter serves only where it beats the exact head on held-out rows."""
    compared = f"{with_adapter:.3f} with it, {exact_head:.3f} by the exact head alone, {rows} held-out rows"
    if rows == 0:
        return Verdict(False, "no held-out row to judge the adapter on")
    if with_adapter > exact_head:
        return Verdict(True, f"earns its place: {compared}")
    return Verdict(False, f"does not beat the exact head: {compared}")


def adapter_lowers_perplexity(with_adapter: float, backbone: float, rows: int) -> Verdict:
    """A language adapter serves only where its held-out perplexity beats that of the frozen backbone."""
    compared = f"perplexity {with_adapter:.2f} with it, {backbone:.2f} by the backbone alone, {rows} held-out documents"
    if rows == 0:
        return Verdict(False, "no held-out document to judge the adapter on")
    if with_adapter < backbone:
        return Verdict(True, f"earns its place: {compared}")
    return Verdict(False, f"does not beat the backbone: {compared}")


CHANCE = 0.1
"""More rows lost than won are beyond chance where tossing a coin for each of them gives as much less often than this
(one-sided sign test)."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Of the held-out rows of a batch between the champion and a candidate."""

    rows: int = 0
    lost: int = 0
    """Right before and wrong now, where only labels that the champion knows may be answered: what was forgotten."""
    won: int = 0
    to_new: int = 0
    """Right among those labels and wrong among all: who knows more labels has more to confuse."""
    newly_right: int = 0
    """Right, of labels that the champion does not know."""

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def version_clears_gates(
    candidate: Accuracies, champion: Accuracies, accuracy_drop: float, forgetting: float
) -> Verdict:
    """Compare on the held-out rows of the batches that the champion was measured on.

    `accuracy_drop` bounds the loss over all their rows, `forgetting` the mean loss per batch. One lost row passes both:
    where rows are few, a champion that was lucky with one of them would never be succeeded. A batch whose held-out rows
    a deletion took says nothing.
    """
    shared = [batch for batch, (_, rows) in champion.items() if rows and batch in candidate]
    if not shared:
        return Verdict(True, "there was no measured champion to compare with")
    rows = sum(champion[b][1] for b in shared)
    drop = sum((champion[b][0] - candidate[b][0]) * champion[b][1] for b in shared) / rows
    lost = sum(max(0.0, champion[b][0] - candidate[b][0]) for b in shared) / len(shared)
    most_drop = max(accuracy_drop, 1 / rows)
    most_lost = max(forgetting, 1 / min(champion[b][1] for b in shared) / len(shared))
    compared = f"accuracy {0.0 - drop:+.3f} (gate -{most_drop:.3g}), forgetting {lost:.3f} (gate {most_lost:.3g})"
    passed = drop <= most_drop + ROUNDING and lost <= most_lost + ROUNDING
    return Verdict(passed, f"{compared} over {rows} held-out rows of {len(shared)} batches")


def loss_is_chance(
    changes: Mapping[str, Changes], champions: Collection[str], accuracy_drop: float, forgetting: float
) -> Verdict:
    """A second look, row by row, at a version whose accuracies fell on the champion's batches.

    It passes unless the rows lost there break a gate's bound beyond chance, or new labels take more rows there than
    they answer right anywhere. Where rows are few, chance moves an accuracy further than any sensible bound. What was
    learned of the batches since makes up for lost rows: where a label has changed its meaning, what it meant is lost.
    """
    measured = [changes[batch] for batch in champions if batch in changes]
    total, gained = sum(measured, Changes()), sum(each.newly_right for each in changes.values())
    learned = _learned_since([each for batch, each in changes.items() if batch not in champions])
    drop = (total.lost - total.won) / max(total.rows, 1)
    worse = [each for each in measured if _beyond_chance(each.lost, each.won)]
    forgot = sum((each.lost - each.won) / each.rows for each in worse) / max(len(measured), 1)
    forgotten = sum(worse, Changes())
    found = {
        "accuracy falls beyond chance": drop > accuracy_drop + ROUNDING
        and _beyond_chance(total.lost, total.won + learned),
        "batches are forgotten beyond chance": forgot > forgetting + ROUNDING
        and _beyond_chance(forgotten.lost, forgotten.won + learned),
        "new labels take more than they give": _beyond_chance(total.to_new, gained),
    }
    told = f"row by row {total.lost} lost and {total.won} won of {total.rows}"
    if total.to_new or gained:
        told += f" among the labels known before, {total.to_new} lost to new labels that answer {gained} right"
    if learned:
        told += f", {learned} more right in the batches since"
    refusals = ", ".join(reason for reason, broken in found.items() if broken)
    return Verdict(not refusals, f"{told}: {refusals or 'no more than chance'}")


def _learned_since(newer: Sequence[Changes]) -> int:
    """Rows won of known labels, but for the batch with the most: a single one may be labelled wrongly throughout."""
    won = [each.won - each.lost for each in newer]
    return max(0, sum(won) - max(won, default=0))


def _beyond_chance(lost: int, won: int) -> bool:
    """As many heads of so many coins as there are rows lost are as likely as so many tails."""
    return binomial_tail(won, lost + won, 0.5) < CHANCE


def merge_is_kept(before: Accuracies, after: Accuracies, merge_drop: float) -> Verdict:
    """Keep a merge when no parent's held-out accuracy falls by more than `merge_drop`. Keys are the parents."""
    worst = max(before, key=lambda parent: (before[parent][0] - after[parent][0], parent))
    loss = before[worst][0] - after[worst][0]
    figures = ", ".join(f"{p}: {before[p][0]:.3f} -> {after[p][0]:.3f} ({before[p][1]} rows)" for p in sorted(before))
    return Verdict(loss <= merge_drop + ROUNDING, f"{figures}; largest loss {loss:.3f} (gate {merge_drop:g})")
