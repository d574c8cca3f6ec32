"""Low-rank and bottleneck adapters, a different one for every record of a minibatch.

LoRA (Hu et al., ICLR 2022) per record as in Punica's SGMV (Chen et al., MLSys 2024) and S-LoRA (Sheng et al., MLSys
2024), with gradients; the bottleneck is AdaptFormer's (Chen et al., NeurIPS 2022), the adapter of SEMA and MOS.
"""

# N records, T tokens, D in, O out, R rank, K slots; S rows of a block

import torch
from torch import Tensor

from kernels.grouped_lora.autograd import Grouped, form_for
from kernels.grouped_lora.cpu import Weights
from kernels.grouped_lora.route import Route, block_rows, route_records, route_to

__all__ = [
    "Route",
    "Weights",
    "block_rows",
    "grouped_bottleneck",
    "grouped_lora",
    "grouped_rows",
    "route_all",
    "route_records",
    "route_to",
]


def grouped_lora(
    x_NTD: Tensor, A_KRD: Tensor, B_KOR: Tensor, route: Route, base_NTO: Tensor, inplace: bool = False
) -> Tensor:
    """base + s_g x A_g' B_g' for the slot g of each record, (N, T, O); records of slot -1 keep their base.

    All tensors have one floating type; half types accumulate in float32 on CUDA. Differentiable once in x, A, B and
    base. The cost and the number of operations do not depend on K. `inplace` lets the result take base's memory where
    no gradient is asked for.
    """
    return _grouped(x_NTD, Weights(A_KRD, B_KOR), route, base_NTO, relu=False, inplace=inplace)


def grouped_bottleneck(
    x_NTD: Tensor, weights: Weights, route: Route, base_NTO: Tensor, inplace: bool = False
) -> Tensor:
    """base + s_g (relu(x down_g' + a_g) up_g' + c_g) for the slot g of each record; otherwise as `grouped_lora`."""
    return _grouped(x_NTD, weights, route, base_NTO, relu=True, inplace=inplace)


def grouped_rows(
    x_TD: Tensor, weights: Weights, slot_T: Tensor, scale_K: Tensor, base_TO: Tensor, relu: bool = False
) -> Tensor:
    """The same for rows that each have a slot of their own, for instance the unpadded tokens of ragged records."""
    row_MS, slot_M = block_rows(slot_T)
    padded_MS = row_MS.clamp(min=0)
    output_MSO = _grouped(x_TD[padded_MS], weights, route_records(slot_M, scale_K), base_TO[padded_MS], relu)
    return base_TO.index_copy(0, row_MS[row_MS >= 0], output_MSO[row_MS >= 0])


def _grouped(
    x_NTD: Tensor, weights: Weights, route: Route, base_NTO: Tensor, relu: bool, inplace: bool = False
) -> Tensor:
    if route.backbone_alone:
        return base_NTO
    if torch.is_grad_enabled():
        trained_NTO: Tensor = Grouped.apply(x_NTD, base_NTO, *weights, route, relu)
        return trained_NTO
    output_NTO, _ = form_for(x_NTD, weights).forward(x_NTD, weights, base_NTO, route, relu, inplace)
    return output_NTO


def route_all(num_slots: int, num_records: int, scale_K: Tensor) -> Route:
    """Every record under every slot, slot by slot: a minibatch of K * N records."""
    return route_records(torch.arange(num_slots, device=scale_K.device).repeat_interleave(num_records), scale_K)
