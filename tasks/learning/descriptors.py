"""Representation descriptors in closed form: how unlike its shard an input looks, layer by layer.

Shapes: L layers, N records, D width, R rank. Published source: SEMA (arXiv 2403.18886), whose linear autoencoder
under squared error has the principal components as its optimum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tasks.learning.tensors import require_finite


@dataclass(frozen=True)
class Descriptor:
    """Mean and principal directions of a shard's signatures, and the scores of rows that did not shape them.

    `spread` is the held-out variance along each direction and `noise` the one per coordinate outside of them: with
    them the descriptor is a density (probabilistic PCA, Tipping and Bishop 1999), which retrieval compares.
    """

    mean_LD: Tensor
    basis_LRD: Tensor
    score_mean_L: Tensor
    score_std_L: Tensor
    spread_LR: Tensor
    noise_L: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Descriptor":
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


def fit_descriptor(train_LND: Tensor, held_out_LND: Tensor, rank: int = 32) -> Descriptor:
    """Closed form: top principal directions of the training rows, score statistics of the held-out rows.

    Raises NonFiniteError; at least two rows are needed on each side.
    """
    if train_LND.shape[1] < 2 or held_out_LND.shape[1] < 2:
        raise ValueError("a descriptor needs two training rows and two held-out rows")
    mean_LD, basis_LRD = principal_directions(require_finite("descriptor's training rows", train_LND), rank)
    scores_LN = _scores(mean_LD, basis_LRD, require_finite("descriptor's held-out rows", held_out_LND))
    coordinates_LNR = (held_out_LND - mean_LD[:, None]) @ basis_LRD.mT
    width, rank = mean_LD.shape[1], basis_LRD.shape[1]
    spread_LR = coordinates_LNR.square().mean(1).clamp_min(1e-8)
    noise_L = (scores_LN.mean(1) * width / max(width - rank, 1)).clamp_min(1e-8)
    return Descriptor(mean_LD, basis_LRD, scores_LN.mean(1), scores_LN.std(1).clamp_min(1e-12), spread_LR, noise_L)


def principal_directions(train_LND: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Mean (L, D) and the top directions (L, R, D); R is at most what the rows span."""
    rows_LND = train_LND.double()
    mean_LD = rows_LND.mean(1)
    centred_LND = rows_LND - mean_LD[:, None]
    rank = min(rank, train_LND.shape[1] - 1, train_LND.shape[2] - 1)
    _, vectors_LDD = torch.linalg.eigh(centred_LND.mT @ centred_LND)  # ascending
    return mean_LD.float(), vectors_LDD[..., -rank:].mT.float().contiguous()


def z_scores(descriptor: Descriptor, signatures_LND: Tensor, two_sided: bool = False) -> Tensor:
    """(L, N): deviations above the held-out mean of the reconstruction error; `two_sided` takes SEMA's absolute value.

    Raises NonFiniteError, where SEMA's comparison with NaN would silently never expand.
    """
    scores_LN = _scores(descriptor.mean_LD, descriptor.basis_LRD, signatures_LND)
    z_LN = (scores_LN - descriptor.score_mean_L[:, None]) / descriptor.score_std_L[:, None]
    return require_finite("z-scores", z_LN.abs() if two_sided else z_LN)


def log_density(descriptor: Descriptor, signatures_LND: Tensor) -> Tensor:
    """(N,): how likely each record is under the shard's probabilistic PCA, per coordinate, averaged over layers.

    Unlike the reconstruction error it sees a shift that lowers the error, since the means and spreads differ as well.
    """
    width, rank = descriptor.mean_LD.shape[1], descriptor.basis_LRD.shape[1]
    centred_LND = signatures_LND - descriptor.mean_LD[:, None]
    coordinates_LNR = centred_LND @ descriptor.basis_LRD.mT
    outside_LN = _scores(descriptor.mean_LD, descriptor.basis_LRD, signatures_LND) * width
    inside_LN = (coordinates_LNR.square() / descriptor.spread_LR[:, None]).sum(-1)
    volume_L = descriptor.spread_LR.log().sum(-1) + (width - rank) * descriptor.noise_L.log()
    density_LN = -(inside_LN + outside_LN / descriptor.noise_L[:, None] + volume_L[:, None]) / (2 * width)
    return require_finite("log density", density_LN).mean(0)


def _scores(mean_LD: Tensor, basis_LRD: Tensor, signatures_LND: Tensor) -> Tensor:
    """Mean squared residual per record: |z|^2 - |B z|^2, without building the reconstruction."""
    centred_LND = (signatures_LND - mean_LD[:, None]).double()
    coordinates_LNR = centred_LND @ basis_LRD.double().mT
    squares_LN = centred_LND.square().sum(-1) - coordinates_LNR.square().sum(-1)
    return (squares_LN / mean_LD.shape[1]).clamp_min(0).float()
