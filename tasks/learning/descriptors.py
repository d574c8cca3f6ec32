"""Representation descriptors in closed form: how unlike its shard an input looks, layer by layer.

Shapes: L layers, N records, D width, R rank. Published source: SEMA (arXiv 2403.18886), whose linear autoencoder
under squared error has the principal components as its optimum.
"""

# ruff: noqa: N815  fields carry shape suffixes too
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tasks.learning.tensors import require_finite


@dataclass(frozen=True)
class Descriptor:
    """Mean and principal directions of a shard's signatures, and the scores of rows that did not shape them."""

    mean_LD: Tensor
    basis_LRD: Tensor
    score_mean_L: Tensor
    score_std_L: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Descriptor":
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


def fit_descriptor(train_LND: Tensor, held_out_LND: Tensor, rank: int = 64) -> Descriptor:
    """Closed form: top principal directions of the training rows, score statistics of the held-out rows.

    Raises NonFiniteError; at least two rows are needed on each side.
    """
    if train_LND.shape[1] < 2 or held_out_LND.shape[1] < 2:
        raise ValueError("a descriptor needs two training rows and two held-out rows")
    mean_LD, basis_LRD = principal_directions(require_finite("descriptor's training rows", train_LND), rank)
    scores_LN = _scores(mean_LD, basis_LRD, require_finite("descriptor's held-out rows", held_out_LND))
    return Descriptor(mean_LD, basis_LRD, scores_LN.mean(1), scores_LN.std(1).clamp_min(1e-12))


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


def _scores(mean_LD: Tensor, basis_LRD: Tensor, signatures_LND: Tensor) -> Tensor:
    """Mean squared residual per record: |z|^2 - |B z|^2, without building the reconstruction."""
    centred_LND = (signatures_LND - mean_LD[:, None]).double()
    coordinates_LNR = centred_LND @ basis_LRD.double().mT
    squares_LN = centred_LND.square().sum(-1) - coordinates_LNR.square().sum(-1)
    return (squares_LN / mean_LD.shape[1]).clamp_min(0).float()
