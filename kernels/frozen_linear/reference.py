"""The definition: each output is the product of a row with a row of the weight, plus its bias."""

# D in, O out; any leading shape, written N T here

import torch
from torch import Tensor


def frozen_linear(x_NTD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    product_NTO = torch.einsum("...d,od->...o", x_NTD, weight_OD)
    return product_NTO if bias_O is None else product_NTO + bias_O
