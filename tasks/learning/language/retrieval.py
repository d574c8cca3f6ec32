"""Which of the entitled adapters a text asks for: a Gaussian of frozen embeddings per adapter, nothing pooled.

Shapes: N texts, T tokens, D width, A adapters. Published sources: AdapterSwap (arXiv 2404.08417), whose Gaussians share
a projection fitted on all partitions and so carry one group's data into another's answers; ours share nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.tensors import require_finite

PRIOR = 20.0
"""Texts that an adapter's mean variance counts for, against the variance of each coordinate."""

TEMPERATURE = 0.05
"""Of the log density per coordinate, when several adapters share an answer."""


def embeddings(states: Sequence[Tensor]) -> Tensor:
    """(N, D): the mean of the normalised token states entering the cut, normalised again.

    Normalised first, since the first tokens of a language model carry norms a hundred times those of the others.
    """
    means = [functional.layer_norm(state_TD, state_TD.shape[1:]).mean(0) for state_TD in states]
    return functional.layer_norm(torch.stack(means), means[0].shape) if means else torch.zeros(0, 0)


@dataclass(frozen=True)
class Moments:
    """What texts contribute to a Gaussian; moments of several shards add up, and each is exact under deletion."""

    count: Tensor
    sum_D: Tensor
    squares_D: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        return {"count": self.count, "sum_D": self.sum_D, "squares_D": self.squares_D}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Moments":
        return cls(tensors["count"], tensors["sum_D"], tensors["squares_D"])

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.sum_D + other.sum_D, self.squares_D + other.squares_D)


def moments_of(embeddings_ND: Tensor) -> Moments:
    """In float64, rows in the caller's canonical order. Raises NonFiniteError."""
    rows_ND = require_finite("embeddings", embeddings_ND).double()
    return Moments(torch.tensor(float(len(rows_ND)), dtype=torch.float64), rows_ND.sum(0), rows_ND.square().sum(0))


@dataclass(frozen=True)
class Gaussian:
    """Of one adapter's own texts, with a diagonal covariance."""

    mean_D: Tensor
    variance_D: Tensor


def fit_gaussian(moments: Sequence[Moments]) -> Gaussian:
    """Variances are drawn towards their own mean as if by `PRIOR` more texts: with few texts they are hardly known.

    Raises ValueError without a text.
    """
    total = moments[0]
    for each in moments[1:]:
        total = total + each
    if float(total.count) < 1:
        raise ValueError("a Gaussian needs at least one text")
    mean_D = total.sum_D / total.count
    variance_D = (total.squares_D / total.count - mean_D.square()).clamp_min(0.0)
    shrunk_D = (total.count * variance_D + PRIOR * variance_D.mean()) / (total.count + PRIOR)
    return Gaussian(mean_D, shrunk_D.clamp_min(1e-6))


def squared_distances(gaussians: Sequence[Gaussian], embeddings_ND: Tensor) -> Tensor:
    """(A, N) mean over the coordinates, in units of the variances; a number depends on that Gaussian and that text."""
    rows_ND = embeddings_ND.double()
    found = [((rows_ND - each.mean_D).square() / each.variance_D).mean(1) for each in gaussians]
    return torch.stack(found) if found else torch.zeros(0, len(rows_ND), dtype=torch.float64)


def nearest(
    gaussians: Mapping[str, Gaussian], embeddings_ND: Tensor, top_k: int = 1, far: float = math.inf
) -> list[dict[str, float]]:
    """Per text the likeliest names and their shares, which sum to one; ties go to the name. None of them where all are
    further than `far`: an adapter's own documents lie at 1 on average, a prompt further than the document it begins.

    Only what the caller is entitled to may be given here: nothing else is looked at.
    """
    names = sorted(gaussians)
    distance_AN = squared_distances([gaussians[name] for name in names], embeddings_ND)
    require_finite("retrieval distances", distance_AN)
    volume_A = [float(gaussians[name].variance_D.log().mean()) for name in names]
    return [
        _shares(
            {
                n: -(distance + v) / 2
                for n, distance, v in zip(names, distance_A, volume_A, strict=True)
                if distance <= far
            },
            top_k,
        )
        for distance_A in distance_AN.mT.tolist()
    ]


def _shares(densities: Mapping[str, float], top_k: int) -> dict[str, float]:
    """From log densities per coordinate."""
    chosen = sorted(((density, name) for name, density in densities.items()), key=lambda p: (-p[0], p[1]))[:top_k]
    if len(chosen) <= 1:
        return {name: 1.0 for _, name in chosen}
    odds = torch.softmax(torch.tensor([density for density, _ in chosen], dtype=torch.float64) / TEMPERATURE, 0)
    return {name: float(share) for (_, name), share in zip(chosen, odds, strict=True)}
