"""Exact QR-SVD: the adapter of the first parent's rank that is closest to the sum of the parents' updates.

For LoRA the update is linear, B A, and the answer is the best there is (Eckart and Young, 1936). A bottleneck has a
nonlinearity between its factors: what is summed and cut is what the parents compute where every hidden unit is active,
bias included. That is no approximation of their functions, whose units `ot` pairs one by one; the gate says what it is
worth.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.lowrank_merge import lowrank_merge
from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.factors import Factors, factors_of


def merge_svd(parents: Sequence[AdapterWeights], shares: Sequence[float]) -> AdapterWeights:
    """sum_k shares[k] * up_k down_k, cut to the first parent's rank; parents may differ in rank."""
    merged: AdapterWeights = {}
    for factors in factors_of(parents[0]):
        rank = len(parents[0][factors.down])
        widest = max(len(parent[factors.down]) for parent in parents)
        A_KRI = torch.stack([_filled(_inwards(parent, factors), widest) for parent in parents])
        B_KOR = torch.stack([_filled(parent[factors.up].mT, widest).mT for parent in parents])
        A_QI, B_OQ = cut(torch.tensor(list(shares)), A_KRI, B_KOR, rank)
        merged[factors.up] = B_OQ
        merged[factors.down] = A_QI
        if factors.bias is not None:
            merged[factors.down], merged[factors.bias] = A_QI[:, :-1], A_QI[:, -1]
        if factors.output_bias is not None:
            merged[factors.output_bias] = sum(
                (share * parent[factors.output_bias] for parent, share in zip(parents, shares, strict=True)),
                torch.zeros_like(parents[0][factors.output_bias]),
            )
    return merged


def cut(weight_K: Tensor, A_KRI: Tensor, B_KOR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (Q, I) and B (O, Q), Q the rank, whose product is closest to sum_k weight[k] * B_k A_k."""
    A_QI, B_OQ = lowrank_merge(weight_K, A_KRI, B_KOR, min(rank, A_KRI.shape[2], B_KOR.shape[1]))
    # each half carries the root of a singular value: both stay of the size that training left them
    root_Q = B_OQ.norm(dim=0).sqrt()
    return _filled(A_QI * root_Q[:, None], rank), _filled((B_OQ / root_Q.clamp_min(1e-12)).mT, rank).mT


def _inwards(parent: AdapterWeights, factors: Factors) -> Tensor:
    """(R, I), with the bias as one more input that is always one."""
    if factors.bias is None:
        return parent[factors.down]
    return torch.cat([parent[factors.down], parent[factors.bias][:, None]], 1)


def _filled(rows_RI: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(rows_RI, (0, 0, 0, rank - len(rows_RI)))
