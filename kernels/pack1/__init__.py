"""One-bit storage of weights: a sign per value and one scale per row, 1/32 of float32.

The scale is the mean magnitude, the least-squares fit of signs to a row (XNOR-Net: Rastegari et al., ECCV 2016;
BitDelta: Liu et al., NeurIPS 2024). A storage format and lossy: it makes nothing faster, and what it costs in accuracy
has to be measured on the adapter at hand.
"""

# fields carry shape suffixes too
# K rows, M values, B bytes of a row

from typing import NamedTuple

from torch import Tensor

from kernels.dispatch import runs_triton
from kernels.pack1 import cpu

__all__ = ["Packed", "pack1", "unpack1"]


class Packed(NamedTuple):
    """Sign bits (K, B) uint8, lowest bit first, unused bits 0; a scale for each row; values in a row."""

    bits_KB: Tensor
    scale_K: Tensor
    num_values: int


def pack1(weight_KM: Tensor) -> Packed:
    """Keep the signs (0 counts as positive) and the mean magnitude of each row.

    Raises ValueError for rows that are empty or hold NaN.
    """
    bits_KB, scale_K = cpu.pack1(weight_KM)
    if not bool(scale_K.isfinite().all()):
        raise ValueError("rows that are empty or not finite have no scale to pack")
    return Packed(bits_KB, scale_K, weight_KM.shape[1])


def unpack1(packed: Packed) -> Tensor:
    """Signs times scale, (K, M) in the type of the scale."""
    if packed.bits_KB.is_cuda and runs_triton(packed.scale_K):
        from kernels.pack1 import triton  # noqa: PLC0415  # only machines with CUDA have Triton

        return triton.unpack1(*packed)
    return cpu.unpack1(*packed)
