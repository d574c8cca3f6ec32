"""The definition: one bit per value, lowest bit first, and the mean magnitude of a row."""

# K rows, M values, B bytes of a row

import torch
from torch import Tensor


def pack1(weight_KM: Tensor) -> tuple[Tensor, Tensor]:
    num_bytes = (weight_KM.shape[1] + 7) // 8
    bits_KB = torch.zeros(len(weight_KM), num_bytes, dtype=torch.uint8)
    for k, row in enumerate(weight_KM.tolist()):
        for m, value in enumerate(row):
            bits_KB[k, m // 8] |= (value >= 0) << (m % 8)
    return bits_KB, weight_KM.abs().mean(1)


def unpack1(bits_KB: Tensor, scale_K: Tensor, num_values: int) -> Tensor:
    signs = [[1.0 if byte >> bit & 1 else -1.0 for byte in row for bit in range(8)] for row in bits_KB.tolist()]
    return torch.tensor(signs, dtype=scale_K.dtype).view(len(bits_KB), -1)[:, :num_values] * scale_K[:, None]
