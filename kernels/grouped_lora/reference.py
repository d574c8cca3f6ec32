"""The definition: record by record, its own adapter on its own tokens."""

# N records, T tokens, D in, O out, R rank, K slots

import torch
from torch import Tensor


def grouped_lora(
    x_NTD: Tensor, A_KRD: Tensor, B_KOR: Tensor, slot_N: Tensor, scale_K: Tensor, base_NTO: Tensor
) -> Tensor:
    zeros_KR, zeros_KO = A_KRD.new_zeros(A_KRD.shape[:2]), B_KOR.new_zeros(B_KOR.shape[:2])
    return _grouped(x_NTD, A_KRD, zeros_KR, B_KOR, zeros_KO, slot_N, scale_K, base_NTO, relu=False)


def grouped_bottleneck(
    x_NTD: Tensor, down_KRD: Tensor, down_bias_KR: Tensor, up_KOR: Tensor, up_bias_KO: Tensor, slot_N: Tensor,
    scale_K: Tensor, base_NTO: Tensor,
) -> Tensor:  # fmt: skip
    return _grouped(x_NTD, down_KRD, down_bias_KR, up_KOR, up_bias_KO, slot_N, scale_K, base_NTO, relu=True)


def _grouped(
    x_NTD: Tensor, down_KRD: Tensor, down_bias_KR: Tensor, up_KOR: Tensor, up_bias_KO: Tensor, slot_N: Tensor,
    scale_K: Tensor, base_NTO: Tensor, relu: bool,
) -> Tensor:  # fmt: skip
    rows = []
    for x_TD, slot, base_TO in zip(x_NTD, slot_N.tolist(), base_NTO, strict=True):
        if slot < 0:
            rows.append(base_TO)
            continue
        hidden_TR = x_TD @ down_KRD[slot].T + down_bias_KR[slot]
        hidden_TR = hidden_TR.relu() if relu else hidden_TR
        rows.append(base_TO + scale_K[slot] * (hidden_TR @ up_KOR[slot].T + up_bias_KO[slot]))
    return torch.stack(rows) if rows else base_NTO
