"""A forward of M6 with mixed adapters against PEFT: `python -m kernels.grouped_lora.bench [--json]`.

Frozen layers multiply as the pipeline's do (`kernels.frozen_linear`); "nn.Linear" is a shape where they do not.
"""

# N records, T tokens, K adapters

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.bench import Case, main
from kernels.bench_models import ALL_LINEAR, ALPHA, QV, RANK, adapted, add_adapters, frozen_weights, new_m6, stacked
from kernels.frozen_linear import freeze_linears
from kernels.grouped_lora import Route, Weights, grouped_bottleneck, grouped_lora, route_records

BASELINE = "PEFT forward with adapter_names"


class BankedLinear(nn.Module):
    """A frozen linear layer with all its adapters; `minibatch` carries the route of the records of this forward."""

    def __init__(self, base: nn.Module, A_KRD: Tensor, B_KOR: Tensor, minibatch: dict[str, Route]) -> None:
        super().__init__()
        self.base, self.A_KRD, self.B_KOR, self.minibatch = base, A_KRD, B_KOR, minibatch

    def forward(self, x_NTD: Tensor) -> Tensor:
        return grouped_lora(x_NTD, self.A_KRD, self.B_KOR, self.minibatch["route"], self.base(x_NTD), inplace=True)


def banked_copy(
    peft_model: Any, num: int, minibatch: dict[str, Route], bump: float = 1.0, frozen: bool = True
) -> nn.Module:
    """The same M6 with slot tensors in place of PEFT's modules; shares the frozen weights."""
    backbone = new_m6(device=next(peft_model.parameters()).device)
    backbone.load_state_dict(frozen_weights(peft_model))
    if frozen:
        freeze_linears(backbone)
    for name, module in adapted(peft_model).items():
        parent, _, child = name.removeprefix("base_model.model.").rpartition(".")
        A_KRD, B_KOR = stacked(module, num)
        owner = backbone.get_submodule(parent)
        setattr(owner, child, BankedLinear(getattr(owner, child), A_KRD * bump, B_KOR, minibatch))
    return backbone


def our_forward(model: Any, minibatch: dict[str, Route], tokens_NT: Tensor, slot_N: Tensor, scale_K: Tensor) -> Tensor:
    minibatch["route"] = route_records(slot_N, scale_K)
    states_NTD: Tensor = model(input_ids=tokens_NT).last_hidden_state
    return states_NTD


def peft_forward(model: Any, tokens_NT: Tensor, names: list[str]) -> Tensor:
    states_NTD: Tensor = model(input_ids=tokens_NT, adapter_names=names).last_hidden_state
    return states_NTD


def case(num: int, label: str, targets: Sequence[str], device: torch.device, frozen: bool = True) -> Case:
    tokens_NT = torch.randint(1000, 2000, (64, 16), device=device)
    slot_N = torch.arange(64, device=device) % (num + 1) - 1 if num < 64 else torch.arange(64, device=device)
    names = [f"a{slot}" if slot >= 0 else "__base__" for slot in slot_N.tolist()]
    scale_K = torch.full((num,), ALPHA / RANK, device=device)
    peft_model = add_adapters(new_m6(device=device), num, targets)
    minibatch: dict[str, Route] = {}
    ours, perturbed = (banked_copy(peft_model, num, minibatch, bump, frozen) for bump in (1.0, 1.001))
    return Case(
        f"M6 {label}, 64 x 16 tokens, K={num}{'' if frozen else ', nn.Linear'}",
        partial(peft_forward, peft_model, tokens_NT, names),
        partial(our_forward, ours, minibatch, tokens_NT, slot_N, scale_K),
        partial(our_forward, perturbed, minibatch, tokens_NT, slot_N, scale_K),
    )


def peft_gradients(model: Any, tokens_NT: Tensor, num: int) -> tuple[Tensor, ...]:
    """PEFT trains one adapter at a time: mixed names are for inference only. Every adapter takes its own records."""
    layers = adapted(model).values()
    for k, own_XT in enumerate(tokens_NT.chunk(num)):
        model.set_adapter(f"a{k}")
        model.zero_grad()
        with torch.enable_grad():
            model(input_ids=own_XT).last_hidden_state.pow(
                3
            ).sum().backward()  # squares sum to a constant behind a LayerNorm
        for layer in layers:
            layer.taken.append((layer.lora_A[f"a{k}"].weight.grad, layer.lora_B[f"a{k}"].weight.grad))
    taken = [zip(*layer.taken, strict=True) for layer in layers]
    gradients = tuple(torch.stack(each) for pairs in taken for each in pairs)
    for layer in layers:
        layer.taken.clear()
    return gradients


def our_gradients(model: Any, minibatch: dict[str, Route], tokens_NT: Tensor, slot_N: Tensor, scale_K: Tensor) -> Any:
    model.zero_grad()
    with torch.enable_grad():
        our_forward(model, minibatch, tokens_NT, slot_N, scale_K).pow(
            3
        ).sum().backward()  # squares sum to a constant behind a LayerNorm
    return tuple(p.grad for m in model.modules() if isinstance(m, BankedLinear) for p in (m.A_KRD, m.B_KOR))


def training_case(num: int, label: str, targets: Sequence[str], device: torch.device) -> Case:
    """Forward and backward of `num` adapters, each on four records of its own."""
    tokens_NT = torch.randint(1000, 2000, (4 * num, 16), device=device)
    slot_N, scale_K = torch.arange(4 * num, device=device) // 4, torch.full((num,), ALPHA / RANK, device=device)
    peft_model = add_adapters(new_m6(device=device), num, targets)
    for layer in adapted(peft_model).values():
        layer.taken = []
    minibatch: dict[str, Route] = {}
    ours, perturbed = (banked_copy(peft_model, num, minibatch, bump) for bump in (1.0, 1.001))
    for module in (*ours.modules(), *perturbed.modules()):
        if isinstance(module, BankedLinear):
            module.A_KRD, module.B_KOR = nn.Parameter(module.A_KRD), nn.Parameter(module.B_KOR)
    return Case(
        f"M6 {label}, forward and backward, {4 * num} x 16 tokens, K={num}",
        partial(peft_gradients, peft_model, tokens_NT, num),
        partial(our_gradients, ours, minibatch, tokens_NT, slot_N, scale_K),
        partial(our_gradients, perturbed, minibatch, tokens_NT, slot_N, scale_K),
        tolerance=1e-4,  # gradients of PEFT are summed in another order
    )


def bottleneck_loop(x_NTD: Tensor, weights: Sequence[Tensor], slot_N: Tensor, base_NTD: Tensor) -> Tensor:
    """PEFT has no bottleneck; this mixes them as it mixes LoRA: adapter by adapter, its own records each."""
    out_NTD = base_NTD.clone()
    for slot in slot_N.unique().tolist():
        own = (slot_N == slot).nonzero()[:, 0]
        down_RD, up_DR, down_bias_R, up_bias_D = (t[slot] for t in weights)
        hidden_NTR = torch.relu(functional.linear(x_NTD[own], down_RD, down_bias_R))
        out_NTD[own] += functional.linear(hidden_NTR, up_DR, up_bias_D)
    return out_NTD


def our_bottleneck(x_NTD: Tensor, weights: Weights, slot_N: Tensor, base_NTD: Tensor) -> Tensor:
    scale_K = x_NTD.new_ones(len(weights.down_KRD))
    return grouped_bottleneck(x_NTD, weights, route_records(slot_N, scale_K), base_NTD)


def bottleneck_case(num: int, device: torch.device, rank: int = 16, dim: int = 384) -> Case:
    """One block's bottlenecks beside the MLP, the form that the product's bank runs."""
    x_NTD, base_NTD = (torch.randn(64, 16, dim, device=device) for _ in range(2))
    slot_N = torch.arange(64, device=device) % num
    shapes = [(num, rank, dim), (num, dim, rank), (num, rank), (num, dim)]
    tensors = [torch.randn(*shape, device=device) / 8 for shape in shapes]
    weights = Weights(*tensors)
    wrong = weights._replace(down_KRD=weights.down_KRD * 1.001)
    return Case(
        f"one block's bottlenecks, 64 x 16 tokens, D={dim} r={rank} K={num}, against a loop over them",
        partial(bottleneck_loop, x_NTD, tensors, slot_N, base_NTD),
        partial(our_bottleneck, x_NTD, weights, slot_N, base_NTD),
        partial(our_bottleneck, x_NTD, wrong, slot_N, base_NTD),
        flops=4 * 64 * 16 * dim * rank,
        bytes_moved=4 * (3 * x_NTD.numel() + sum(t.numel() for t in tensors)),
    )


def cases(device: torch.device) -> Iterator[Case]:
    for num in (64, 16, 4, 1):
        yield case(num, "all linear layers", ALL_LINEAR, device)
        yield case(num, "query and value", QV, device)
    yield case(64, "all linear layers", ALL_LINEAR, device, frozen=False)
    for num in (64, 16, 1):
        yield bottleneck_case(num, device)
    for num in (16, 4):
        yield training_case(num, "query and value", QV, device)


if __name__ == "__main__":
    main("grouped_lora", BASELINE, cases)
