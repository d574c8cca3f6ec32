"""Representation descriptors in closed form: how unlike its shard an input looks, layer by layer.

Shapes: L layers, N records, K descriptors, D width, R rank. Published source: SEMA (arXiv 2403.18886), whose linear
autoencoder under squared error has the principal components as its optimum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.descriptor_score import Prepared, descriptor_score, prepare_pca, prepare_quadratic
from kernels.descriptor_score import z_scores as kernel_z_scores
from tasks.learning.tensors import require_finite

CHUNK = 16
"""Rows of every scoring product, and the multiple that slots and ranks are filled up to."""
LEAST_STD = 1e-6
"""Of the scores: rows that are all alike have none, and what rounding leaves of their score is no deviation. Signatures
have a variance of one."""


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
    return Descriptor(mean_LD, basis_LRD, scores_LN.mean(1), scores_LN.std(1).clamp_min(LEAST_STD), spread_LR, noise_L)


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


@dataclass(frozen=True)
class DescriptorBank:
    """The descriptors of a model side by side, to score a minibatch against all of them in one product each."""

    num: int
    error: Prepared
    mahalanobis: Prepared
    score_mean_LK: Tensor
    score_std_LK: Tensor
    noise_LK: Tensor
    volume_LK: Tensor


def side_by_side(descriptors: Sequence[Descriptor]) -> DescriptorBank:
    """Prepared once per model. Slots and ranks are filled up to multiples of 16, so that products keep their shape."""
    ranks = [each.basis_LRD.shape[1] for each in descriptors]
    rank, slots = _round_up(max(ranks)), _round_up(len(descriptors))
    mean_LKD = _stack([each.mean_LD for each in descriptors], slots)
    basis_LKRD = _stack(
        [pad(each.basis_LRD, (0, 0, 0, rank - r)) for each, r in zip(descriptors, ranks, strict=True)], slots
    )
    noise_LK = torch.stack([each.noise_L for each in descriptors], 1)
    weight_LKR = _stack(
        [
            pad(1 - each.noise_L[:, None] / each.spread_LR, (0, rank - r))
            for each, r in zip(descriptors, ranks, strict=True)
        ],
        slots,
    )
    volumes = [
        each.spread_LR.log().sum(-1) + (each.mean_LD.shape[1] - each.spread_LR.shape[1]) * each.noise_L.log()
        for each in descriptors
    ]
    return DescriptorBank(
        len(descriptors),
        prepare_quadratic(mean_LKD, basis_LKRD),
        prepare_quadratic(mean_LKD, basis_LKRD, weight_LKR),
        torch.stack([each.score_mean_L for each in descriptors], 1),
        torch.stack([each.score_std_L for each in descriptors], 1),
        noise_LK,
        torch.stack(volumes, 1),
    )


def shift_and_density(bank: DescriptorBank, signatures_LND: Tensor) -> tuple[Tensor, Tensor]:
    """Per descriptor and record (K, N): the z-score, and the log density per coordinate, both averaged over layers.

    The density is that of the shard's probabilistic PCA. Unlike the reconstruction error it sees a shift that lowers
    the error, since means and spreads differ as well. A record's bytes depend on that record and that descriptor.
    """
    z, density = [], []
    for chunk_LND in signatures_LND.split(CHUNK, 1):
        full_LND = pad(chunk_LND, (0, 0, 0, CHUNK - chunk_LND.shape[1]))  # of one shape: of the same bits
        error_LKN, distance_LKN = (
            descriptor_score(full_LND, prepared)[:, : bank.num, : chunk_LND.shape[1]]
            for prepared in (bank.error, bank.mahalanobis)
        )
        z.append(kernel_z_scores(error_LKN, bank.score_mean_LK, bank.score_std_LK).mean(0))
        exponent_LKN = distance_LKN / bank.noise_LK[..., None]
        density.append(-(exponent_LKN + bank.volume_LK[..., None] / signatures_LND.shape[2]).mean(0) / 2)
    return require_finite("z-scores", torch.cat(z, 1)), require_finite("log density", torch.cat(density, 1))


def _stack(parts_L: Sequence[Tensor], slots: int) -> Tensor:
    """(L, slots, ..): one part per slot, zeros in those that are left."""
    stack_LK = torch.stack(list(parts_L), 1)
    return torch.cat([stack_LK, stack_LK.new_zeros(len(stack_LK), slots - len(parts_L), *stack_LK.shape[2:])], 1)


def _round_up(count: int) -> int:
    return -(-count // CHUNK) * CHUNK


def _scores(mean_LD: Tensor, basis_LRD: Tensor, signatures_LND: Tensor) -> Tensor:
    """Mean squared residual per record, (L, N), computed in float64."""
    prepared = prepare_pca(mean_LD.double()[:, None], basis_LRD.double()[:, None])
    return descriptor_score(signatures_LND.double(), prepared)[:, 0].float()
