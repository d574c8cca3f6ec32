"""The form in which an adapter is stored and serves: the smallest that the stream allows and the gate lets pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from registry import artifacts
from registry.records import Adapter
from registry.stream import Stream
from tasks import blobs
from tasks.backbones import cut_of, open_backbone
from tasks.learning.adapters import AdapterWeights, nested_ranks, truncate
from tasks.learning.compression import PRECISIONS, compress, decompress, num_units
from tasks.learning.features import features
from tasks.learning.heads import class_statistics, head_scores, solve_head
from tasks.learning.pruning import head_gradients, magnitude, prune, snip
from tasks.narration import say
from tasks.policies.compression import form_holds
from tasks.rows import Row, held_out, trainable

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """What is stored, what serves, and how it was chosen."""

    stored: Tensors
    weights: AdapterWeights
    note: dict[str, Any]


def load_weights(adapter: Adapter) -> AdapterWeights:
    """The weights that serve, from the form in which they are stored."""
    return decompress(blobs.load_tensors(adapter.node, "weights"))


def as_stored(weights: AdapterWeights, adapter: Adapter, served: AdapterWeights) -> Tensors:
    """Weights as they were trained, in the form that was chosen for this adapter; pruned where `served` is."""
    form = adapter.recipe.get("form", {"precision": "fp32", "rank": num_units(weights)})
    cut = truncate(weights, form["rank"])
    if pruned := "prune" in form:
        cut = {name: tensor * (served[name] != 0) if tensor.dim() > 1 else tensor for name, tensor in cut.items()}
    return compress(cut, form["precision"], pruned)


def choose_form(stream: Stream, weights: AdapterWeights, own: Callable[[], Sequence[tuple[Row, Tensor]]]) -> Form:
    """The smallest form that loses no more than `gates.form_drop` on the adapter's own held-out rows.

    It follows from weights and rows alone, as they stand: a deletion chooses again, and chooses what a stream without
    the records would have. Where the stream asks for no smaller form, nothing is measured. `own` gives the adapter's
    rows and their states at the cut, by shard.
    """
    whole = Form(weights, weights, {"precision": "fp32", "rank": num_units(weights)})
    if not stream.adapter.chooses_form:
        return whole
    pairs = own()
    rows, states = [row for row, _ in pairs], [state for _, state in pairs]
    scores = _saliency(stream, weights, rows, states)
    candidates = sorted(_smaller_forms(stream, weights, scores), key=lambda form: size_of(form.stored))
    size, best = size_of(weights), _accuracy(stream, weights, rows, states)
    for form in [*candidates, whole]:
        accuracy = _accuracy(stream, form.weights, rows, states) if form is not whole else best
        verdict = form_holds(accuracy, best, len(held_out(rows)), stream.gates.form_drop)
        figures = {"bytes": size_of(form.stored), "bytes_whole": size, "accuracy": accuracy, "accuracy_whole": best}
        say(f"  {named(form.note)}, {figures['bytes']} bytes: {verdict.reason}")
        if verdict.passed:
            return Form(form.stored, form.weights, {**form.note, **figures, "reason": verdict.reason})
    raise AssertionError("the whole is as good as itself")


def named(note: Mapping[str, Any]) -> str:
    """A form in words."""
    pruned = f", {note['sparsity']:.0%} pruned by {note['prune']}" if "prune" in note else ""
    return f"{note['precision']}, rank {note['rank']}{pruned}"


def _smaller_forms(stream: Stream, weights: AdapterWeights, scores: Tensors | None) -> Iterator[Form]:
    """Every smaller rank at the precision that was asked for, then every larger precision at the whole rank; with and
    without the pruning that was asked for.

    Ranks are tried where the units are those of a nested training: laid side by side by `cat` they are not.
    """
    rank, options = num_units(weights), stream.adapter
    nested = nested_ranks(rank)[:-1] if options.ranks == "nested" and rank == options.rank else []
    whole = [(rank, p) for p in PRECISIONS[PRECISIONS.index(options.precision) :]]
    for units, precision in [*((r, options.precision) for r in nested), *whole]:
        note = {"precision": precision, "rank": units}
        if (units, precision) != (rank, "fp32"):
            yield _form(truncate(weights, units), note)
        if scores is not None:
            left = prune(truncate(weights, units), truncate(scores, units), options.sparsity)
            yield _form(left, {**note, "prune": options.prune, "sparsity": options.sparsity})


def _form(weights: AdapterWeights, note: dict[str, Any]) -> Form:
    stored = compress(weights, note["precision"], "prune" in note)
    return Form(stored, decompress(stored), note)


def _saliency(stream: Stream, weights: AdapterWeights, rows: Sequence[Row], states: Sequence[Tensor]) -> Tensors | None:
    """Scores of the trained weights, from the rows that trained them; None where nothing is pruned."""
    if stream.adapter.prune == "none":
        return None
    if stream.adapter.prune == "magnitude":
        return magnitude(weights)
    backbone, own = open_backbone(stream), [n for n, row in enumerate(rows) if trainable([row])]
    labels = [rows[n].label or "" for n in own]
    return snip(weights, head_gradients(backbone, [states[n] for n in own], labels, cut_of(stream, backbone), weights))


def size_of(stored: Tensors) -> int:
    """Bytes of the blob."""
    return len(artifacts.encode_tensors(stored))


def _accuracy(stream: Stream, weights: AdapterWeights, rows: Sequence[Row], states: Sequence[Tensor]) -> float:
    """On the held-out rows, by the head solved from the others under these weights."""
    backbone = open_backbone(stream)
    features_NF = features(backbone, states, cut_of(stream, backbone), weights)
    train, test = ([n for n, row in enumerate(rows) if chosen([row])] for chosen in (trainable, held_out))
    head = solve_head([class_statistics(features_NF[train], [rows[n].label or "" for n in train])])
    answers = [head.labels[n] for n in head_scores(head, features_NF[test]).argmax(1).tolist()]
    correct: int = sum(answer == rows[n].label for answer, n in zip(answers, test, strict=True))
    return correct / max(len(test), 1)
