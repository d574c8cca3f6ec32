"""Exponential moving average of weights in place, MOS's training-time merging (Sun et al., AAAI 2025).

There is no Triton form: torch's foreach kernel already is one launch that reads and writes every value once.
"""

from collections.abc import Sequence

from torch import Tensor

from kernels.ema import cpu

__all__ = ["ema"]


def ema(averages: Sequence[Tensor], values: Sequence[Tensor], rate: float) -> None:
    """average <- (1 - rate) average + rate value for every pair, in place.

    Raises ValueError where they do not pair up.
    """
    if len(averages) != len(values) or any(a.shape != v.shape for a, v in zip(averages, values, strict=False)):
        raise ValueError(f"{len(averages)} averages and {len(values)} values do not pair up by number and shape")
    cpu.ema(averages, values, rate)
