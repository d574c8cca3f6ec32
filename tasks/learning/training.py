"""Train one adapter on one slice of its shard, resumable, and the same bytes every time.

Shapes: N records, B rows of a minibatch, T tokens, D width, F features, C classes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.adapters import (
    AdapterSpec,
    AdapterWeights,
    deltas_of,
    is_outwards,
    nested_ranks,
    new_adapter,
    truncate,
)
from tasks.learning.backbones import Backbone
from tasks.learning.features import Start, late_view, num_states, training_features, training_features_from
from tasks.learning.tensors import require_finite, tensor_to_labels, text_to_tensor


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter trains; `optimizer` is "adamw" or "sgd" (momentum 0.9); rates fall to zero along a cosine.

    With `nested` every minibatch trains the first units alone, as many as a rank drawn for it, so that the adapter can
    be cut to any of `nested_ranks` afterwards (DyLoRA: Valipour et al., EACL 2023).
    """

    epochs: int = 2
    learning_rate: float = 5e-3
    head_learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    minibatch: int = 8
    optimizer: str = "adamw"
    nested: bool = False


@dataclass(frozen=True)
class TrainState:
    """All that training continues from. `epoch` counts the finished epochs of the current slice.

    `head` scores the slice's own classes while the adapter trains; the serving head is solved from statistics instead.
    """

    adapter: AdapterWeights
    head: dict[str, Tensor]
    labels: tuple[str, ...]
    optimizer: dict[str, Tensor]
    epoch: int

    def to_tensors(self) -> dict[str, Tensor]:
        groups = {"adapter": self.adapter, "head": self.head, "optimizer": self.optimizer}
        flat = {f"{group}/{name}": t.contiguous() for group, named in groups.items() for name, t in named.items()}
        return {**flat, "labels": text_to_tensor(self.labels), "epoch": torch.tensor(self.epoch)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "TrainState":
        def group(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}

        labels = tensor_to_labels(tensors["labels"])
        return cls(group("adapter"), group("head"), labels, group("optimizer"), int(tensors["epoch"]))


LossOf = Callable[[Sequence[int]], Tensor]
Backward = Callable[[LossOf, Sequence[int], Mapping[str, Tensor]], Tensor]
"""(mean loss of rows, rows of a minibatch, weights) -> the minibatch's loss, its gradients left in the weights."""


def alone(loss_of: LossOf, chosen: Sequence[int], _weights: Mapping[str, Tensor]) -> Tensor:
    """The whole minibatch in this process: what every guarantee of equal bytes is about."""
    loss = loss_of(chosen)
    loss.backward()
    return loss.detach()


def train_slice(
    backbone: Backbone,
    states: Sequence[Tensor] | Sequence[Start],
    labels: Sequence[str],
    cut: int,
    spec: AdapterSpec,
    recipe: Recipe,
    seed: int,
    start: TrainState | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    on_state: Callable[[TrainState], None] | None = None,
    backward: Backward = alone,
) -> TrainState:
    """Train for the recipe's epochs from the frozen backbone, or on from `start`.

    `states` enter block `cut`; where a frozen pass has left its starts behind, they save that block every time.
    A `start` whose slice is unfinished (0 < epoch < epochs) resumes it exactly: the order of the rows comes from the
    seed and the epoch, never from what ran before. A finished one begins the next slice with a fresh optimiser.
    `on_epoch` gets the epoch and its mean loss, `on_state` a state to store; `backward` is for several processes
    (`data_parallel`). Raises NonFiniteError on divergence.
    """
    resuming = start is not None and 0 < start.epoch < recipe.epochs
    state = start if start is not None and resuming else _begin(backbone, spec, labels, seed, start)
    named = {f"adapter/{n}": t for n, t in state.adapter.items()} | {f"head/{n}": t for n, t in state.head.items()}
    weights = {n: t.detach().clone().to(backbone.device).requires_grad_() for n, t in named.items()}
    optimizer = make_optimizer(weights, recipe)
    load_moments(optimizer, weights, state.optimizer)
    targets_N = torch.tensor([state.labels.index(label) for label in labels])
    for epoch in range(state.epoch, recipe.epochs):
        loss = _run_epoch(backbone, states, targets_N, cut, weights, optimizer, recipe, seed, epoch, backward)
        state = snapshot(weights, optimizer, state.labels, epoch + 1)
        if on_epoch is not None:
            on_epoch(epoch, loss)
        if on_state is not None:
            on_state(state)
    return state


def _begin(
    backbone: Backbone, spec: AdapterSpec, labels: Sequence[str], seed: int, start: TrainState | None
) -> TrainState:
    """The state before the first step of a slice: known classes keep their head rows, new ones get zeros."""
    names = tuple(sorted(set(labels) | set(start.labels if start else ())))
    width = backbone.width * num_states(spec.last_layers)
    head = {"weight": torch.zeros(len(names), width), "bias": torch.zeros(len(names))}
    for place, label in enumerate(start.labels if start else ()):
        assert start is not None
        head["weight"][names.index(label)] = start.head["weight"][place]
        head["bias"][names.index(label)] = start.head["bias"][place]
    adapter = start.adapter if start is not None else new_adapter(backbone, spec, seed)
    return TrainState(adapter, head, names, {}, 0)


def _run_epoch(
    backbone: Backbone,
    states: Sequence[Tensor] | Sequence[Start],
    targets_N: Tensor,
    cut: int,
    weights: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    seed: int,
    epoch: int,
    backward: Backward,
) -> float:
    def loss_of(rank: int | None, rows: Sequence[int]) -> Tensor:
        logits_BC = _logits(backbone, [states[i] for i in rows], cut, weights, rank)
        return functional.cross_entropy(logits_BC.float(), targets_N[rows].to(logits_BC.device))

    steps = math.ceil(len(states) / recipe.minibatch)
    losses: list[float] = []
    ranks = _ranks_of(weights, steps, seed, epoch) if recipe.nested else [None] * steps
    for step, chosen in enumerate(minibatches_of(len(states), recipe.minibatch, seed, epoch)):
        anneal(optimizer, (epoch * steps + step) / (recipe.epochs * steps))
        optimizer.zero_grad()
        loss = backward(partial(loss_of, ranks[step]), chosen, weights)
        optimizer.step()
        losses.append(float(require_finite("training loss", loss)))
    return sum(losses) / len(losses)


def anneal(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Set the rates for this share of the training: a cosine from the initial ones to zero."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * 0.5 * (1 + math.cos(math.pi * progress))


def minibatches_of(count: int, size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Row numbers of an epoch in an order that seed and epoch alone decide."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(count, generator=generator).tolist()
    return (order[first : first + size] for first in range(0, count, size))


def _ranks_of(weights: Mapping[str, Tensor], steps: int, seed: int, epoch: int) -> list[int | None]:
    """The rank of each minibatch of an epoch, which seed and epoch alone decide."""
    ranks = nested_ranks(next(t.shape[1] for name, t in weights.items() if is_outwards(name)))
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch + 1) % 2**62)
    return [ranks[i] for i in torch.randint(len(ranks), (steps,), generator=generator).tolist()]


def _logits(
    backbone: Backbone,
    rows: Sequence[Tensor | Start],
    cut: int,
    weights: Mapping[str, Tensor],
    rank: int | None = None,
) -> Tensor:
    """(B, C): the training head on the late view of what the serving head sees, under the first `rank` units."""
    adapter = {name.removeprefix("adapter/"): t for name, t in weights.items() if name.startswith("adapter/")}
    adapter = adapter if rank is None else truncate(adapter, rank)
    half = backbone.device.type == "cuda"
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=half):
        deltas, starts = deltas_of(adapter), [row for row in rows if isinstance(row, Start)]
        states = [row for row in rows if isinstance(row, Tensor)]
        features_BF = (
            training_features_from(backbone, starts, cut, deltas)
            if starts
            else training_features(backbone, states, cut, deltas)
        )
        return functional.linear(late_view(features_BF), weights["head/weight"], weights["head/bias"])


def make_optimizer(weights: Mapping[str, Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Over tensors named adapter/.. and head/..; raises ValueError for an optimiser that is not known."""
    groups = [
        {"params": [t for n, t in weights.items() if n.startswith(prefix)], "lr": rate, "initial_lr": rate}
        for prefix, rate in (("adapter/", recipe.learning_rate), ("head/", recipe.head_learning_rate))
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=recipe.weight_decay)
    raise ValueError(f"optimizer {recipe.optimizer!r}: use 'adamw' or 'sgd'")


def load_moments(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Go on with the moments that a state was stored with."""
    for key, tensor in saved.items():
        name, kind = key.rsplit("|", 1)
        at = tensor.clone() if kind == "step" else tensor.clone().to(weights[name].device)
        optimizer.state[weights[name]][kind] = at


def snapshot(
    weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, labels: tuple[str, ...], epoch: int
) -> TrainState:
    """Copies on the CPU of all that training goes on from."""

    def group(prefix: str) -> dict[str, Tensor]:
        named = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    moments = {
        f"{name}|{kind}": torch.as_tensor(value).detach().cpu().clone()
        for name, tensor in weights.items()
        for kind, value in optimizer.state[tensor].items()
        if value is not None
    }
    return TrainState(group("adapter/"), group("head/"), labels, moments, epoch)
