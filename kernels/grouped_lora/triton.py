"""Fused forms for CUDA: down, nonlinearity, scale and up in one kernel; weight gradients slot by slot, in record order.

The backward to x is the forward's kernel with the two weights transposed: up' first, then down'.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# N records, T tokens, D in, O out, R rank, K slots

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.aot import Config
from kernels.dispatch import TRITON_DTYPES
from kernels.grouped_lora.cpu import Gradients, Weights, bias_gradients
from kernels.grouped_lora.route import MAX_RANK, Route


@triton.jit
def _two_products_kernel(
    x, first, second, bias_1, bias_2, base, saved, slot, scale, hidden, out,
    num_tokens, dim_in, dim_out, rank, first_r, first_d, second_o, second_r,
    FORWARD: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.arange(0, BLOCK_R)
    in_t, in_tr = t < num_tokens, (t[:, None] < num_tokens) & (r < rank)
    slot_n = tl.load(slot + n).to(tl.int64)
    # Slot -1 reads no weight at all: every load of one is masked, so its hidden states are exactly 0.
    in_r = (r < rank) & (slot_n >= 0)
    scale_n = tl.load(scale + n)
    first += slot_n * rank * dim_in
    second += slot_n * rank * dim_out
    hidden_tr = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    for start in range(0, dim_in, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x_td = tl.load(x + (n * num_tokens + t[:, None]) * dim_in + d, mask=in_t[:, None] & (d < dim_in), other=0.0)
        w_dr = tl.load(first + r * first_r + d[:, None] * first_d, mask=(d[:, None] < dim_in) & in_r, other=0.0)
        hidden_tr = tl.dot(x_td, w_dr, hidden_tr, input_precision=PRECISION)
    if FORWARD:
        if BIAS:
            hidden_tr += tl.load(bias_1 + slot_n * rank + r, mask=in_r, other=0.0).to(tl.float32)
        if RELU:
            hidden_tr = tl.maximum(hidden_tr, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif RELU:
        alive = tl.load(saved + (n * num_tokens + t[:, None]) * rank + r, mask=in_tr, other=0.0) > 0
        hidden_tr = tl.where(alive, hidden_tr, 0.0)
    scaled_tr = hidden_tr * scale_n
    tl.store(hidden + (n * num_tokens + t[:, None]) * rank + r, hidden_tr if FORWARD else scaled_tr, mask=in_tr)
    scaled_tr = scaled_tr.to(x.dtype.element_ty)
    for start in range(0, dim_out, BLOCK_D):
        o = start + tl.arange(0, BLOCK_D)
        in_to = in_t[:, None] & (o < dim_out)
        w_ro = tl.load(second + r[:, None] * second_r + o * second_o, mask=in_r[:, None] & (o < dim_out), other=0.0)
        y_to = tl.dot(scaled_tr, w_ro, input_precision=PRECISION)
        if FORWARD:
            if BIAS:
                in_o = (o < dim_out) & (slot_n >= 0)
                y_to += scale_n * tl.load(bias_2 + slot_n * dim_out + o, mask=in_o, other=0.0).to(tl.float32)
            y_to += tl.load(base + (n * num_tokens + t[:, None]) * dim_out + o, mask=in_to, other=0.0).to(tl.float32)
        tl.store(out + (n * num_tokens + t[:, None]) * dim_out + o, y_to, mask=in_to)


@triton.jit
def _slot_gradient_kernel(
    hidden, x, record, start_of, scale, gradient, num_tokens, dim, rank, gradient_r, gradient_d,
    SCALED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    r = tl.arange(0, BLOCK_R)
    sum_dr = tl.zeros((BLOCK_D, BLOCK_R), tl.float32)
    for i in range(tl.load(start_of + k), tl.load(start_of + k + 1)):
        n = tl.load(record + i).to(tl.int64)
        scale_n = tl.load(scale + n) if SCALED else 1.0
        for first in range(0, num_tokens, BLOCK_T):
            t = first + tl.arange(0, BLOCK_T)
            row = n * num_tokens + t
            x_dt = tl.load(x + row * dim + d[:, None], mask=(t < num_tokens) & (d[:, None] < dim), other=0.0)
            in_tr = (t[:, None] < num_tokens) & (r < rank)
            hidden_tr = tl.load(hidden + row[:, None] * rank + r, mask=in_tr, other=0.0) * scale_n
            sum_dr = tl.dot(x_dt, hidden_tr.to(x.dtype.element_ty), sum_dr, input_precision=PRECISION)
    target = gradient + k * rank * dim + r * gradient_r + d[:, None] * gradient_d
    tl.store(target, sum_dr, mask=(d[:, None] < dim) & (r < rank))


def _configs(element: str, relu: bool) -> dict[str, Config]:
    shared = {"PRECISION": "tf32x3" if element == "fp32" else "ieee", "BLOCK_T": 64, "BLOCK_R": MAX_RANK}
    flow_types = f"*{element} " * 6 + f"*fp32 *i64 *fp32 *fp32 *{element} " + "i32 " * 8
    flow = {**shared, "BLOCK_D": 32 if element == "fp32" else 64, "BIAS": relu, "RELU": relu}
    slot_types = f"*fp32 *{element} *i64 *i64 *fp32 *{element} i32 i32 i32 i32 i32"
    slot = {**shared, "BLOCK_T": 32, "BLOCK_D": 64}
    return {
        "forward": Config(
            _two_products_kernel, flow_types, {**flow, "FORWARD": True}, 8, units=("first_d", "second_r")
        ),
        "backward": Config(
            _two_products_kernel, flow_types, {**flow, "FORWARD": False}, 8, units=("first_r", "second_o")
        ),
        "down": Config(_slot_gradient_kernel, slot_types, {**slot, "SCALED": False}, units=("gradient_d",)),
        "up": Config(_slot_gradient_kernel, slot_types, {**slot, "SCALED": True}, units=("gradient_r",)),
    }


CONFIGS = {(element, relu): _configs(element, relu) for element in TRITON_DTYPES.values() for relu in (False, True)}
SHIPPED = tuple(
    config
    for (_, relu), configs in CONFIGS.items()
    for name, config in configs.items()
    if not (relu and name in ("down", "up"))  # the same kernels as without
)


def _pick(weights: Weights, relu: bool) -> dict[str, Config]:
    return CONFIGS[TRITON_DTYPES[weights.down_KRD.dtype], relu]


def _contiguous(*tensors: Tensor | None) -> list[Tensor]:
    """Aligned rows for the kernels; an absent bias passes any tensor, which the kernel then does not read."""
    present = next(t for t in tensors if t is not None)
    return [(present if t is None else t).contiguous() for t in tensors]


def forward(
    x_NTD: Tensor, weights: Weights, base_NTO: Tensor, route: Route, relu: bool, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    x_NTD, down, up, bias_1, bias_2, base_NTO = _contiguous(x_NTD, *weights, base_NTO)
    (num, tokens, dim), (_, dim_out, rank) = x_NTD.shape, up.shape
    hidden_NTR = x_NTD.new_empty(num, tokens, rank, dtype=torch.float32)
    out_NTO = base_NTO if inplace else torch.empty_like(base_NTO)
    config, scale_N = _pick(weights, relu)["forward"], route.scale_N11.float()
    _two_products_kernel[num, triton.cdiv(tokens, config.constants["BLOCK_T"])](
        x_NTD, down, up, bias_1, bias_2, base_NTO, hidden_NTR, route.slot_N, scale_N, hidden_NTR, out_NTO,
        tokens, dim, dim_out, rank, dim, 1, rank, 1, **config.options,
    )  # fmt: skip
    return out_NTO, hidden_NTR


def backward(
    grad_NTO: Tensor, x_NTD: Tensor, weights: Weights, hidden_NTR: Tensor, route: Route, relu: bool
) -> Gradients:
    x_NTD, down, up, grad_NTO = _contiguous(x_NTD, weights.down_KRD, weights.up_KOR, grad_NTO)
    (num, tokens, dim), (num_slots, dim_out, rank) = x_NTD.shape, up.shape
    configs, scale_N = _pick(weights, relu), route.scale_N11.float()
    grad_x_NTD, grad_hidden_NTR = torch.empty_like(x_NTD), torch.empty_like(hidden_NTR)
    config = configs["backward"]
    _two_products_kernel[num, triton.cdiv(tokens, config.constants["BLOCK_T"])](
        grad_NTO, up, down, up, up, grad_NTO, hidden_NTR, route.slot_N, scale_N, grad_hidden_NTR, grad_x_NTD,
        tokens, dim_out, dim, rank, 1, rank, 1, dim, **config.options,
    )  # fmt: skip
    sorted_N, record_N = route.slot_N.sort(stable=True)
    start_of_K = torch.searchsorted(sorted_N, torch.arange(num_slots + 1, device=sorted_N.device))
    grad_down_KRD, grad_up_KOR = torch.empty_like(down), torch.empty_like(up)
    grid = (num_slots, triton.cdiv(dim, 64))
    _slot_gradient_kernel[grid](
        grad_hidden_NTR, x_NTD, record_N, start_of_K, scale_N, grad_down_KRD, tokens, dim, rank, dim, 1,
        **configs["down"].options,
    )  # fmt: skip
    _slot_gradient_kernel[num_slots, triton.cdiv(dim_out, 64)](
        hidden_NTR, grad_NTO, record_N, start_of_K, scale_N, grad_up_KOR, tokens, dim_out, rank, 1, rank,
        **configs["up"].options,
    )  # fmt: skip
    biases = bias_gradients(weights, route, grad_hidden_NTR.sum(1).to(down.dtype), grad_NTO)
    return Gradients(grad_x_NTD, grad_down_KRD, grad_up_KOR, *biases)
