"""All descriptors of all layers in one batched product; no reconstruction of size T x K x D exists.

With c the decoder's bias, y = x - c, p = U x + a and G = V'V,

    |x - (V p + c)|^2 = |y|^2 - 2 p.(V'y) + p'G p = |y|^2 + p.q,   q = G p - 2 V'y,

and q is affine in x, so it is folded into weights of its own when a descriptor is prepared, as is |y|^2 - |x|^2. Where
the columns of V are orthonormal and U = V' (PCA), q = -p and its weights are left out.
"""

# fields carry shape suffixes too
# L layers, K descriptors, T records or tokens, D features, H hidden; M = K (H + 1) or K (2 H + 1) columns

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 256  # records whose product with all descriptors still sits in the cache when it is reduced


class Prepared(NamedTuple):
    """Frozen descriptors, ready to score; `shift` is subtracted first, so that a common offset costs no digits.

    The rows of `weight` are those of p for every descriptor, of q unless `pca`, and one for |y|^2 - |x|^2.
    """

    shift_LD: Tensor
    weight_LMD: Tensor
    bias_LM: Tensor
    num_descriptors: int
    hidden: int
    pca: bool


def prepare(
    encode_LKHD: Tensor, encode_bias_LKH: Tensor, decode_LKDH: Tensor, decode_bias_LKD: Tensor, pca: bool = False
) -> Prepared:
    shift_LD = decode_bias_LKD.mean(1)
    p_bias_LKH = encode_bias_LKH + (encode_LKHD @ shift_LD[:, None, :, None])[..., 0]
    if pca:
        return assemble(shift_LD, decode_bias_LKD, encode_LKHD, p_bias_LKH)
    centre_LKD = decode_bias_LKD - shift_LD[:, None]
    gram_LKHH = decode_LKDH.mT @ decode_LKDH
    q_bias_LKH = (gram_LKHH @ p_bias_LKH[..., None] + 2 * decode_LKDH.mT @ centre_LKD[..., None])[..., 0]
    q_LKHD = gram_LKHH @ encode_LKHD - 2 * decode_LKDH.mT
    return assemble(shift_LD, decode_bias_LKD, encode_LKHD, p_bias_LKH, q_LKHD, q_bias_LKH)


def assemble(
    shift_LD: Tensor, centre_LKD: Tensor, p_LKHD: Tensor, p_bias_LKH: Tensor, q_LKHD: Tensor | None = None,
    q_bias_LKH: Tensor | None = None,
) -> Prepared:  # fmt: skip
    """Lay |x - centre|^2 + p.q side by side for all descriptors; p and q are affine in x - shift, q = -p if absent."""
    centre_LKD = centre_LKD - shift_LD[:, None]
    weights, biases = [p_LKHD.flatten(1, 2)], [p_bias_LKH.flatten(1)]
    if q_LKHD is not None and q_bias_LKH is not None:
        weights.append(q_LKHD.flatten(1, 2))
        biases.append(q_bias_LKH.flatten(1))
    weight_LMD = torch.cat([*weights, -2 * centre_LKD], 1)
    bias_LM = torch.cat([*biases, centre_LKD.square().sum(2)], 1)
    return Prepared(shift_LD, weight_LMD, bias_LM, p_LKHD.shape[1], p_LKHD.shape[2], q_LKHD is None)


def descriptor_score(x_LTD: Tensor, prepared: Prepared) -> Tensor:
    shift_L1D = prepared.shift_LD[:, None]
    if x_LTD.shape[1] <= CHUNK:
        return _score(x_LTD - shift_L1D, prepared).mT
    return torch.cat([_score(chunk - shift_L1D, prepared).mT for chunk in x_LTD.split(CHUNK, 1)], 2)


def _score(x_LTD: Tensor, prepared: Prepared) -> Tensor:
    """(L, T, K) of records from which the shift is already subtracted."""
    columns_LTM = torch.baddbmm(prepared.bias_LM[:, None], x_LTD, prepared.weight_LMD.mT)
    width = prepared.num_descriptors * prepared.hidden
    p_LTKH = columns_LTM[..., :width].unflatten(2, (prepared.num_descriptors, prepared.hidden))
    if prepared.pca:
        product_LTK = -p_LTKH.square().sum(3)
    else:
        product_LTK = (p_LTKH * columns_LTM[..., width : 2 * width].view_as(p_LTKH)).sum(3)
    norm_LTK = columns_LTM[..., -prepared.num_descriptors :] + x_LTD.square().sum(2, keepdim=True)
    return product_LTK.add_(norm_LTK).div_(x_LTD.shape[2]).clamp_(min=0)
