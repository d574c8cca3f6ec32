"""One fused call for all tensors, on the CPU and on CUDA alike."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ema(averages: Sequence[Tensor], values: Sequence[Tensor], rate: float) -> None:
    torch._foreach_lerp_(list(averages), list(values), rate)
