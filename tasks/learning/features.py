"""What heads, descriptors and retrieval see: pooled states of the last blocks, the same bytes in any company.

Shapes: N records, B rows, T tokens, D width, L suffix blocks, F = S D head features of S <= 4 states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.adapters import AdapterWeights, deltas_of
from tasks.learning.backbones import Backbone, Delta, OnBlock, mean_tokens

MAX_STATES = 4


def num_states(layers: int) -> int:
    """How many pooled states a head sees when the suffix has this many blocks."""
    return min(MAX_STATES, layers + 1)


@dataclass(frozen=True, slots=True)
class SuffixPass:
    """One run of the blocks from the cut on."""

    features_NF: Tensor
    signatures_LND: Tensor


def run_suffix(
    backbone: Backbone,
    states: Sequence[Tensor],
    cut: int,
    adapter: AdapterWeights | None = None,
    deltas: Mapping[int, Delta] | None = None,
    stop: int | None = None,
) -> SuffixPass:
    """Head features and signatures of every record, float32 on the CPU, from one pass over the suffix.

    Features are the pooled states leaving the last four blocks (the one entering the cut stands in for a missing
    one), each normalised over its width. `deltas` stand in for an adapter; `stop` ends the pass early.
    Signatures are the token means of the residual before each MLP, normalised over their width.
    """
    stop = backbone.num_blocks if stop is None else stop
    layers = stop - cut
    features_NSD = torch.empty(len(states), num_states(layers), backbone.width)
    signatures_LND = torch.empty(layers, len(states), backbone.width)
    deltas = deltas_of(adapter, backbone.device) if deltas is None else deltas
    for chosen, padded in backbone.minibatches([len(state) for state in states]):
        hidden_BTD, lengths_B = backbone.pad([states[i] for i in chosen], padded, backbone.rows)
        pooled: list[Tensor] = [backbone.pool(hidden_BTD, lengths_B)]
        residuals: list[Tensor] = []
        with torch.inference_mode():
            backbone.run_blocks(
                hidden_BTD,
                lengths_B,
                cut,
                stop,
                deltas,
                _keeper(backbone, lengths_B, pooled, residuals),
                len(chosen),
            )
            size = (backbone.width,)
            features_NSD[chosen] = functional.layer_norm(
                torch.stack(pooled, 1)[: len(chosen), -MAX_STATES:], size
            ).cpu()
            signatures_LND[:, chosen] = functional.layer_norm(torch.stack(residuals)[:, : len(chosen)], size).cpu()
    return SuffixPass(features_NSD.flatten(1), signatures_LND)


def _keeper(backbone: Backbone, lengths_B: Tensor, pooled: list[Tensor], residuals: list[Tensor]) -> OnBlock:
    def keep(_block: int, residual_BTD: Tensor, output_BTD: Tensor) -> None:
        pooled.append(backbone.pool(output_BTD, lengths_B))
        residuals.append(mean_tokens(residual_BTD, lengths_B))

    return keep


def features(backbone: Backbone, states: Sequence[Tensor], cut: int, adapter: AdapterWeights | None = None) -> Tensor:
    """(N, F): what a head sees of records, under an adapter or under the frozen backbone alone."""
    return run_suffix(backbone, states, cut, adapter).features_NF


def signatures(backbone: Backbone, states: Sequence[Tensor], cut: int) -> Tensor:
    """(L, N, D): the frozen backbone's normalised pooled residuals, for descriptors, shift tests and retrieval."""
    return run_suffix(backbone, states, cut).signatures_LND


def training_features(backbone: Backbone, states: Sequence[Tensor], cut: int, deltas: Mapping[int, Delta]) -> Tensor:
    """(B, F): the same features of one minibatch, with gradients to whatever the deltas hold; on the backbone's device.

    Padding depends on the minibatch here, so these bytes do depend on a record's company.
    """
    hidden_BTD, lengths_B = backbone.pad(states, max(len(state) for state in states), len(states))
    pooled = [backbone.pool(hidden_BTD, lengths_B)]

    def keep(_block: int, _residual_BTD: Tensor, output_BTD: Tensor) -> None:
        pooled.append(backbone.pool(output_BTD, lengths_B))

    backbone.run_blocks(hidden_BTD, lengths_B, cut, backbone.num_blocks, deltas, keep)
    return functional.layer_norm(torch.stack(pooled[-MAX_STATES:], 1), (backbone.width,)).flatten(1)
