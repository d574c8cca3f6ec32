"""Hidden states as bytes: float32 exactly, or bfloat16 or int8 with a scale per token, which lose digits.

Shapes: T tokens, D width.
"""

import numpy as np
import torch
from torch import Tensor

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "int8": 1}


def pack(state_TD: Tensor, dtype: str) -> bytes:
    """A record's states; tokens as they are, without padding. Raises ValueError for an unknown type."""
    if dtype == "float32":
        return state_TD.float().contiguous().numpy().tobytes()
    if dtype == "bfloat16":
        return state_TD.bfloat16().contiguous().view(torch.int16).numpy().tobytes()
    if dtype == "int8":
        scale_T1 = (state_TD.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        steps_TD = (state_TD / scale_T1).round().to(torch.int8)
        return torch.cat([scale_T1.view(torch.int8), steps_TD], 1).numpy().tobytes()
    raise ValueError(f"states as {dtype!r}: use {', '.join(BYTES_PER_VALUE)}")


def unpack(data: bytes | bytearray, dtype: str, width: int) -> Tensor:
    """(T, D) float32 again."""
    raw = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
    if dtype == "float32":
        return raw.view(torch.float32).view(-1, width)
    if dtype == "bfloat16":
        return raw.view(torch.bfloat16).view(-1, width).float()
    rows = raw.view(torch.int8).view(-1, 4 + width)
    return rows[:, 4:].float() * rows[:, :4].flatten().clone().view(torch.float32)[:, None]


def rounded(state_TD: Tensor, dtype: str) -> Tensor:
    """The states as a reader of the cache gets them: no artifact depends on whether the cache was warm."""
    return state_TD if dtype == "float32" else unpack(pack(state_TD, dtype), dtype, state_TD.shape[1])
