"""The definition, as SEMA's code has it: one adapter at a time, then a weighted sum."""

# N records, T tokens, D features, H hidden, K adapters

import torch
from torch import Tensor


def adapter_mixture(
    x_NTD: Tensor, weight_NK: Tensor, down_KHD: Tensor, down_bias_KH: Tensor, up_KDH: Tensor, up_bias_KD: Tensor
) -> Tensor:
    outputs_NTDK = torch.stack(
        [
            torch.relu(x_NTD @ down_HD.T + a_H) @ up_DH.T + c_D
            for down_HD, a_H, up_DH, c_D in zip(down_KHD, down_bias_KH, up_KDH, up_bias_KD, strict=True)
        ],
        dim=3,
    )
    return (outputs_NTDK * weight_NK[:, None, None]).sum(3)
