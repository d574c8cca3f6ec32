"""The dense sum is never formed: it has rank N R at most, and a QR factorisation carries it into that space.

With [A_1' .. A_N'] = Q_A R_A, the sum is C Q_A' where C = [w_1 B_1 .. w_N B_N] R_A' is O x N R at most (reduced QR caps
it at O x I). Right singular vectors of C come from C'C in float64, where squaring costs no digit that float32 has.
"""

# N adapters, R rank, I in features, O out features, Q rank of the merged adapter, M = min(N R, I)

import torch
from torch import Tensor


def lowrank_merge(weight_N: Tensor, A_NRI: Tensor, B_NOR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    A_IN = A_NRI.flatten(0, 1).T
    reflectors, tau_M = torch.geqrf(A_IN)
    R_A = reflectors[: tau_M.shape[0]].triu()
    C_OM = (weight_N[:, None, None] * B_NOR).permute(1, 0, 2).flatten(1) @ R_A.T
    wide_OM = C_OM.double()
    right_MQ = torch.linalg.eigh(wide_OM.T @ wide_OM).eigenvectors.flip(1)[:, :rank].to(C_OM.dtype)
    # Q_A stays a product of reflectors: applying it to a few columns is half the work of writing it out.
    padded_IQ = torch.nn.functional.pad(right_MQ, (0, 0, 0, A_IN.shape[0] - right_MQ.shape[0]))
    A_IQ = torch.ormqr(reflectors[:, : tau_M.shape[0]], tau_M, padded_IQ)
    return A_IQ.T, C_OM @ right_MQ
