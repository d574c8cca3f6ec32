"""The definition: one permutation at a time, in float64, by the means over pairs."""

# S pooled records (N of the first sample, M of the second), D features, P labelings

import torch
from torch import Tensor


def mmd_statistics(z_SD: Tensor, member_SP: Tensor, gamma: float) -> Tensor:
    z_SD = z_SD.double()
    kernel_SS = torch.exp(-gamma * torch.cdist(z_SD, z_SD, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
    return torch.stack([_mmd2(kernel_SS, member_S.bool()) for member_S in member_SP.T])


def _mmd2(kernel_SS: Tensor, first_S: Tensor) -> Tensor:
    xx, yy = kernel_SS[first_S][:, first_S], kernel_SS[~first_S][:, ~first_S]
    return _mean_off_diagonal(xx) + _mean_off_diagonal(yy) - 2 * kernel_SS[first_S][:, ~first_S].mean()


def _mean_off_diagonal(block: Tensor) -> Tensor:
    n = block.shape[0]
    return (block.sum() - block.trace()) / (n * (n - 1))
