"""What a report compares adapters with: a frozen probe, one adapter fine-tuned in sequence, one trained jointly."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from registry.records import Shard
from registry.stream import Stream
from tasks.backbones import adapter_spec, cut_of, open_backbone
from tasks.identity import seed_of
from tasks.learning.features import features, late_view
from tasks.learning.training import TrainState, train_slice
from tasks.narration import say
from tasks.prefix_cache import states_of
from tasks.retries import step
from tasks.rows import Row, held_out, trainable
from tasks.shards import load_rows
from tasks.training import recipe_of

PROBE_STEPS, PROBE_DECAY = 60, 1e-3


@step("baselines-{stream.name}")
def measure_baselines(stream: Stream, shards: Sequence[Shard]) -> dict[str, float]:
    """Accuracy on all held-out rows after the last batch. The same adapter, recipe and epochs as the stream's own."""
    rows = [load_rows(shard) for shard in shards]
    test = [row for members in rows for row in held_out(members)]
    parts = [trainable(members) for members in rows]
    everything = [row for part in parts for row in part]
    sequential: TrainState | None = None
    for part in parts:
        sequential = _train(stream, part, sequential)
    joint = _train(stream, everything, None)
    assert sequential is not None
    return {
        "frozen_probe": _probe(stream, everything, test),
        "sequential_finetuning": _accuracy(stream, sequential, test),
        "joint": _accuracy(stream, joint, test),
    }


def _train(stream: Stream, rows: Sequence[Row], start: TrainState | None) -> TrainState:
    backbone = open_backbone(stream)
    say(f"  baseline: training on {len(rows)} rows", progress=True)
    seed = seed_of("baseline", stream.name, len(rows))
    labels, cut = [row.label or "" for row in rows], cut_of(stream, backbone)
    return train_slice(
        backbone, states_of(stream, rows), labels, cut, adapter_spec(stream), recipe_of(stream), seed, start
    )


def _accuracy(stream: Stream, state: TrainState, rows: Sequence[Row]) -> float:
    logits_NC = functional.linear(late_view(_features(stream, rows, state)), state.head["weight"], state.head["bias"])
    return _share_right(logits_NC, state.labels, rows)


def _features(stream: Stream, rows: Sequence[Row], state: TrainState | None) -> Tensor:
    backbone = open_backbone(stream)
    weights = None if state is None else state.adapter
    return features(backbone, states_of(stream, rows), cut_of(stream, backbone), weights)


def _probe(stream: Stream, rows: Sequence[Row], test: Sequence[Row]) -> float:
    """Logistic regression on the frozen features, by L-BFGS."""
    labels = tuple(sorted({row.label or "" for row in rows}))
    targets_N = torch.tensor([labels.index(row.label or "") for row in rows])
    features_NF = _features(stream, rows, None)
    weight_CF = torch.zeros(len(labels), features_NF.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_CF], max_iter=PROBE_STEPS)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(features_NF @ weight_CF.T, targets_N) + PROBE_DECAY * weight_CF.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return _share_right(_features(stream, test, None) @ weight_CF.detach().T, labels, test)


def _share_right(logits_NC: Tensor, labels: Sequence[str], rows: Sequence[Row]) -> float:
    answers = [labels[i] for i in logits_NC.argmax(1).tolist()]
    right = [answer == row.label for answer, row in zip(answers, rows, strict=True)]
    return sum(right) / len(right)
