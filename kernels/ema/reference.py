"""The definition: one tensor at a time, three operations each."""

from collections.abc import Sequence

from torch import Tensor


def ema(averages: Sequence[Tensor], values: Sequence[Tensor], rate: float) -> None:
    for average, value in zip(averages, values, strict=True):
        average.copy_((1 - rate) * average + rate * value)
