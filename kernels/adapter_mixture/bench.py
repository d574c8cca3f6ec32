"""Mixing adapters against SEMA's loop over them: `python -m kernels.adapter_mixture.bench [--json]`."""

# N records, T tokens, D features, H hidden, K adapters

from collections.abc import Iterator
from functools import partial

import torch

from kernels.adapter_mixture import adapter_mixture, reference
from kernels.bench import Case, main

BASELINE = "SEMA's loop over adapters, stacked and summed with the router's weights"


def cases(device: torch.device) -> Iterator[Case]:
    for num, tokens, dim, hidden, adapters in [
        (16, 64, 384, 16, 16), (16, 64, 384, 16, 4), (16, 64, 384, 16, 64), (8, 197, 768, 16, 10), (16, 64, 384, 16, 1)
    ]:  # fmt: skip
        shapes = [(hidden, dim), (hidden,), (dim, hidden), (dim,)]
        weights = [torch.randn(adapters, *shape, device=device) / shape[-1] ** 0.5 for shape in shapes]
        x_NTD = torch.randn(num, tokens, dim, device=device)
        router_NK = torch.randn(num, adapters, device=device).softmax(1)
        yield Case(
            f"N={num} T={tokens} D={dim} H={hidden} K={adapters}",
            partial(reference.adapter_mixture, x_NTD, router_NK, *weights),
            partial(adapter_mixture, x_NTD, router_NK, *weights),
            partial(adapter_mixture, x_NTD, router_NK * 1.001, *weights),
            flops=4 * num * tokens * adapters * hidden * dim,
            bytes_moved=4 * (2 * num * tokens * dim + 2 * adapters * hidden * dim),
        )


if __name__ == "__main__":
    main("adapter_mixture", BASELINE, cases)
