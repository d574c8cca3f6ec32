"""The approximate way: push an adapter off the records instead of training it again. An interim, labelled A.

It proves nothing, so nothing here is pardoned or compared: the ticket stays an exception until its adapters are trained
again. The negative adapter that the push needs, a concentrated copy of the records, never leaves memory.
"""

from collections.abc import Sequence
from typing import Any

from registry.records import Adapter, Ticket
from registry.sections import TaskType
from registry.stream import Stream
from tasks import blobs
from tasks.adapters import fit_closed_forms, load_in_order
from tasks.backbones import adapter_spec, cut_of, open_backbone, open_language
from tasks.forms import as_stored, load_weights
from tasks.held_back import load_held
from tasks.language import documents_of
from tasks.learning.language.lora import AdaptedModel
from tasks.learning.language.scoring import TokenScores, perplexity, score_tokens
from tasks.learning.language.training import Documents
from tasks.learning.language.unlearning import suppress_documents
from tasks.learning.tensors import digest_of
from tasks.learning.training import TrainState
from tasks.learning.unlearning import Rows, Suppression, accuracy, log_likelihoods, quantise, relearn, suppress
from tasks.narration import say
from tasks.prefix_cache import states_of
from tasks.rows import Row, held_out, trainable
from tasks.shards import load_rows

Report = dict[str, Any]

RELEARNED_EPOCHS = 3
LOW_BITS = (8, 4, 1)


def suppress_adapter(stream: Stream, adapter: Adapter, together: Sequence[Ticket]) -> Report | None:
    """Store suppressed weights and what hangs on them; returns what it cost and what it leaves. None where it cannot be
    done (nothing held back, no checkpoint, no row that stays, or a mixture, whose later adapters were trained on what
    the records had made of the earlier ones): train the adapter again."""
    if adapter.is_mixture:
        return None
    work = _suppress_documents if stream.task == TaskType.LANGUAGE else _suppress_rows
    report = work(stream, adapter, together)
    if report is not None:
        say(f"  suppressed {adapter.adapter_id} (A, not deleted): {report}")
    return report


def _suppress_rows(stream: Stream, adapter: Adapter, together: Sequence[Ticket]) -> Report | None:
    forget = _held(together, adapter)
    rows = [row for shard in load_in_order(adapter.shard_ids) for row in load_rows(shard)]
    retain, tests = _encoded(stream, trainable(rows)), _encoded(stream, held_out(rows))
    start = _last_state(adapter)
    if start is None or len(forget.labels) < 2 or not retain.labels:
        return None
    backbone = open_backbone(stream)
    left = suppress(backbone, start, forget, retain, cut_of(stream, backbone), adapter_spec(stream), Suppression())
    fit_closed_forms(stream, adapter, left.adapter)
    return _report(stream, start, left, forget, tests)


def _suppress_documents(stream: Stream, adapter: Adapter, together: Sequence[Ticket]) -> Report | None:
    held = [load_held(ticket.ticket_id)[0].of_shards(adapter.shard_ids) for ticket in together]
    backbone, spec = open_language(stream), adapter_spec(stream)
    forget = Documents(
        [backbone.document(text.decode()) for each in held for text in each.inputs],
        [state for each in held for state in each.states],
    )
    rows = [row for shard in load_in_order(adapter.shard_ids) for row in load_rows(shard)]
    retain, tests = (documents_of(stream, r, states_of(stream, r)) for r in (trainable(rows), held_out(rows)))
    start, cut = _last_state(adapter), cut_of(stream, backbone)
    if start is None or not forget.tokens or not retain.tokens:
        return None
    left = suppress_documents(backbone, start, forget, retain, cut, spec, Suppression())
    fit_closed_forms(stream, adapter, left.adapter)
    stressed = {f"int{bits}": quantise(left.adapter, bits) for bits in LOW_BITS}
    adapters = {"before": start.adapter, "after": left.adapter, **stressed}
    model = AdaptedModel(backbone, spec, cut)
    for name, weights in adapters.items():
        model.load(name, weights)

    def scores(documents: Documents, name: str) -> list[TokenScores]:
        return score_tokens(model, documents, [{name: 1.0}] * len(documents.tokens))

    return {
        "records": len(forget.tokens),
        "held_out_perplexity": {name: round(perplexity(scores(tests, name)), 2) for name in ("before", "after")},
        "perplexity_of_records": {name: round(perplexity(scores(forget, name)), 2) for name in adapters},
        "served_precision": "float32",
    }


def _report(stream: Stream, start: TrainState, left: TrainState, forget: Rows, tests: Rows) -> Report:
    """Utility, and how much of the records comes back: by relearning half of them, and at lower precision.

    Log likelihoods are means; served are float32 weights."""
    backbone, spec = open_backbone(stream), adapter_spec(stream)
    cut, half = cut_of(stream, backbone), len(forget.labels) // 2
    part, other = Rows(forget.states[:half], forget.labels[:half]), Rows(forget.states[half:], forget.labels[half:])

    def known(state: TrainState, rows: Rows) -> float:
        return round(float(log_likelihoods(backbone, state, rows, cut).mean()), 4)

    relearned = relearn(backbone, left, part, cut, spec, RELEARNED_EPOCHS)
    stressed = {f"int{bits}": _at(left, bits) for bits in LOW_BITS}
    seen = [name for name, label in enumerate(tests.labels) if label in start.labels]
    tests = Rows([tests.states[n] for n in seen], [tests.labels[n] for n in seen])
    return {
        "records": len(forget.labels),
        "held_out_accuracy": {
            "before": accuracy(backbone, start, tests, cut),
            "after": accuracy(backbone, left, tests, cut),
        },
        "log_likelihood_of_records": {
            "before": known(start, forget),
            "after": known(left, forget),
            **{name: known(state, forget) for name, state in stressed.items()},
        },
        "log_likelihood_of_half": {
            "before": known(start, other),
            "after": known(left, other),
            "after_relearning_the_other_half": known(relearned, other),
        },
        "served_precision": "float32",
    }


def _at(state: TrainState, bits: int) -> TrainState:
    return TrainState(quantise(state.adapter, bits), state.head, state.labels, {}, state.epoch)


def _held(together: Sequence[Ticket], adapter: Adapter) -> Rows:
    held = [load_held(ticket.ticket_id)[0].of_shards(adapter.shard_ids) for ticket in together]
    return Rows([state for each in held for state in each.states], [label for each in held for label in each.labels])


def _encoded(stream: Stream, rows: Sequence[Row]) -> Rows:
    return Rows(states_of(stream, rows), [row.label or "" for row in rows])


def _last_state(adapter: Adapter) -> TrainState | None:
    """The checkpoint that the adapter's weights were taken from: it holds the head that they were trained with."""
    weights, served = digest_of(blobs.load_tensors(adapter.node, "weights")), load_weights(adapter)
    for stored in blobs.of_owner(adapter.node):
        if stored.kind.startswith("checkpoint:"):
            state = TrainState.from_tensors(blobs.read_tensors(stored.key, stored.sha256))
            if digest_of(as_stored(state.adapter, adapter, served)) == weights:
                return state
    return None
