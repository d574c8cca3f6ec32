"""A cell by multiply and truncate instead of a search among edges, and one count over all dimensions."""

# N records, D dimensions, C cells

import torch
from torch import Tensor


def cell_counts(x_ND: Tensor, low_D: Tensor, per_unit_D: Tensor, num_cells: int) -> Tensor:
    dims = x_ND.shape[1]
    # Truncation and clamping give what floor would: positions in (-1, 0) are below the range and land in cell 0.
    cell_ND = ((x_ND.float() - low_D) * per_unit_D).add_(1).clamp_(0, num_cells - 1).to(torch.int64)
    cell_ND += torch.arange(dims, device=x_ND.device) * num_cells
    return torch.bincount(cell_ND.flatten(), minlength=dims * num_cells).view(dims, num_cells)
