"""The definition, as SEMA's code has it: one autoencoder at a time, encode, decode, compare."""

# L layers, K descriptors, T records or tokens, D features, H hidden

import torch
from torch import Tensor


def descriptor_score(
    x_LTD: Tensor, encode_LKHD: Tensor, encode_bias_LKH: Tensor, decode_LKDH: Tensor, decode_bias_LKD: Tensor
) -> Tensor:
    num_layers, num_descriptors = encode_LKHD.shape[:2]
    score_LKT = x_LTD.new_empty(num_layers, num_descriptors, x_LTD.shape[1])
    for l in range(num_layers):  # noqa: E741
        for k in range(num_descriptors):
            hidden_TH = torch.addmm(encode_bias_LKH[l, k], x_LTD[l], encode_LKHD[l, k].T)
            rebuilt_TD = torch.addmm(decode_bias_LKD[l, k], hidden_TH, decode_LKDH[l, k].T)
            score_LKT[l, k] = (rebuilt_TD - x_LTD[l]).square().mean(1)
    return score_LKT
