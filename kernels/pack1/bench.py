"""Unpacking one-bit weights against numpy's bits; the gain is the size: `python -m kernels.pack1.bench [--json]`."""

# K rows, M values

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels.bench import Case, main
from kernels.pack1 import Packed, pack1, unpack1

BASELINE = "numpy.unpackbits, to float, times scale"


def numpy_unpack(packed: Packed) -> Tensor:
    bits = np.unpackbits(packed.bits_KB.cpu().numpy(), axis=1, count=packed.num_values, bitorder="little")
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1) * packed.scale_K.cpu()[:, None]


def cases(device: torch.device) -> Iterator[Case]:
    for rows, values in [(64, 3072), (192, 384), (8, 384)]:
        weight_KM = torch.randn(rows, values, device=device)
        packed = pack1(weight_KM)
        stored = packed.bits_KB.numel() + 4 * rows
        yield Case(
            f"{rows} x {values}: {4 * weight_KM.numel()} -> {stored} bytes, {4 * weight_KM.numel() / stored:.1f}x",
            partial(numpy_unpack, packed),
            partial(unpack1, packed),
            partial(unpack1, packed._replace(scale_K=packed.scale_K * 1.001)),
            bytes_moved=4 * weight_KM.numel() + stored,
        )


if __name__ == "__main__":
    main("pack1", BASELINE, cases)
