"""Approximate unlearning of one adapter: suppresses what it shows of some records, and proves nothing (guarantee A).

Shapes: B rows of a minibatch, C classes, D width, R rank. Published sources: NPO (arXiv 2404.05868) with a KL term on
retained rows, and the repulsion of Adapt-then-Unlearn (arXiv 2309.14054), here between the updates that adapters make
rather than between their factors.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.adapters import AdapterSpec, AdapterWeights, adapter_blocks, deltas_of
from tasks.learning.backbones import Backbone
from tasks.learning.features import late_view, training_features
from tasks.learning.tensors import require_finite
from tasks.learning.training import Recipe, TrainState, train_slice

BETA = 0.1
"""Of NPO: the smaller, the closer to plain gradient ascent."""


@dataclass(frozen=True)
class Rows:
    """Encoded rows with their labels."""

    states: Sequence[Tensor]
    labels: Sequence[str]


@dataclass(frozen=True, slots=True)
class Suppression:
    """How hard to push. One of `npo` and `repulsion` may be 0; the KL term on retained rows always counts 1."""

    steps: int = 40
    learning_rate: float = 2e-3
    npo: float = 1.0
    repulsion: float = 1.0
    minibatch: int = 16


def suppress(
    backbone: Backbone, start: TrainState, forget: Rows, retain: Rows, cut: int, spec: AdapterSpec, how: Suppression
) -> TrainState:
    """A state that answers for `forget` less surely and for `retain` as before. Raises NonFiniteError on divergence."""
    negative = _negative(backbone, start, forget, cut, spec) if how.repulsion else None
    weights = {name: t.detach().clone().requires_grad_() for name, t in start.adapter.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=how.learning_rate, weight_decay=0.0)
    for step in range(how.steps):
        seen = _minibatch(forget, how.minibatch, step)
        kept = _minibatch(retain, how.minibatch, step)
        loss = _kl(backbone, start, weights, kept, cut)
        if how.npo:
            loss = loss + how.npo * npo_loss(
                _nll(backbone, start, weights, seen, cut), _nll(backbone, start, start.adapter, seen, cut)
            )
        if negative is not None:
            loss = loss + how.repulsion * repulsion(weights, start.adapter, negative)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        require_finite("unlearning loss", loss.detach())
    return replace(start, adapter={name: t.detach() for name, t in weights.items()}, optimizer={})


def npo_loss(nll_B: Tensor, reference_B: Tensor) -> Tensor:
    """2/beta E[-log sigmoid(beta (NLL - NLL_ref))]: falls as the rows become less likely than before, and flattens."""
    return -functional.logsigmoid(BETA * (nll_B - reference_B.detach())).mean() * 2 / BETA


def repulsion(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> Tensor:
    """exp(-|update - negative update|²), in units of how far the negative adapter went: 1/e where nothing moved."""
    distance, scale = torch.zeros(()), torch.zeros(())
    for block in adapter_blocks(start):
        distance = distance + (_product(weights, block) - _product(negative, block)).square().sum()
        scale = scale + (_product(start, block) - _product(negative, block)).square().sum()
    return torch.exp(-distance / scale.clamp_min(1e-12))


def relearn(backbone: Backbone, state: TrainState, rows: Rows, cut: int, spec: AdapterSpec, epochs: int) -> TrainState:
    """The stress test: how soon a little of the forgotten data brings the rest back."""
    fresh = replace(state, epoch=epochs, optimizer={})
    return train_slice(backbone, rows.states, rows.labels, cut, spec, Recipe(epochs=epochs), seed=1, start=fresh)


def quantise(weights: AdapterWeights, bits: int) -> AdapterWeights:
    """Weights as they would be served: symmetric, a scale per row; one bit keeps signs and the mean magnitude."""
    return {name: _quantise(t, bits) if t.dim() == 2 else t for name, t in weights.items()}


def _quantise(weight: Tensor, bits: int) -> Tensor:
    if bits == 1:
        return weight.sign() * weight.abs().mean(1, keepdim=True)
    top = 2 ** (bits - 1) - 1
    scale = (weight.abs().amax(1, keepdim=True) / top).clamp_min(1e-12)
    return (weight / scale).round().clamp(-top, top) * scale


def _negative(backbone: Backbone, start: TrainState, forget: Rows, cut: int, spec: AdapterSpec) -> AdapterWeights:
    """The adapter trained on, on the forgotten rows alone. It is a concentrated copy of them: never store it."""
    return relearn(backbone, start, forget, cut, spec, epochs=2).adapter


def _product(weights: Mapping[str, Tensor], block: int) -> Tensor:
    """(D, D): what a block's adapter does to its input, apart from the nonlinearity."""
    return weights[f"blocks.{block}.up.weight"] @ weights[f"blocks.{block}.down.weight"]


def _logits(backbone: Backbone, state: TrainState, weights: Mapping[str, Tensor], rows: Rows, cut: int) -> Tensor:
    features_BF = training_features(backbone, rows.states, cut, deltas_of(dict(weights), backbone.device))
    head = {name: t.to(features_BF.device) for name, t in state.head.items()}
    return functional.linear(late_view(features_BF), head["weight"], head["bias"])


def _nll(backbone: Backbone, state: TrainState, weights: Mapping[str, Tensor], rows: Rows, cut: int) -> Tensor:
    targets_B = torch.tensor([state.labels.index(label) for label in rows.labels], device=backbone.device)
    return functional.cross_entropy(_logits(backbone, state, weights, rows, cut), targets_B, reduction="none")


def _kl(backbone: Backbone, state: TrainState, weights: Mapping[str, Tensor], rows: Rows, cut: int) -> Tensor:
    with torch.no_grad():
        before_BC = functional.log_softmax(_logits(backbone, state, state.adapter, rows, cut), 1)
    now_BC = functional.log_softmax(_logits(backbone, state, weights, rows, cut), 1)
    return functional.kl_div(now_BC, before_BC, log_target=True, reduction="batchmean")


def log_likelihoods(backbone: Backbone, state: TrainState, rows: Rows, cut: int, size: int = 64) -> Tensor:
    """(N,) log probability of each row's own label under the state's head."""
    parts = [Rows(s, names) for s, names in _chunks(rows, size)]
    with torch.no_grad():
        return torch.cat([-_nll(backbone, state, state.adapter, part, cut) for part in parts])


def accuracy(backbone: Backbone, state: TrainState, rows: Rows, cut: int, size: int = 64) -> float:
    """Share of rows that the state's head answers rightly."""
    right = 0
    with torch.no_grad():
        for states, labels in _chunks(rows, size):
            answers = _logits(backbone, state, state.adapter, Rows(states, labels), cut).argmax(1).tolist()
            right += sum(state.labels[answer] == label for answer, label in zip(answers, labels, strict=True))
    return right / max(len(rows.labels), 1)


def _chunks(rows: Rows, size: int) -> Iterator[tuple[Sequence[Tensor], Sequence[str]]]:
    return ((rows.states[n : n + size], rows.labels[n : n + size]) for n in range(0, len(rows.labels), size))


def _minibatch(rows: Rows, size: int, step: int) -> Rows:
    order = torch.randperm(len(rows.labels), generator=torch.Generator().manual_seed(step)).tolist()[:size]
    return Rows([rows.states[n] for n in order], [rows.labels[n] for n in order])
