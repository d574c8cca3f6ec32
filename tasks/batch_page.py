"""The page of one batch in the Prefect UI, as Markdown: what came, shifted, was decided and why, and what it did."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from registry.records import Batch, Decision, ModelVersion, Verdict
from registry.sections import Composition
from registry.stream import Stream
from tasks.markdown import one_line, table_row

SHOWN = 12
"""Rows of a table: a stream grows for years, what a person can read does not."""

Cells = Mapping[str, tuple[float, float, int]]
"""Batch id -> (accuracy, accuracy of the exact head, held-out rows), in the order the batches came."""


@dataclass(frozen=True)
class Effect:
    """What a batch did to the model. Without a version it did nothing."""

    version: ModelVersion | None
    champion: int | None
    served: int | None
    """The champion that the version was held against."""
    before: Cells
    after: Cells
    names: Mapping[str, str]
    links: Sequence[str]


def batch_page(
    stream: Stream,
    batch: Batch,
    decisions: Sequence[Decision],
    promotion: Verdict | None,
    refused: Mapping[str, int],
    effect: Effect,
) -> str:
    """Ids and figures, no subject."""
    kinds = " + ".join(dict.fromkeys(decision.kind.value for decision in decisions))
    lines = [f"# {stream.name}: {one_line(batch.name)}: {kinds}", "", "| | |", "| --- | --- |"]
    summary = _summary(stream, batch, decisions, promotion, refused, effect)
    lines += [table_row((f"**{what}**", told)) for what, told in summary]
    for shard, decision in zip(batch.shards, decisions, strict=True):
        adapter = f" {decision.adapter_id}" if decision.adapter_id else ""
        lines += ["", f"## Group {shard.group}: {decision.kind.value}{adapter}", "", f"{decision.reason}.", ""]
        lines += [*_alternatives(decision), *_scores(decision)]
    return "\n".join([*lines, *_accuracies(effect), "", f"`deciduous describe {batch.batch_id}` tells all of it."])


def _summary(
    stream: Stream,
    batch: Batch,
    decisions: Sequence[Decision],
    promotion: Verdict | None,
    refused: Mapping[str, int],
    effect: Effect,
) -> Iterator[tuple[str, str]]:
    why = ", ".join(f"{count} × {reason}" for reason, count in sorted(refused.items()))
    groups = f" in {len(batch.shards)} groups" if len(batch.shards) > 1 else ""
    yield (
        "came",
        (
            f"{batch.rows} rows{groups}; {batch.quarantined} quarantined{f' ({why})' if why else ''}, "
            f"{batch.suppressed} suppressed"
        ),
    )
    yield "shifted", "; ".join(dict.fromkeys(_shifted(stream, decision) for decision in decisions))
    yield "decided", "; ".join(dict.fromkeys(f"{d.kind.value} {d.adapter_id or ''}".strip() for d in decisions))
    yield "accuracy", _before_and_after(effect)
    yield "serves", _serving(stream, promotion, effect)
    if effect.links:
        yield "see", " · ".join(effect.links)


def _shifted(stream: Stream, decision: Decision) -> str:
    """A mixture is asked layer by layer, with no p-value for the batch."""
    if decision.p_value is not None:
        return f"p = {decision.p_value:.3f} against alpha {stream.shift.alpha:g}"
    if stream.composition == Composition.MIX and decision.z_scores:
        layers = ", ".join(f"{min(z.values()):.2f} in layer {layer}" for layer, z in decision.z_scores.items())
        return f"z = {layers}, against mix.threshold {stream.mix.threshold:g}"
    return "no adapter to compare with"


def _before_and_after(effect: Effect) -> str:
    """On the rows that both versions were measured on: other rows would compare two questions."""
    if not effect.after:
        return "not measured: the model stays as it is"
    now = _mean(effect.after, effect.after)
    exact = _mean(effect.after, effect.after, which=1)
    both = [batch for batch in effect.after if batch in effect.before]
    overall = (
        f"{now:.3f} on all {sum(rows for _, _, rows in effect.after.values())} held-out rows (exact head {exact:.3f})"
    )
    if not both:
        return f"{overall}; nothing served before"
    before, after = _mean(effect.before, both), _mean(effect.after, both)
    return f"{before:.3f} → {after:.3f} on earlier batches (version {effect.served} before); {overall}"


def _mean(cells: Cells, batches: Sequence[str] | Cells, which: int = 0) -> float:
    rows = sum(cells[batch][2] for batch in batches)
    return sum(cells[batch][which] * cells[batch][2] for batch in batches) / rows if rows else 0.0


def _serving(stream: Stream, promotion: Verdict | None, effect: Effect) -> str:
    champion = f"version {effect.champion}" if effect.champion else "nothing yet"
    if promotion is None or effect.version is None:
        return champion
    mine = effect.version.version
    if promotion.passed:
        return f"{champion}: {promotion.reason}"
    return (
        f"{champion}; version {mine} waits as challenger: {promotion.reason}. By hand: "
        f"`deciduous promote {stream.name} {mine}`"
    )


def _alternatives(decision: Decision) -> Iterator[str]:
    known = {name: value for name, value in decision.alternatives.items() if value is not None}
    if known:
        yield f"Held-out accuracy of the alternatives: {', '.join(f'{n} {v:.3f}' for n, v in known.items())}."
        yield ""


def _scores(decision: Decision) -> Iterator[str]:
    """z-scores, a row per adapter, the closest first: mean deviation from what it has seen, layer by layer."""
    layers, closest = list(decision.z_scores), decision.closest()
    if not closest:
        return
    yield f"| z-score against | {' | '.join(f'layer {layer}' for layer in layers)} |"
    yield f"| --- |{' ---: |' * len(layers)}"
    for adapter in closest[:SHOWN]:
        cells = (decision.z_scores[layer].get(adapter) for layer in layers)
        yield f"| {adapter} | {' | '.join('' if z is None else f'{z:.2f}' for z in cells)} |"
    if len(closest) > SHOWN:
        yield f"| {len(closest) - SHOWN} more, further away |{' |' * len(layers)}"


def _accuracies(effect: Effect) -> Iterator[str]:
    if not effect.after:
        return
    last = list(effect.after)[-SHOWN:]
    earlier = [batch for batch in effect.after if batch not in last]
    yield from ("", "## Accuracy by batch", "", "| batch | before | after | exact head | held-out rows |")
    yield "| --- | ---: | ---: | ---: | ---: |"
    if earlier:
        known = [batch for batch in earlier if batch in effect.before]
        before = f"{_mean(effect.before, known):.3f}" if known else ""
        after, exact = (_mean(effect.after, earlier, which) for which in (0, 1))
        rows = sum(effect.after[batch][2] for batch in earlier)
        yield f"| {len(earlier)} earlier ones | {before} | {after:.3f} | {exact:.3f} | {rows} |"
    for batch in last:
        before = f"{effect.before[batch][0]:.3f}" if batch in effect.before else ""
        accuracy, exact, rows = effect.after[batch]
        measured = (f"{accuracy:.3f}", f"{exact:.3f}") if rows else ("", "")  # a deletion took the held-out rows
        yield table_row((effect.names[batch], before, *measured, rows))
