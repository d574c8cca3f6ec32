"""Adapters with fewer values: in every factor the least salient weights become zero, and zeros are not stored.

Published sources: SparseAdapter (He et al., arXiv 2210.04284), which scores by magnitude or by SNIP (Lee et al., ICLR
2019) before training. Our up-projections start at zero, and so does then the gradient of every down-projection: before
training nothing can be told apart. The trained weights are scored instead, in their factor alone.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.adapters import AdapterWeights, deltas_of
from tasks.learning.backbones import Backbone
from tasks.learning.features import features, training_features
from tasks.learning.heads import class_statistics, expand, solve_head

METHODS = ("magnitude", "snip")

MINIBATCH = 16


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w|."""
    return {name: tensor.abs() for name, tensor in weights.items()}


def snip(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w dL/dw|: how much the loss moves, to first order, where the weight goes."""
    return {name: (tensor * gradients[name]).abs() for name, tensor in weights.items()}


def prune(weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], sparsity: float) -> AdapterWeights:
    """The weights with a share `sparsity` of every factor at zero, lowest scores first, ties by place. Biases stay."""
    return {name: _prune(t, scores[name], sparsity) if t.dim() > 1 else t for name, t in weights.items()}


def _prune(weight: Tensor, score: Tensor, sparsity: float) -> Tensor:
    gone = score.flatten().argsort(stable=True)[: int(sparsity * score.numel())]
    left = weight.flatten().clone()
    left[gone] = 0
    return left.view(weight.shape)


def head_gradients(
    backbone: Backbone, states: Sequence[Tensor], labels: Sequence[str], cut: int, weights: AdapterWeights
) -> dict[str, Tensor]:
    """dL/dw, L being the squared error of the serving head's regression, on the rows that it was solved from."""
    head = solve_head([class_statistics(features(backbone, states, cut, weights), labels)])
    targets_NC = functional.one_hot(torch.tensor([head.labels.index(label) for label in labels])).float()
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
    for first in range(0, len(states), MINIBATCH):
        rows = slice(first, first + MINIBATCH)
        seen_BF = training_features(backbone, states[rows], cut, deltas_of(leaves, backbone.device)).cpu().float()
        scores_BC = expand(seen_BF) @ head.weight_CE.mT + head.bias_C
        (scores_BC - targets_NC[rows]).square().sum().backward()
    return {name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for name, leaf in leaves.items()}
