"""The best adapter of a given rank for a weighted sum of adapters, exact (Eckart and Young, 1936).

PEFT's `svd` combination gives the same answer from a dense O x I decomposition. There is no Triton form: on CUDA the
QR and the eigenproblem are cuSOLVER's, through the same torch calls, and what is left is two small products.
"""

# N adapters, R rank, I in features, O out features, Q rank of the merged adapter

import torch
from torch import Tensor

from kernels.lowrank_merge import cpu

__all__ = ["lowrank_merge"]


def lowrank_merge(weight_N: Tensor, A_NRI: Tensor, B_NOR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (A_QI, B_OQ) whose product B A is closest to sum_n w_n B_n A_n in the Frobenius norm.

    Scaling of the adapters belongs into the weights, which may be negative. Rows of A are orthonormal and ordered by
    singular value; a sign is fixed for each (the largest entry of a row of A is positive), so equal inputs give equal
    outputs. Singular values below 1e-8 of the largest are rounding. Half types are computed in float32 and returned in
    their own.
    Raises ValueError when `rank` is not in 1..min(I, O).
    """
    num_out, num_in = B_NOR.shape[1], A_NRI.shape[2]
    if not 1 <= rank <= min(num_in, num_out):
        raise ValueError(f"rank {rank} of a {num_out} x {num_in} update; choose 1..{min(num_in, num_out)}")
    compute = torch.promote_types(A_NRI.dtype, torch.float32)
    A_QI, B_OQ = cpu.lowrank_merge(weight_N.to(compute), A_NRI.to(compute), B_NOR.to(compute), rank)
    A_QI, B_OQ = _pad(A_QI, B_OQ, rank)
    sign_Q = A_QI.gather(1, A_QI.abs().argmax(1, keepdim=True)).sign()[:, 0]
    sign_Q = torch.where(sign_Q == 0, 1, sign_Q)
    return (A_QI * sign_Q[:, None]).to(A_NRI.dtype), (B_OQ * sign_Q).to(B_NOR.dtype)


def _pad(A_QI: Tensor, B_OQ: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Zero rows up to `rank` where the adapters together have fewer, so that the merged shape is what was asked for."""
    missing = rank - A_QI.shape[0]
    return torch.nn.functional.pad(A_QI, (0, 0, 0, missing)), torch.nn.functional.pad(B_OQ, (0, missing))
