"""Fine-tuning baselines: the same adapter trained in sequence, or on all data at once."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from benchmarks.continual_stream import Run
from tasks.learning.adapters import AdapterSpec
from tasks.learning.features import features, late_view
from tasks.learning.training import Recipe, TrainState, train_slice


def run_sequential(run: Run, spec: AdapterSpec, recipe: Recipe) -> None:
    """One adapter and head trained on every batch in turn, from where the last one left them."""
    state: TrainState | None = None
    for number, batch in enumerate(run.batches):
        states = run.train_states(number)
        with run.meter.measure("train"):
            state = train_slice(run.backbone, states, batch.train_labels, run.cut, spec, recipe, run.seed, state)
        _evaluate(run, state, number)
        run.nothing_decided()
    _count(run, state)


def run_joint(run: Run, spec: AdapterSpec, recipe: Recipe) -> None:
    """One adapter and head trained on all batches together; every row of the matrix is that one model's."""
    states: list[Tensor] = []
    labels: list[str] = []
    for number, batch in enumerate(run.batches):
        states += run.train_states(number)
        run.nothing_decided()
        labels += batch.train_labels
    with run.meter.measure("train"):
        state = train_slice(run.backbone, states, labels, run.cut, spec, recipe, run.seed)
    _evaluate(run, state, len(run.batches) - 1)
    run.matrix = [run.matrix[0][: number + 1] for number in range(len(run.batches))]
    _count(run, state)


def _evaluate(run: Run, state: TrainState, number: int) -> None:
    tests = run.test_states(number)
    with run.meter.measure("inference"):
        run.record([_labels(run, state, rows) for rows in tests])


def _labels(run: Run, state: TrainState, rows: Sequence[Tensor]) -> list[str]:
    features_NF = late_view(features(run.backbone, rows, run.cut, state.adapter))
    logits_NC = functional.linear(features_NF, state.head["weight"], state.head["bias"])
    return [state.labels[i] for i in logits_NC.argmax(1).tolist()]


def _count(run: Run, state: TrainState | None) -> None:
    assert state is not None
    run.adapters_by_layer = {str(block): 1 for block in range(run.cut, run.backbone.num_blocks)}
    run.trainable_parameters = sum(t.numel() for t in (*state.adapter.values(), *state.head.values()))
