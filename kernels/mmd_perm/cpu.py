"""All labelings in one pass over tiles of the kernel matrix, which is never stored.

With v the 0/1 indicator of the first sample and K without its diagonal, every labeling needs v'Kv alone:
the row sums K1 do not depend on v, sum_xy = v'K1 - v'Kv and sum_yy = 1'K1 - 2 v'K1 + v'Kv. K is symmetric, so only
tiles on and above the diagonal are formed.
"""

# S pooled records, D features, P labelings; I, J tiles of S

import torch
from torch import Tensor

TILE = 128


def mmd_statistics(z_SD: Tensor, member_SP: Tensor, gamma: float) -> Tensor:
    num_records = z_SD.shape[0]
    z_SD = z_SD - z_SD.mean(0)  # distances keep, products lose their common part and its rounding
    half_norm_S = -gamma * (z_SD * z_SD).sum(1)
    vkv_P = member_SP.new_zeros(member_SP.shape[1], dtype=torch.float64)
    row_sum_S = z_SD.new_zeros(num_records, dtype=torch.float64)
    for i in range(0, num_records, TILE):
        rows = slice(i, i + TILE)
        rest = slice(i, None)
        exponent_IJ = torch.addmm(half_norm_S[rest], z_SD[rows], z_SD[rest].T, alpha=2 * gamma)
        kernel_IJ = exponent_IJ.add_(half_norm_S[rows, None]).clamp_(max=0).exp_()
        own = kernel_IJ[:, : kernel_IJ.shape[0]]  # the tile on the diagonal, whose mirror image is itself
        own.fill_diagonal_(0).mul_(0.5)
        row_sum_S[rows] += kernel_IJ.sum(1)
        row_sum_S[rest] += kernel_IJ.sum(0)
        vkv_P += 2 * (member_SP[rows] * (kernel_IJ @ member_SP[rest])).sum(0, dtype=torch.float64)
    return combine(vkv_P, row_sum_S, member_SP)


def combine(vkv_P: Tensor, row_sum_S: Tensor, member_SP: Tensor) -> Tensor:
    """Unbiased MMD^2 of every labeling from v'Kv (P,) and the row sums K1 (S,), float64."""
    n_P = member_SP.sum(0, dtype=torch.float64)
    m_P = member_SP.shape[0] - n_P
    vk1_P = (row_sum_S @ member_SP.double()) if member_SP.shape[1] else vkv_P
    xy_P = vk1_P - vkv_P
    yy_P = row_sum_S.sum() - 2 * vk1_P + vkv_P
    return vkv_P / (n_P * (n_P - 1)) + yy_P / (m_P * (m_P - 1)) - 2 * xy_P / (n_P * m_P)
