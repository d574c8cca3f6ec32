"""Train one LoRA adapter on one slice of its documents, resumable, and the same bytes every time.

Shapes: N documents, B packed rows, T tokens, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.adapters import AdapterSpec
from tasks.learning.language.backbones import Inputs, LanguageBackbone
from tasks.learning.language.lora import NAME, AdaptedModel, new_lora
from tasks.learning.language.packing import chunk, pack
from tasks.learning.tensors import require_finite
from tasks.learning.training import (
    Recipe,
    TrainState,
    anneal,
    load_moments,
    make_optimizer,
    minibatches_of,
    snapshot,
)

IGNORED = -100

PACKED_ROWS = 1
"""Contexts of a minibatch: a shard holds few, and steps are what small shards lack."""


@dataclass(frozen=True)
class Documents:
    """Token numbers of documents and their states entering the cut, (T, D) each."""

    tokens: Sequence[Sequence[int]]
    states: Sequence[Tensor]

    def parts(self, context: int) -> "Documents":
        """Each document in parts that fit the context, as the states were computed."""
        tokens = [part for ids in self.tokens for part in chunk(ids, context)]
        states = [part_TD for state_TD in self.states for part_TD in state_TD.split(context)]
        return Documents(tokens, states)

    def chosen(self, numbers: Sequence[int]) -> "Documents":
        return Documents([self.tokens[n] for n in numbers], [self.states[n] for n in numbers])


def train_documents(
    backbone: LanguageBackbone,
    documents: Documents,
    cut: int,
    spec: AdapterSpec,
    recipe: Recipe,
    seed: int,
    start: TrainState | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    on_state: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Train for the recipe's epochs from the frozen backbone, or on from `start`; a minibatch counts packed rows.

    Resumes an unfinished `start` exactly, as `train_slice` does: what is packed with what comes from the seed and the
    epoch. `on_epoch` gets the epoch and its mean loss, `on_state` a state to store. Raises NonFiniteError.
    """
    model, parts = AdaptedModel(backbone, spec, cut), documents.parts(backbone.max_tokens)
    state = start if start is not None else TrainState(new_lora(model, seed), {}, (), {}, 0)
    if state.epoch >= recipe.epochs:
        state = replace(state, optimizer={}, epoch=0)
    model.load(NAME, state.adapter)
    weights = {f"adapter/{name}": parameter for name, parameter in model.parameters().items()}
    optimizer = make_optimizer(weights, recipe)
    load_moments(optimizer, weights, state.optimizer)
    for epoch in range(state.epoch, recipe.epochs):
        [order] = minibatches_of(len(parts.tokens), len(parts.tokens), seed, epoch)
        lengths = [len(parts.tokens[n]) for n in order]
        packed = pack(lengths, backbone.max_tokens) if backbone.keeps_apart else [[n] for n in range(len(order))]
        rows = [row for row in packed if any(lengths[n] > 1 for n in row)]  # one token leaves none to guess
        steps, losses = math.ceil(len(rows) / recipe.minibatch), []
        for step in range(steps):
            anneal(optimizer, (epoch * steps + step) / (recipe.epochs * steps))
            chosen = rows[step * recipe.minibatch : (step + 1) * recipe.minibatch]
            loss = packed_loss(model, [parts.chosen([order[i] for i in row]) for row in chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(require_finite("training loss", loss.detach())))
        state = snapshot(weights, optimizer, (), epoch + 1)
        if on_epoch is not None:
            on_epoch(epoch, sum(losses) / max(len(losses), 1))
        if on_state is not None:
            on_state(state)
    return state


def packed_loss(model: AdaptedModel, rows: Sequence[Documents]) -> Tensor:
    """The mean negative log likelihood of every token but the first of its part."""
    inputs, states_BTD = pack_states(model.backbone, rows)
    logits_BTV = model.logits(inputs, states_BTD)
    model.backbone.work.forwards += len(rows) * (model.backbone.num_blocks - (model.cut or 0))
    model.backbone.work.backwards += len(rows) * (model.backbone.num_blocks - (model.cut or 0))
    return functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), targets_of(inputs)[:, :-1].flatten())


def pack_states(backbone: LanguageBackbone, rows: Sequence[Documents]) -> tuple[Inputs, Tensor]:
    """The inputs of packed rows, and their states side by side (B, T, D); T is that of the fullest row."""
    lengths = [sum(len(ids) for ids in row.tokens) for row in rows]
    inputs = backbone.inputs([row.tokens for row in rows], max(lengths))
    states_BTD = torch.zeros(len(rows), max(lengths), backbone.width)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        states_BTD[number, :length] = torch.cat(list(row.states))
    return inputs, states_BTD.to(backbone.device)


def targets_of(inputs: Inputs) -> Tensor:
    """(B, T) the next token of every place; IGNORED where a part ends and in the padding."""
    next_BT = inputs.ids_BT.roll(-1, 1)
    same_BT = (inputs.owner_BT == inputs.owner_BT.roll(-1, 1)) & (inputs.owner_BT >= 0)
    same_BT[:, -1] = False
    return next_BT.masked_fill(~same_BT, IGNORED)
