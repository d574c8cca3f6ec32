"""Eight signs to a byte by a weighted sum; back by a table of the 256 bytes."""

# K rows, M values, B bytes of a row

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def pack1(weight_KM: Tensor) -> tuple[Tensor, Tensor]:
    sign_KM = pad((weight_KM >= 0).to(torch.uint8), (0, -weight_KM.shape[1] % 8))
    place_8 = 2 ** torch.arange(8, dtype=torch.uint8, device=weight_KM.device)
    bits_KB = (sign_KM.unflatten(1, (-1, 8)) * place_8).sum(2, dtype=torch.uint8)
    return bits_KB, weight_KM.abs().mean(1)


def unpack1(bits_KB: Tensor, scale_K: Tensor, num_values: int) -> Tensor:
    table_256x8 = _table(scale_K.dtype, scale_K.device)
    sign_KM = table_256x8.index_select(0, bits_KB.flatten().int()).view(len(bits_KB), -1)[:, :num_values]
    return sign_KM * scale_K[:, None]


@cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The eight signs of every byte."""
    byte_256 = torch.arange(256, device=device)
    return (byte_256[:, None] >> torch.arange(8, device=device) & 1).to(dtype) * 2 - 1
