"""The definition: put every value of every dimension into its cell, one at a time."""

# N records, D dimensions, C cells

import math

import torch
from torch import Tensor


def cell_counts(x_ND: Tensor, low_D: Tensor, per_unit_D: Tensor, num_cells: int) -> Tensor:
    counts_DC = torch.zeros(x_ND.shape[1], num_cells, dtype=torch.int64)
    position_ND = (x_ND.float() - low_D) * per_unit_D
    for position_D in position_ND:
        for d, position in enumerate(position_D.tolist()):
            cell = 0 if position < 0 else num_cells - 1 if position >= num_cells - 2 else math.floor(position) + 1
            counts_DC[d, cell] += 1
    return counts_DC
