"""Does a candidate clear the gates: an adapter to serve, a version to become champion, a merge to be kept."""

from collections.abc import Mapping

from registry.records import Verdict

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
        return Verdict(True, "there is no champion to compare with")
    rows = sum(champion[b][1] for b in shared)
    drop = sum((champion[b][0] - candidate[b][0]) * champion[b][1] for b in shared) / rows
    lost = sum(max(0.0, champion[b][0] - candidate[b][0]) for b in shared) / len(shared)
    most_drop = max(accuracy_drop, 1 / rows)
    most_lost = max(forgetting, 1 / min(champion[b][1] for b in shared) / len(shared))
    compared = f"accuracy {0.0 - drop:+.3f} (gate -{most_drop:.3g}), forgetting {lost:.3f} (gate {most_lost:.3g})"
    passed = drop <= most_drop + ROUNDING and lost <= most_lost + ROUNDING
    return Verdict(passed, f"{compared} over {rows} held-out rows of {len(shared)} batches")


def merge_is_kept(before: Accuracies, after: Accuracies, merge_drop: float) -> Verdict:
    """Keep a merge when no parent's held-out accuracy falls by more than `merge_drop`. Keys are the parents."""
    worst = max(before, key=lambda parent: (before[parent][0] - after[parent][0], parent))
    loss = before[worst][0] - after[worst][0]
    figures = ", ".join(f"{p}: {before[p][0]:.3f} -> {after[p][0]:.3f} ({before[p][1]} rows)" for p in sorted(before))
    return Verdict(loss <= merge_drop + ROUNDING, f"{figures}; largest loss {loss:.3f} (gate {merge_drop:g})")
