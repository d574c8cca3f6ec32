"""Linear layers of M6, forward and backward, against `nn.Linear`: `python -m kernels.frozen_linear.bench [--json]`."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels.bench import Case, main
from kernels.frozen_linear import frozen_linear

BASELINE = "torch.nn.functional.linear"
SHAPES = ((64, 16, 384, 1536), (64, 16, 1536, 384), (64, 16, 384, 384), (8, 8, 384, 384), (1, 8, 384, 384))


def gradient(multiply: object, x_NTD: Tensor, weight_OD: Tensor, bias_O: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the gradient in x of half its squared length."""
    with torch.enable_grad():
        leaf_NTD = x_NTD.detach().requires_grad_()
        output_NTO = multiply(leaf_NTD, weight_OD, bias_O)  # type: ignore[operator]
        output_NTO.backward(output_NTO.detach())
    assert leaf_NTD.grad is not None
    return output_NTO.detach(), leaf_NTD.grad


def cases(device: torch.device) -> Iterator[Case]:
    for records, tokens, dim, out in SHAPES:
        x_NTD = torch.randn(records, tokens, dim, device=device)
        weight_OD = torch.randn(out, dim, device=device) / dim**0.5
        bias_O = torch.randn(out, device=device)
        flops = 2.0 * records * tokens * dim * out
        for label, run, factor in (("", lambda f, *a: f(*a), 1), (", with gradient", gradient, 2)):
            yield Case(
                f"{records} x {tokens} rows, {dim} to {out}{label}",
                partial(run, functional.linear, x_NTD, weight_OD, bias_O),
                partial(run, frozen_linear, x_NTD, weight_OD, bias_O),
                partial(run, frozen_linear, x_NTD, weight_OD * 1.001, bias_O),
                flops=factor * flops,
            )


if __name__ == "__main__":
    main("frozen_linear", BASELINE, cases)
