"""Two products of width K H, the router's weight on the hidden states between them: exact, because up is linear."""

# N records, T tokens, D features, H hidden, K adapters (those in use), M = K H

import torch
from torch import Tensor


def adapter_mixture(
    x_NTD: Tensor, weight_NK: Tensor, down_KHD: Tensor, down_bias_KH: Tensor, up_KDH: Tensor, up_bias_KD: Tensor
) -> Tensor:
    num_records, tokens, dim = x_NTD.shape
    num_adapters, hidden, _ = down_KHD.shape
    product_XM = torch.addmm(down_bias_KH.flatten(), x_NTD.flatten(0, 1), down_KHD.flatten(0, 1).T)
    hidden_NTKH = torch.relu(product_XM).view(num_records, tokens, num_adapters, hidden)
    weighted_XM = (hidden_NTKH * weight_NK[:, None, :, None]).view(-1, num_adapters * hidden)
    up_MD = up_KDH.mT.flatten(0, 1)
    mixed_NTD = torch.mm(weighted_XM, up_MD).view(num_records, tokens, dim)
    return mixed_NTD + (weight_NK @ up_bias_KD)[:, None]
