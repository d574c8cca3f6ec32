"""The definition: form the dense sum and cut its singular value decomposition."""

# N adapters, R rank, I in features, O out features, Q rank of the merged adapter

import torch
from torch import Tensor


def lowrank_merge(weight_N: Tensor, A_NRI: Tensor, B_NOR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    delta_OI = torch.einsum("n,nor,nri->oi", weight_N, B_NOR, A_NRI)
    u_OQ, s_Q, vh_QI = torch.linalg.svd(delta_OI, full_matrices=False)
    return vh_QI[:rank], u_OQ[:, :rank] * s_Q[:rank]
